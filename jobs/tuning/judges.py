"""What trials are judged by. A judge gives numbers for each query (a sequence, or a pair of words), and one for all.

The numbers of queries are kept, so that two runs can be compared query by query: Q queries, M numbers of each.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
from scipy.stats import spearmanr

from jobs.tuning.study_sample import ITEMS, TEST, VALIDATION
from jobs.tuning.tune_config import JudgeSettings
from pipeline.dataset.manifest_file import Manifest
from pipeline.sampling import sample as sampling
from pipeline.shared.errors import InputError
from pipeline.shared.randomness import Purpose, fold, stream
from pipeline.text.tokens import tokenized
from pipeline.text.word_index import WordIndex, encode
from training.judging.evaluation import rows_by_spelling
from training.judging.heldout import NOTHING_HELD_OUT, row_losses
from training.judging.next_item import METRICS, NextItemTask
from training.judging.questions import read_pairs
from training.vectors.cosine import cosines
from training.vectors.run_files import folder_of_vectors, read_summary
from training.vectors.word_vectors import Tables, Vectors

RESAMPLES = 1000
LEAST_PAIRS = 10

Rows = npt.NDArray[np.float64]


class Judge(Protocol):
    """Judges finished runs."""

    name: str
    """Of the number, for people."""
    higher_is_better: bool
    baselines: tuple[str, ...]
    """What needs no training, and is judged beside."""

    def chosen_by(self, run: Path, dataset: Path) -> float:
        """The number by which trials are compared. Raises InputError."""

    def tested(self, run: Path, dataset: Path, baseline: str | None = None) -> Rows:
        """(Q, M) of the test's queries, which no trial is chosen by."""

    def value(self, rows_QM: Rows) -> float:
        """The number of these queries, or of a resample of them."""

    def others(self, rows_QM: Rows) -> dict[str, float]:
        """Other numbers of these queries, by name, for people."""


def judge_of(settings: JudgeSettings, sample: Path, seed: int) -> Judge:
    """The judge that a study wants; ``sample`` is the folder of its sequences."""
    if settings.by == "next_item":
        return NextItemJudge(settings, sample)
    return HeldoutJudge(sample) if settings.by == "heldout_loss" else PairsJudge(settings.pairs, seed)


class NextItemJudge:
    """How well the last items of sequences are predicted. Unknown ones are misses."""

    higher_is_better = True
    baselines: tuple[str, ...] = ("popularity", "cooccurrence")

    def __init__(self, settings: JudgeSettings, sample: Path):
        self._settings, self._sample = settings, sample
        self._names = {"hit_rate": f"HR@{settings.topk}", "ndcg": f"NDCG@{settings.topk}", "mrr": "MRR"}
        self.name = f"{self._names[settings.metric]} by {settings.score}"

    def chosen_by(self, run: Path, dataset: Path) -> float:
        return self.value(self._metrics(VALIDATION, self._settings.score, run, dataset))

    def tested(self, run: Path, dataset: Path, baseline: str | None = None) -> Rows:
        return self._metrics(TEST, baseline or self._settings.score, run, dataset)

    def value(self, rows_QM: Rows) -> float:
        return float(rows_QM[:, METRICS.index(self._settings.metric)].mean())

    def others(self, rows_QM: Rows) -> dict[str, float]:
        means = zip(METRICS, rows_QM.mean(0).tolist(), strict=True)
        return {self._names[metric]: mean for metric, mean in means if metric != self._settings.metric}

    def _metrics(self, part: str, score: str, run: Path, dataset: Path) -> Rows:
        task = NextItemTask(
            self._sample / f"{part}.parquet",
            history=self._sample / "train.parquet" if score == "cooccurrence" else None,
            column=ITEMS,
            topk=self._settings.topk,
            last=self._settings.last,
            ns_exponent=Manifest.load(dataset).config.ns_exponent,
        )
        found = Tables.load(folder_of_vectors(run))
        return task.metrics_of(score, Vectors(found.words, found.center_VD, found.counts_V), found.context_VD)


