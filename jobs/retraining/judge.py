"""The gates' decision: whether a challenger may replace the champion, and the numbers behind it.

Both are compared on the same words, pairs, questions and held-out lines, so a larger vocabulary alone changes nothing.
All numbers are invariant to rotation: they are the same before and after the alignment.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jobs.retraining.gates import Gates
from pipeline.shared.errors import InputError
from training.judging.evaluation import RESTRICT_VOCAB, analogies, word_pairs
from training.judging.heldout import Heldout, losses
from training.vectors.compare import Norms, growth, neighbour_overlap, shared_rows
from training.vectors.word_vectors import Tables, Vectors

LOSS, OVERLAP, COVERAGE, NORMS = "held-out loss", "overlap@10", "coverage", "norms"


@dataclass(frozen=True)
class Outcome:
    """The result of one gate."""

    name: str
    passed: bool | None
    """None if the gate was not evaluated, because there is no champion yet."""
    value: float | None
    """The challenger's number; None if it cannot be computed, which does not pass."""
    champion_value: float | None
    """The champion's number, on the same words; None for gates that need none."""
    bound: str
    """``at most`` or ``at least``."""
    threshold: float | None
    """The bound's number, in the unit of ``value``."""
    detail: str


@dataclass(frozen=True)
class Decision:
    """All outcomes; accepted if no gate failed. Equal for equal files: it contains neither times nor paths."""

    accepted: bool
    gates: tuple[Outcome, ...]

    def __str__(self) -> str:
        """A table for people, with the verdict in the last line."""
        header = ("", "gate", "challenger", "champion", "expected", "")
        rows = [
            (
                {True: "ok", False: "NO", None: "-"}[gate.passed],
                gate.name,
                _shown(gate.value),
                _shown(gate.champion_value),
                "" if gate.threshold is None else f"{gate.bound} {_shown(gate.threshold)}",
                gate.detail,
            )
            for gate in self.gates
        ]
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = []
        for cells in (header, *rows):
            mark, name, *numbers, expected, detail = map(str.ljust, cells, widths)
            numbers = [number.strip().rjust(len(number)) for number in numbers]
            lines.append("  ".join([mark, name, *numbers, expected, detail]).rstrip())
        return "\n".join([*lines, self.verdict])

    @property
    def verdict(self) -> str:
        """One line: accepted, or refused with the gates that failed."""
        reasons = [
            f"{gate.name} {_shown(gate.value) or 'cannot be computed'}"
            + ("" if gate.threshold is None else f", expected {gate.bound} {_shown(gate.threshold)}")
            for gate in self.gates
            if gate.passed is False
        ]
        return f"refused: {'; '.join(reasons)}" if reasons else "accepted"


def judge(gates: Gates, challenger: Path, champion: Path | None, dataset: Path) -> Decision:
    """Evaluates all gates, also after one has failed.

    ``challenger`` and ``champion`` are folders of finished runs or published versions; the challenger was trained on
    ``dataset``. Without a champion, for a first version, gates that compare are not evaluated. Raises InputError, for a
    mistake in the config, if a file of pairs or questions is missing, or has too few words of the champion (or of the
    first version). If a file only has too few shared words, the challenger fails. Takes half a minute of one core for
    70,000 words and all of questions-words.txt. Memory: the words, and the vectors of RESTRICT_VOCAB of them.
    """
    new = Tables.load(challenger)
    old = None if champion is None else Tables.load(champion)
    with np.errstate(over="ignore", invalid="ignore"):  # such numbers are outcomes, not warnings
        outcomes = [
            *_losses(gates, new, old, champion, dataset),
            *_scores(gates, new, old),
            *_neighbours(gates, new, old),
            _norms(new),
        ]
    return Decision(all(outcome.passed is not False for outcome in outcomes), tuple(outcomes))


def _losses(gates: Gates, new: Tables, old: Tables | None, champion: Path | None, dataset: Path) -> Iterator[Outcome]:
    if gates.heldout_increase is None:
        return
    for whose in ("champion", "challenger"):
        name = f"{LOSS}, {whose}'s lines"
        if old is None or champion is None:
            yield _not_evaluated(name, "at most")
            continue
        heldout = Heldout.load(champion) if whose == "champion" else Heldout.of_dataset(dataset)
        found = losses(heldout, new, old)
        if found is None:
            yield Outcome(name, False, None, None, "at most", None, "no held-out example of words that both know")
            continue
        detail = f"{found.rows:,} rows; {found.words:,} words both know"
        threshold = found.second * (1 + gates.heldout_increase)
        yield _outcome(name, found.first, found.second, "at most", threshold, detail)


