"""How well vectors predict the last item of a sequence from those before it: leave-one-out evaluation.

docs/next-item.md has the formulas and their sources.

S sequences, N items of all of them, Q queries (sequences with a known target and history), B of a block; I items (the
words of the vocabulary but <unk>, so item i is row i + 1), C of a chunk; D dimensions; K items of a list; M metrics.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array, diags_array

from pipeline.shared.errors import InputError
from training.judging.ranking import OfBlock, Ranking, Score, ranked
from training.judging.sequences import Sequences, read_sequences
from training.vectors.cosine import lengths, norms
from training.vectors.word_vectors import Vectors

TOPK = 10
LAST = 5
NS_EXPONENT = 0.75
"""As in prepare."""

METRICS = "hit_rate", "ndcg", "mrr"

RESAMPLES = 1000
"""Of the bootstrap. The 2.5 and 97.5 % percentiles are then of 25 resamples each."""

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Mean:
    """A mean over sequences, and its 95 % interval by the bootstrap over sequences."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class ScoreResult:
    """How a score ranks the targets. For equal scores, the expectation over their orders counts."""

    hit_rate: Mean
    """HR@k: the share of sequences whose target is among the k items with the highest scores."""
    ndcg: Mean
    """NDCG@k with one relevant item: 1 / log2(rank + 1) if the rank is k or less, else 0."""
    mrr: Mean
    """Mean reciprocal rank among all items, without a cut at k."""
    catalogue_coverage: float
    """The share of items that are among the k highest of some sequence."""


@dataclass(frozen=True)
class NextItemResult:
    topk: int
    last: int
    items: int
    """The size of the catalogue: words of the vocabulary without <unk>."""
    seen: str
    """Whether items of the history are ranked: "left out" if no sequence repeats an item, else "may be recommended"."""
    sequences: int
    """The number of sequences used."""
    unknown: int
    """The number of sequences left out since their target, or their whole history, is unknown."""
    too_short: int
    """The number of sequences left out since they have fewer than two items."""
    coverage: float
    """The share of sequences of two items or more that were used."""
    scores: dict[str, ScoreResult | None]
    """Those of the model are None if there is no context table."""


@dataclass(frozen=True)
class _Queries:
    """Sequences with a known target and history, in the order of their targets."""

    targets_Q: Int64
    sequences_Q: Int64
    """Which sequences these are."""
    history_QI: csr_array
    """How often an item is in the history."""
    last_QI: csr_array
    """How often it is among the last items of the history."""


@dataclass(frozen=True)
class _Known:
    """What the vectors know of the files."""

    queries: _Queries
    is_long_S: npt.NDArray[np.bool_]
    """Which sequences have two items or more."""
    may_repeat: bool
    """Whether some sequence repeats an item."""
    left_out_QI: csr_array
    """The items that are not ranked."""
    counted: Sequences
    """Those whose co-occurrences are counted."""