class HeldoutJudge:
    """The loss of sequences held out. Rows are a sequence's summed loss and its number of examples."""

    name = "held-out loss"
    higher_is_better = False
    baselines: tuple[str, ...] = ()

    def __init__(self, sample: Path):
        self._sample = sample

    def chosen_by(self, run: Path, dataset: Path) -> float:
        found = read_summary(run).get("heldout")
        if found is None:
            raise InputError(f"prepare.holdout: {NOTHING_HELD_OUT}")
        return float(found["best" if found["stopped_early"] else "last"]["loss"])

    def tested(self, run: Path, dataset: Path, baseline: str | None = None) -> Rows:
        manifest = Manifest.load(dataset)
        config, vocab = manifest.config, manifest.read_vocab(dataset)
        model = Tables.load(folder_of_vectors(run))
        tables = sampling.Tables.build(vocab.counts_V, config)
        index = WordIndex(vocab.words)
        rows = []
        lists = pq.read_table(self._sample / f"{TEST}.parquet", columns=[ITEMS])[ITEMS].combine_chunks()
        for found in tokenized(lists, config):
            if not found.lengths.size:
                continue
            encoded = encode(found.words, found.lengths, index)
            whole = sampling.Slice(encoded.ids, encoded.lengths, encoded.keys, np.zeros(len(encoded.keys), np.uint64))
            for number in range(len(encoded.keys)):
                one = np.zeros(len(encoded.keys), bool)
                one[number] = True
                examples = sampling.sample(whole.where(one), tables, config, epoch=0)
                targets_NL = examples.contexts_negatives_NL.copy()
                places = examples.num_contexts_N[:, None] * (1 + config.negatives)
                targets_NL[np.arange(targets_NL.shape[1]) >= places] = 0
                losses_N = np.empty(len(targets_NL), np.float32)
                counts_N = examples.num_contexts_N.astype(np.int32)
                row_losses(examples.center_N, targets_NL, counts_N, (model.center_VD, model.context_VD), losses_N)
                rows.append((float(losses_N.sum(dtype=np.float64)), len(losses_N)))
        if not sum(count for _, count in rows):
            raise InputError("judge.share: found no example in the test's sequences, expected some; raise it")
        return np.array(rows, np.float64)

    def value(self, rows_QM: Rows) -> float:
        total, count = rows_QM.sum(0)
        return float(total / count)

    def others(self, rows_QM: Rows) -> dict[str, float]:
        return {"examples": float(rows_QM[:, 1].sum())}


class PairsJudge:
    """The rank correlation of cosines with people's scores. One half of the pairs chooses, the other half tests.

    Rows are a pair's score, its cosine, and 1 if both words are known; unknown pairs count as a correlation of 0.
    """

    name = "rank correlation of pairs"
    higher_is_better = True
    baselines: tuple[str, ...] = ()

    def __init__(self, files: tuple[Path, ...], seed: int):
        pairs = [pair for file in files for pair in read_pairs(file)]
        is_test = fold(stream(seed, Purpose.STUDY, 2), np.arange(len(pairs))) >> np.uint64(63) == 1
        self._test = [pair for pair, flag in zip(pairs, is_test, strict=True) if flag]
        self._validation = [pair for pair, flag in zip(pairs, is_test, strict=True) if not flag]
        if min(len(self._test), len(self._validation)) < LEAST_PAIRS:
            halves = f"{len(self._validation)} to choose by and {len(self._test)} for the test"
            raise InputError(f"judge.pairs: found {halves}, expected {LEAST_PAIRS} or more each; name more pairs")

    def chosen_by(self, run: Path, dataset: Path) -> float:
        return self.value(self._rows(self._validation, run))

    def tested(self, run: Path, dataset: Path, baseline: str | None = None) -> Rows:
        return self._rows(self._test, run)

    def value(self, rows_QM: Rows) -> float:
        known_QM = rows_QM[rows_QM[:, 2] > 0]
        if len(np.unique(known_QM[:, 0])) < 2 or len(np.unique(known_QM[:, 1])) < 2:
            return 0.0
        return float(spearmanr(known_QM[:, 0], known_QM[:, 1]).statistic) * len(known_QM) / len(rows_QM)

    def others(self, rows_QM: Rows) -> dict[str, float]:
        return {"coverage": float(rows_QM[:, 2].mean())}

    def _rows(self, pairs: list[tuple[str, str, float]], run: Path) -> Rows:
        vectors = Vectors.load(folder_of_vectors(run))
        row_of = rows_by_spelling(vectors.words)
        found_Q2 = np.array([[row_of.get(word.upper(), 0) for word in pair[:2]] for pair in pairs])
        if found_Q2.all(axis=1).sum() < 2:
            raise InputError(f"judge.pairs: found fewer than two of {len(pairs)} pairs with known words, expected more")
        cosines_Q = cosines(vectors.center_VD[found_Q2[:, 0]], vectors.center_VD[found_Q2[:, 1]])
        return np.stack([np.array([pair[2] for pair in pairs]), cosines_Q, found_Q2.all(axis=1)], axis=1)


@dataclass(frozen=True)
class Estimate:
    """A number of the test, and its 95 % interval by the bootstrap over queries."""

    value: float
    low: float
    high: float


def estimate(judge: Judge, rows_QM: Rows, other_QM: Rows | None = None) -> Estimate:
    """The value of a run; with ``other_QM``, the rows of another run on the same queries, the difference to it."""

    def of(chosen: npt.NDArray[np.int64] | slice) -> float:
        subtrahend = 0.0 if other_QM is None else judge.value(other_QM[chosen])
        return judge.value(rows_QM[chosen]) - subtrahend

    rng = np.random.default_rng(0)
    found = [of(rng.integers(len(rows_QM), size=len(rows_QM))) for _ in range(RESAMPLES)]
    low, high = np.percentile(found, [2.5, 97.5])
    return Estimate(of(slice(None)), float(low), float(high))
