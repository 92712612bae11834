"""Compares two models: shared words, shared neighbours, growth of the vocabulary; and the norms of one model.

V words of a table, S shared words, C of them in a chunk, B words that are asked for at once, K neighbours, D
dimensions; row 0, <unk>, is no word.
"""

from dataclasses import dataclass
from itertools import chain, islice

import numpy as np
import numpy.typing as npt

from pipeline.shared.records import Count
from training.vectors.cosine import chunks, lengths, unit
from training.vectors.word_vectors import Tables

BLOCK_WORDS = 1024
"""How many words are asked for at once: their cosines with a chunk of words are in memory."""

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]


def rows_in(words: list[str], others: list[str]) -> Int64:
    """The row of each of ``words`` in ``others``, shape (V,); 0 for a missing word, and for <unk>."""
    row_of = {word: row for row, word in enumerate(others) if row}
    return np.fromiter(chain([0], (row_of.get(word, 0) for word in islice(words, 1, None))), np.int64)


def shared_rows(words: list[str], others: list[str]) -> tuple[Int64, Int64]:
    """The rows of the shared words in ``words`` and in ``others``, shape (S,) each; in the order of ``words``."""
    rows_V = rows_in(words, others)
    mine_S = np.flatnonzero(rows_V)
    return mine_S, rows_V[mine_S]


def neighbour_overlap(challenger: Tables, champion: Tables, frequent_words: int = 1000, topk: int = 10) -> float:
    """The mean share of a word's ``topk`` nearest neighbours that both models have in common, 0 to 1.

    The mean is over the ``frequent_words`` shared words that are most frequent in the champion, so the words do not
    depend on the challenger. Neighbours, by cosine, are shared words only, so new and lost words change nothing. With
    fewer than ``topk`` other words, all are neighbours; 0 for fewer than two shared words. Costs S·D multiplications a
    word, and no copy of a table.
    """
    published_S, rows_S = shared_rows(champion.words, challenger.words)
    num_asked, topk = min(frequent_words, len(rows_S)), min(topk, len(rows_S) - 1)
    if topk < 1:
        return 0.0
    models = (champion.center_VD, published_S), (challenger.center_VD, rows_S)
    common = 0
    for begin in range(0, num_asked, BLOCK_WORDS):
        asked_B = np.arange(begin, min(begin + BLOCK_WORDS, num_asked))
        theirs_BK, ours_BK = (_nearest(center_VD, shared_S, asked_B, topk) for center_VD, shared_S in models)
        common += int((theirs_BK[:, :, None] == ours_BK[:, None, :]).sum())
    return common / (num_asked * topk)


def _nearest(center_VD: Float32, rows_S: Int64, asked_B: Int64, topk: int) -> Int64:
    """Which of the shared words have the highest cosines with each of ``asked_B``, itself excluded; shape (B, topk).

    Shared words are numbers 0 to S - 1; ``rows_S`` are their rows. Unordered.
    """
    unit_BD = unit(center_VD[rows_S[asked_B]])
    scores_BK: Float32 = np.empty((len(asked_B), 0), np.float32)
    words_BK: Int64 = np.empty((len(asked_B), 0), np.int64)
    for chunk in chunks(len(rows_S), max(len(asked_B), center_VD.shape[1])):
        scores_BC = unit_BD @ unit(center_VD[rows_S[chunk]]).T
        is_here_B = (asked_B >= chunk.start) & (asked_B < chunk.stop)
        scores_BC[is_here_B, asked_B[is_here_B] - chunk.start] = -np.inf
        highest_BK = _highest(scores_BC, topk)
        scores_BK = np.hstack([scores_BK, np.take_along_axis(scores_BC, highest_BK, axis=1)])
        words_BK = np.hstack([words_BK, highest_BK + chunk.start])
        highest_BK = _highest(scores_BK, topk)
        scores_BK = np.take_along_axis(scores_BK, highest_BK, axis=1)
        words_BK = np.take_along_axis(words_BK, highest_BK, axis=1)
    return words_BK


def _highest(scores_BC: Float32, topk: int) -> Int64:
    """The columns of the ``topk`` highest scores of each row, or all columns if there are fewer; unordered."""
    topk = min(topk, scores_BC.shape[1])
    return np.argpartition(scores_BC, -topk, axis=1)[:, -topk:]


@dataclass(frozen=True)
class Growth:
    """From one vocabulary to the next: the numbers of shared words, of new ones and of lost ones."""

    kept: Count
    new: Count
    lost: Count
    kept_share: float
    """The kept words' share of the new vocabulary's tokens, 0 to 1."""
    lost_share: float
    """The lost words' share of the old vocabulary's tokens, 0 to 1."""

    def __str__(self) -> str:
        return (
            f"{self.kept:,} words kept ({self.kept_share:.1%} of the tokens), {self.new:,} new, "
            f"{self.lost:,} lost ({self.lost_share:.1%} of the old tokens)"
        )


def growth(words: list[str], counts_V: Int64, words_before: list[str], counts_before_V: Int64) -> Growth:
    """The growth from the vocabulary before, without <unk>; the two have different V."""
    mine_S, theirs_S = shared_rows(words, words_before)
    return Growth(
        kept=len(mine_S),
        new=len(words) - 1 - len(mine_S),
        lost=len(words_before) - 1 - len(theirs_S),
        kept_share=_share(counts_V, mine_S),
        lost_share=1 - _share(counts_before_V, theirs_S),
    )


def _share(counts_V: Int64, rows_S: Int64) -> float:
    """The share of ``rows_S`` in all tokens but <unk>; 1 if there are none."""
    counted = int(counts_V[1:].sum())
    return int(counts_V[rows_S].sum()) / counted if counted else 1.0


@dataclass(frozen=True)
class Norms:
    """The norms of all rows but <unk>'s, in float32, as readers compute them: a value beyond 1e19 overflows."""

    bad: int
    """The number of rows whose norm is not finite, and of center vectors that are zero and so have no neighbours."""
    center: tuple[float, float, float] | None
    """Minimum, median and maximum of the finite norms; None when there are none."""
    context: tuple[float, float, float] | None

    @classmethod
    def of(cls, tables: Tables) -> "Norms":
        center_V, context_V = (lengths(table_VD[1:]) for table_VD in (tables.center_VD, tables.context_VD))
        bad = sum(int((~np.isfinite(norms_V)).sum()) for norms_V in (center_V, context_V))
        return cls(bad + int((center_V == 0).sum()), _spread(center_V), _spread(context_V))


def _spread(norms_V: Float32) -> tuple[float, float, float] | None:
    finite = norms_V[np.isfinite(norms_V)]
    return (float(finite.min()), float(np.median(finite)), float(finite.max())) if finite.size else None