@dataclass(frozen=True)
class NextItemTask:
    """Sequences whose last item is to be predicted, and what predicts it.

    ``history`` is the file whose sequences ``cooccurrence`` counts; without it, these are the sequences of ``file``
    without their targets. ``column`` names the column of both files if they are Parquet. ``ns_exponent`` is that of the
    noise law with which the dataset was prepared.
    """

    file: Path
    history: Path | None = None
    column: str | None = None
    topk: int = TOPK
    last: int = LAST
    ns_exponent: float = NS_EXPONENT

    def judged(self, vectors: Vectors, context_VD: Float32 | None = None) -> NextItemResult:
        """Ranks the last item of each sequence among all items, given those before it, by every score.

        Deterministic on one machine. Raises InputError for a malformed file, and for one without a sequence whose
        target and history are known.
        """
        known = self._known(vectors)
        scores = self._scores(vectors, context_VD, known)
        queries, num_items = known.queries, len(vectors)
        num_used, num_long = len(queries.targets_Q), int(known.is_long_S.sum())

        def result_of(score: Score) -> ScoreResult:
            ranking = ranked(score, queries.targets_Q, known.left_out_QI, self.topk)
            return _result(_values(ranking, num_items), ranking, num_items)

        return NextItemResult(
            topk=self.topk,
            last=self.last,
            items=num_items,
            seen="may be recommended" if known.may_repeat else "left out",
            sequences=num_used,
            unknown=num_long - num_used,
            too_short=len(known.is_long_S) - num_long,
            coverage=num_used / num_long,
            scores={name: None if score is None else result_of(score()) for name, score in scores.items()},
        )

    def metrics_of(self, name: str, vectors: Vectors, context_VD: Float32 | None = None) -> Float64:
        """Hit rate, NDCG and MRR of each sequence of two items or more, in the file's order; (S, M).

        They are 0 where the target, or the whole history, is unknown, so a smaller vocabulary brings nothing. Raises
        InputError as ``judged`` does, and for a score of the model if there is no context table.
        """
        known = self._known(vectors)
        score = self._scores(vectors, context_VD, known)[name]
        if score is None:
            raise InputError(f"{name}: found no context table, expected a run's folder, which has one")
        ranking = ranked(score(), known.queries.targets_Q, known.left_out_QI, self.topk)
        values_SM = np.zeros((len(known.is_long_S), len(METRICS)))
        values_SM[known.queries.sequences_Q] = _values(ranking, len(vectors))
        return values_SM[known.is_long_S]

    def _known(self, vectors: Vectors) -> "_Known":
        num_items = len(vectors)
        if self.topk >= num_items:
            raise InputError.flag("topk", self.topk, f"fewer than the {num_items:,} items of the vectors")
        row_of = {word: row for row, word in enumerate(vectors.words) if row}
        sequences = read_sequences(self.file, row_of, self.column)
        matrix_SI, histories = _matrix(sequences, num_items), _without_targets(sequences)
        is_long_S = sequences.lengths_S >= 2
        queries = _queries(sequences, histories, self.last, num_items)
        if not len(queries.targets_Q):
            raise InputError(
                f"{self.file}: found 0 of {int(is_long_S.sum()):,} sequences of two items or more with a last item and "
                f"an earlier one among the {num_items:,} items of the vectors, expected 1 or more; name sequences of "
                "items that the corpus has"
            )
        counted = histories
        if self.history:
            counted = read_sequences(self.history, row_of, self.column)
            if counted.lengths_S.any() and not counted.rows_N.any():
                found = f"found none of the {num_items:,} items of the vectors"
                raise InputError(f"{self.history}: {found}, expected sequences of them")
        may_repeat = bool((matrix_SI.data > 1).any())
        left_out_QI = csr_array(queries.history_QI.shape) if may_repeat else queries.history_QI
        return _Known(queries, is_long_S, may_repeat, left_out_QI, counted)

    def _scores(
        self, vectors: Vectors, context_VD: Float32 | None, known: "_Known"
    ) -> dict[str, Callable[[], Score] | None]:
        """What makes each score; None for those of the model without a context table."""
        center_ID, last_QI = vectors.center_VD[1:], known.queries.last_QI
        scores: dict[str, Callable[[], Score] | None] = {
            "cosine": lambda: _cosine(center_ID, last_QI),
            "model": None,
            "model_popularity": None,
            "popularity": lambda: _popularity(vectors),
            "cooccurrence": lambda: _cooccurrence(_matrix(known.counted, len(vectors)), last_QI),
        }
        if context_VD is not None and vectors.counts_V is not None:
            log_noise_I = self.ns_exponent * np.log(np.maximum(vectors.counts_V[1:], 1)).astype(np.float32)
            scores["model"] = lambda: _model(center_ID, context_VD[1:], last_QI)
            scores["model_popularity"] = lambda: _model(center_ID, context_VD[1:], last_QI, log_noise_I)
        return scores


# Queries