Score = Callable[[Vectors], tuple[float, str]]
"""A score, and how much of a file it is based on. Raises InputError if the file has none of the vectors' words."""


def _pairs_score(file: Path, vectors: Vectors) -> tuple[float, str]:
    result = word_pairs(vectors, file)
    return result.spearman, f"{result.pairs:,} of {result.pairs + result.unknown:,} pairs"


def _analogies_score(file: Path, vectors: Vectors) -> tuple[float, str]:
    result = analogies(vectors, file)
    return result.accuracy, f"{result.questions:,} of {result.questions + result.unknown:,} questions"


def _scores(gates: Gates, new: Tables, old: Tables | None) -> Iterator[Outcome]:
    """Compares scores with the champion's on the shared words, and with ``least`` on the challenger's own words."""
    kinds = (
        ("pairs", _pairs_score, gates.pairs, gates.pairs_drop, gates.pairs_least),
        ("analogies", _analogies_score, filter(None, [gates.analogies]), gates.analogies_drop, gates.analogies_least),
    )
    for kind, score_of, files, drop, least in kinds:
        for file in files:
            name, score = f"{kind} {file.name}", partial(score_of, file)
            yield _compared(name, score, drop, new, old)
            if least is not None:
                value, detail = _score_or_none(score, Vectors(new.words, new.center_VD))
                yield _outcome(f"{name}, least", value, None, "at least", least, detail)


def _compared(name: str, score: Score, drop: float, new: Tables, old: Tables | None) -> Outcome:
    if old is None:
        score(Vectors(new.words, new.center_VD))  # raises now, not at the next version, if the file is useless
        return _not_evaluated(name, "at least")
    new_S, old_S = (rows_S[:RESTRICT_VOCAB] for rows_S in shared_rows(new.words, old.words))  # no score uses more
    words = ["<unk>", *(new.words[row] for row in new_S)]
    (ours, detail), (theirs, _) = (
        _score_or_none(score, Vectors(words, table_VD[np.concatenate([[0], rows_S])]))
        for table_VD, rows_S in ((new.center_VD, new_S), (old.center_VD, old_S))
    )
    if ours is None or theirs is None:
        score(Vectors(old.words, old.center_VD))  # raises if the file was useless before, too
        return Outcome(name, False, None, None, "at least", None, "says nothing about the words both know")
    return _outcome(name, ours, theirs, "at least", theirs - drop, detail)


def _score_or_none(score: Score, vectors: Vectors) -> tuple[float | None, str]:
    try:
        return score(vectors)
    except InputError:
        return None, "says nothing about its words"


def _neighbours(gates: Gates, new: Tables, old: Tables | None) -> Iterator[Outcome]:
    for name, least in ((OVERLAP, gates.overlap), (COVERAGE, gates.coverage)):
        if least is None:
            continue
        if old is None:
            yield _not_evaluated(name, "at least")
            continue
        grown = growth(new.words, new.counts_V, old.words, old.counts_V)
        value, detail = 1 - grown.lost_share, str(grown)
        if name == OVERLAP:
            value = neighbour_overlap(new, old, gates.frequent_words)
            detail = f"{min(gates.frequent_words, grown.kept):,} words"
        yield _outcome(name, value, None, "at least", least, detail)


def _norms(new: Tables) -> Outcome:
    norms = Norms.of(new)
    detail = "; ".join(
        f"{name} " + (" ".join(f"{norm:.3g}" for norm in spread) if spread else "none finite")
        for name, spread in (("center", norms.center), ("context", norms.context))
    )
    return _outcome(NORMS, norms.bad, None, "at most", 0, f"rows not finite or zero; least, median, most: {detail}")


def _not_evaluated(name: str, bound: str) -> Outcome:
    return Outcome(name, None, None, None, bound, None, "not evaluated: first version")


def _outcome(
    name: str, value: float | None, champion_value: float | None, bound: str, threshold: float, detail: str
) -> Outcome:
    """The outcome of a number. One that is not finite, which JSON cannot express, becomes None. None does not pass."""
    if value is None:
        return Outcome(name, False, None, None, bound, threshold, detail)
    if not math.isfinite(value) or not math.isfinite(threshold):
        return Outcome(name, False, None, None, bound, None, f"no finite number; {detail}")
    passed = value <= threshold if bound == "at most" else value >= threshold
    return Outcome(name, passed, value, champion_value, bound, threshold, detail)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
