"""The gates' decision: whether a challenger may replace the champion, and the numbers behind it.

Both are compared on the same words, pairs, questions and held-out lines, so a larger vocabulary alone changes nothing.
All numbers are invariant to rotation: they are the same before and after the alignment.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jobs.retraining.gates import Gates
from pipeline.shared.errors import InputError
from training.vectors.compare import Norms, growth, neighbour_overlap, shared_rows
from training.vectors.evaluation import analogies, word_pairs
from training.vectors.heldout import Heldout, losses
from training.vectors.word_vectors import Tables, Vectors

LOSS, OVERLAP, COVERAGE, NORMS = "held-out loss", "overlap@10", "coverage", "norms"


@dataclass(frozen=True)
class Outcome:
    """The result of one gate."""

    name: str
    passed: bool | None
    """None when the gate was not evaluated, because there is no champion yet."""
    value: float | None
    """The challenger's; None when it cannot be computed, which does not pass."""
    champion_value: float | None
    """The champion's, on the same words; None when it has none."""
    bound: str
    """``at most`` or ``at least``."""
    threshold: float | None
    """The bound's number, in the unit of ``value``."""
    detail: str


@dataclass(frozen=True)
class Decision:
    """All outcomes; accepted when none failed. Equal for equal files, since it contains neither times nor paths."""

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
        widths = [max(len(row[column]) for row in (header, *rows)) for column in range(5)]
        lines = [
            f"{mark:{widths[0]}}  {name:{widths[1]}}  {value:>{widths[2]}}  {champion:>{widths[3]}}  "
            f"{expected:{widths[4]}}  {detail}".rstrip()
            for mark, name, value, champion, expected, detail in (header, *rows)
        ]
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
    ``dataset``. For a first version, without a champion, gates that compare are not evaluated. Raises InputError for a
    file of pairs or questions that is missing, or that has nothing about the words of the champion (or of the first
    version): that is a mistake in the config. A file that has nothing about the shared words fails the challenger.
    Takes half a minute of one core and 1 GB for 70,000 words and all of questions-words.txt.
    """
    new = Tables.load(challenger)
    old = None if champion is None else Tables.load(champion)
    with np.errstate(over="ignore", invalid="ignore"):  # numbers that are not finite are outcomes, not warnings
        outcomes = [
            *_losses(gates, new, old, champion, dataset),
            *(outcome for file in gates.pairs for outcome in _pairs(gates, new, old, file)),
            *(_analogies(gates, new, old, gates.analogies) if gates.analogies else ()),
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
            yield _not_asked(name, "at most")
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
"""A score, and on how much of a file it is based. Raises InputError when the file has none of the vectors' words."""


def _pairs(gates: Gates, new: Tables, old: Tables | None, file: Path) -> Iterator[Outcome]:
    def score(vectors: Vectors) -> tuple[float, str]:
        result = word_pairs(vectors, file)
        return result.spearman, f"{result.pairs:,} of {result.pairs + result.unknown:,} pairs"

    yield from _on_a_file(f"pairs {file.name}", score, gates.pairs_drop, gates.pairs_least, new, old)


def _analogies(gates: Gates, new: Tables, old: Tables | None, file: Path) -> Iterator[Outcome]:
    def score(vectors: Vectors) -> tuple[float, str]:
        result = analogies(vectors, file)
        return result.accuracy, f"{result.questions:,} of {result.questions + result.unknown:,} questions"

    yield from _on_a_file(f"analogies {file.name}", score, gates.analogies_drop, gates.analogies_least, new, old)


def _on_a_file(
    name: str, score: Score, drop: float, least: float | None, new: Tables, old: Tables | None
) -> Iterator[Outcome]:
    """Compares the challenger's score with the champion's on the shared words, and with ``least`` on its own words."""
    if old is None:
        yield _not_asked(name, "at least")
        score(Vectors(new.words, new.center_VD))  # raises now, not at the next version, if the file is useless
    else:
        yield _compared(name, score, drop, new, old)
    if least is not None:
        own = _if_any(score, Vectors(new.words, new.center_VD))
        if own is None:
            yield Outcome(f"{name}, least", False, None, None, "at least", least, "says nothing about its words")
        else:
            yield _outcome(f"{name}, least", own[0], None, "at least", least, own[1])


def _compared(name: str, score: Score, drop: float, new: Tables, old: Tables) -> Outcome:
    new_S, old_S = shared_rows(new.words, old.words)
    words = ["<unk>", *(new.words[row] for row in new_S)]
    ours, theirs = (
        _if_any(score, Vectors(words, table_VD[np.concatenate([[0], rows_S])]))
        for table_VD, rows_S in ((new.center_VD, new_S), (old.center_VD, old_S))
    )
    if ours is None or theirs is None:
        score(Vectors(old.words, old.center_VD))  # raises if the file was useless before, too
        return Outcome(name, False, None, None, "at least", None, "says nothing about the words both know")
    return _outcome(name, ours[0], theirs[0], "at least", theirs[0] - drop, ours[1])


def _if_any(score: Score, vectors: Vectors) -> tuple[float, str] | None:
    try:
        return score(vectors)
    except InputError:
        return None


def _neighbours(gates: Gates, new: Tables, old: Tables | None) -> Iterator[Outcome]:
    for name, least in ((OVERLAP, gates.overlap), (COVERAGE, gates.coverage)):
        if least is None:
            continue
        if old is None:
            yield _not_asked(name, "at least")
            continue
        grown = growth(new.words, new.counts_V, old.words, old.counts_V)
        if name == OVERLAP:
            value = neighbour_overlap(new, old, gates.frequent_words)
            yield _outcome(name, value, None, "at least", least, f"{min(gates.frequent_words, grown.kept):,} words")
        else:
            yield _outcome(name, 1 - grown.lost_share, None, "at least", least, str(grown))


def _norms(new: Tables) -> Outcome:
    norms = Norms.of(new)
    detail = "; ".join(
        f"{name} " + (" ".join(f"{norm:.3g}" for norm in spread) if spread else "none finite")
        for name, spread in (("center", norms.center), ("context", norms.context))
    )
    return _outcome(NORMS, norms.bad, None, "at most", 0, f"rows not finite or zero; least, median, most: {detail}")


def _not_asked(name: str, bound: str) -> Outcome:
    return Outcome(name, None, None, None, bound, None, "not asked: first version")


def _outcome(
    name: str, value: float, champion_value: float | None, bound: str, threshold: float, detail: str
) -> Outcome:
    """The outcome of a number. One that is not finite, which JSON cannot express, becomes None and does not pass."""
    if not math.isfinite(value) or not math.isfinite(threshold):
        return Outcome(name, False, None, None, bound, None, f"no finite number; {detail}")
    passed = value <= threshold if bound == "at most" else value >= threshold
    return Outcome(name, passed, value, champion_value, bound, threshold, detail)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
