"""Gates: whether a challenger may take the champion's place, and the number behind every answer.

Both are compared on the same words, pairs, questions and held-out lines, so that a vocabulary that has grown changes
nothing by itself. No number depends on how vectors are turned: they are the same before and after the alignment.
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
    """What one gate says."""

    name: str
    passed: bool | None
    """None where it was not asked: there is no champion yet."""
    value: float | None
    """The challenger's; None where there is none, which does not pass."""
    champion_value: float | None
    """The champion's, on the same words; None where it has none."""
    bound: str
    """``at most`` or ``at least``."""
    threshold: float | None
    """What ``value`` was held against, in its unit."""
    detail: str


@dataclass(frozen=True)
class Decision:
    """Every gate's outcome; accepted when none says no. The same for the same files: it holds no time and no path."""

    accepted: bool
    gates: tuple[Outcome, ...]

    def __str__(self) -> str:
        """A table for people, and the verdict in its last line."""
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
        """One line: accepted, or refused and by which gates."""
        reasons = [
            f"{gate.name} {_shown(gate.value) or 'cannot be computed'}"
            + ("" if gate.threshold is None else f", expected {gate.bound} {_shown(gate.threshold)}")
            for gate in self.gates
            if gate.passed is False
        ]
        return f"refused: {'; '.join(reasons)}" if reasons else "accepted"


def judge(gates: Gates, challenger: Path, champion: Path | None, dataset: Path) -> Decision:
    """All gates' outcomes, whichever of them says no.

    ``challenger`` and ``champion`` are folders of finished runs or published versions, ``dataset`` is the one that the
    challenger was trained on. Without a champion this is a first version: what compares is not asked. A file of pairs
    or questions that says nothing about the champion's words, or the first version's, is a mistake of the
    configuration: InputError, as for a file that is missing. One that has nothing left on the shared words fails the
    challenger. Takes half a minute of one core and 1 GB for 70,000 words and all of questions-words.txt.
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
        yield _held(name, found.first, found.second, "at most", threshold, detail)


Score = Callable[[Vectors], tuple[float, str]]
"""A number, and how much of a file it is of. Raises InputError where the file says nothing about the vectors."""


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
    """The challenger's score against the champion's on shared words; and against ``least``, on all that it has."""
    if old is None:
        yield _not_asked(name, "at least")
        score(Vectors(new.words, new.center_VD))  # whether the file is of use shows now, and not at the next version
    else:
        yield _compared(name, score, drop, new, old)
    if least is not None:
        own = _if_any(score, Vectors(new.words, new.center_VD))
        if own is None:
            yield Outcome(f"{name}, least", False, None, None, "at least", least, "says nothing about its words")
        else:
            yield _held(f"{name}, least", own[0], None, "at least", least, own[1])


def _compared(name: str, score: Score, drop: float, new: Tables, old: Tables) -> Outcome:
    new_S, old_S = shared_rows(new.words, old.words)
    words = ["<unk>", *(new.words[row] for row in new_S)]
    ours, theirs = (
        _if_any(score, Vectors(words, table_VD[np.concatenate([[0], rows_S])]))
        for table_VD, rows_S in ((new.center_VD, new_S), (old.center_VD, old_S))
    )
    if ours is None or theirs is None:
        score(Vectors(old.words, old.center_VD))  # raises where that is nothing new
        return Outcome(name, False, None, None, "at least", None, "says nothing about the words both know")
    return _held(name, ours[0], theirs[0], "at least", theirs[0] - drop, ours[1])


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
            yield _held(name, value, None, "at least", least, f"{min(gates.frequent_words, grown.kept):,} words")
        else:
            yield _held(name, 1 - grown.lost_share, None, "at least", least, str(grown))


def _norms(new: Tables) -> Outcome:
    norms = Norms.of(new)
    detail = "; ".join(
        f"{name} " + (" ".join(f"{norm:.3g}" for norm in spread) if spread else "none finite")
        for name, spread in (("center", norms.center), ("context", norms.context))
    )
    return _held(NORMS, norms.bad, None, "at most", 0, f"rows not finite or zero; least, median, most: {detail}")


def _not_asked(name: str, bound: str) -> Outcome:
    return Outcome(name, None, None, None, bound, None, "not asked: first version")


def _held(name: str, value: float, champion_value: float | None, bound: str, threshold: float, detail: str) -> Outcome:
    """The outcome of a number; one that is not finite, which JSON has no word for, is none and does not pass."""
    if not math.isfinite(value) or not math.isfinite(threshold):
        return Outcome(name, False, None, None, bound, None, f"no finite number; {detail}")
    passed = value <= threshold if bound == "at most" else value >= threshold
    return Outcome(name, passed, value, champion_value, bound, threshold, detail)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