def _matrix(sequences: Sequences, num_items: int) -> csr_array:
    """How often each known item is in each sequence, shape (S, I), float32."""
    is_known_N = sequences.rows_N > 0
    ends_S = np.concatenate([[0], np.cumsum(is_known_N)])[np.concatenate([[0], np.cumsum(sequences.lengths_S)])]
    items = sequences.rows_N[is_known_N] - 1
    matrix_SI = csr_array((np.ones(len(items), np.float32), items, ends_S), (len(sequences.lengths_S), num_items))
    matrix_SI.sum_duplicates()
    return matrix_SI


def _without_targets(sequences: Sequences) -> Sequences:
    """The same sequences without their last items."""
    ends_S = np.cumsum(sequences.lengths_S)
    is_last_N = np.zeros(len(sequences.rows_N), bool)
    is_last_N[ends_S[sequences.lengths_S > 0] - 1] = True
    return Sequences(sequences.rows_N[~is_last_N], np.maximum(sequences.lengths_S - 1, 0))


def _queries(sequences: Sequences, histories: Sequences, last: int, num_items: int) -> _Queries:
    history_SI, last_SI = (_matrix(part, num_items) for part in (histories, _last_known(histories, last)))
    targets_S = np.full(len(sequences.lengths_S), -1)
    is_long_S = sequences.lengths_S >= 2
    targets_S[is_long_S] = sequences.rows_N[np.cumsum(sequences.lengths_S)[is_long_S] - 1] - 1
    used = np.flatnonzero((targets_S >= 0) & (np.diff(history_SI.indptr) > 0))
    used = used[np.argsort(targets_S[used], kind="stable")]
    return _Queries(targets_S[used], used, history_SI[used], last_SI[used])


def _last_known(histories: Sequences, last: int) -> Sequences:
    """The last known items of each sequence."""
    is_known_N = histories.rows_N > 0
    sequence_N = np.repeat(np.arange(len(histories.lengths_S)), histories.lengths_S)[is_known_N]
    num_known_S = np.bincount(sequence_N, minlength=len(histories.lengths_S))
    from_end_N = np.cumsum(num_known_S)[sequence_N] - np.arange(len(sequence_N))
    is_last_N = from_end_N <= last
    return Sequences(histories.rows_N[is_known_N][is_last_N], np.minimum(num_known_S, last))


# Scores


def _cosine(center_ID: Float32, last_QI: csr_array) -> Score:
    """The cosine to the mean of the last items' unit vectors, but for a positive factor of each query."""
    norms_I = norms(center_ID)
    mean_QD = (last_QI @ diags_array(1 / norms_I)) @ center_ID
    return _products(mean_QD, lambda chunk: center_ID[chunk] / norms_I[chunk, None], center_ID.shape[1])


def _model(center_ID: Float32, context_ID: Float32, last_QI: csr_array, log_noise_I: Float32 | None = None) -> Score:
    """The sum over the last items of center times context, the log-odds of the skip-gram.

    With ``log_noise_I``, the logarithm of the noise law, their mean plus that: the mean over the last items of
    log p(item | last item), but for a constant.
    """
    queries_QD = last_QI @ center_ID
    if log_noise_I is not None:
        queries_QD /= last_QI.sum(axis=1)[:, None]
    if not np.isfinite(lengths(queries_QD).max() * lengths(context_ID).max()):  # the bound of Cauchy and Schwarz
        raise InputError("found vectors too long for their products in float32; scale the vectors")
    return _products(queries_QD, lambda chunk: context_ID[chunk], context_ID.shape[1], log_noise_I)


def _products(
    queries_QD: Float32, rows: Callable[[slice], Float32], dim: int, addend_I: Float32 | None = None
) -> Score:
    def of_chunk(chunk: slice) -> OfBlock:
        rows_DC = rows(chunk).T
        addend_C = 0 if addend_I is None else addend_I[chunk]
        return lambda block: np.asarray(queries_QD[block] @ rows_DC + addend_C)

    return Score(of_chunk, dim)


def _popularity(vectors: Vectors) -> Score:
    """The place of an item's count among all counts. Without counts, the words' order, the most frequent first."""
    counts_I = np.arange(len(vectors), 0, -1) if vectors.counts_V is None else vectors.counts_V[1:]
    places_I = np.unique(counts_I, return_inverse=True)[1].astype(np.float32)  # counts above 2^24 would be rounded

    def of_chunk(chunk: slice) -> OfBlock:
        return lambda block: np.tile(places_I[chunk], (block.stop - block.start, 1))

    return Score(of_chunk, 1)


def _cooccurrence(counted_SI: csr_array, last_QI: csr_array) -> Score:
    """The sum over the last items of n_ij / sqrt(n_i n_j); n counts the sequences with the item, or with both.

    Computed in float64 and rounded to float32, so that equal sums are equal in whatever order they are added.
    """
    is_in_SI = csr_array((np.ones(counted_SI.nnz), counted_SI.indices, counted_SI.indptr), counted_SI.shape)
    is_in_IS, by_column_SI = is_in_SI.T.tocsr(), is_in_SI.tocsc()
    weights_I = 1 / np.sqrt(np.maximum(np.diff(by_column_SI.indptr), 1))
    weighted_QI = (last_QI @ diags_array(weights_I)).tocsr()

    def of_chunk(chunk: slice) -> OfBlock:
        both = (is_in_IS @ by_column_SI[:, chunk]).tocoo()
        both.data[both.row == both.col + chunk.start] = 0  # an item does not recommend itself
        both_IC = both.tocsr()
        return lambda block: ((weighted_QI[block] @ both_IC).toarray() * weights_I[chunk]).astype(np.float32)

    return Score(of_chunk, counted_SI.shape[1] // 8)  # a popular item's column is dense: C columns are then I·C numbers


# Metrics


def _values(ranking: Ranking, num_items: int) -> Float64:
    """Hit rate, NDCG and MRR of each query, (Q, M)."""
    topk = ranking.top_QK.shape[1]
    ranks_I = np.arange(1, num_items + 1)
    is_hit_I = ranks_I <= topk
    of_ranks = is_hit_I, is_hit_I / np.log2(ranks_I + 1), 1 / ranks_I
    return np.stack([_expected(of_rank_I, ranking) for of_rank_I in of_ranks], 1)


def _result(values_QM: Float64, ranking: Ranking, num_items: int) -> ScoreResult:
    low_M, high_M = _interval(values_QM)
    hit_rate, ndcg, mrr = (Mean(*map(float, found)) for found in zip(values_QM.mean(0), low_M, high_M, strict=True))
    return ScoreResult(hit_rate, ndcg, mrr, len(np.setdiff1d(ranking.top_QK, [-1])) / num_items)


def _expected(of_rank_I: npt.NDArray[np.generic], ranking: Ranking) -> Float64:
    """The mean of ``of_rank_I`` over the ranks that the target can have among equal scores (McSherry & Najork 2008)."""
    sums = np.concatenate([[0.0], np.cumsum(of_rank_I, dtype=np.float64)])
    return np.asarray((sums[ranking.greater_Q + ranking.equal_Q] - sums[ranking.greater_Q]) / ranking.equal_Q)


def _interval(values_QM: Float64) -> tuple[Float64, Float64]:
    """The 2.5 and 97.5 % percentiles of the means of resamples of the queries, with replacement, seed 0; (M,) each."""
    rng, num_queries = np.random.default_rng(0), len(values_QM)
    means_RM = np.empty((RESAMPLES, values_QM.shape[1]))
    for row in range(RESAMPLES):
        draws_Q = np.bincount(rng.integers(num_queries, size=num_queries), minlength=num_queries)
        means_RM[row] = draws_Q @ values_QM / num_queries
    low_M, high_M = np.percentile(means_RM, [2.5, 97.5], axis=0)
    return low_M, high_M
