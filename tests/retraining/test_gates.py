"""Laws of jobs.retraining.gates and jobs.retraining.judge."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Threads
from tiny import random_model, write_held_out, write_tables

from jobs.retraining.gates import Gates
from jobs.retraining.judge import Decision, Outcome, judge
from pipeline.shared.errors import InputError
from training.judging.evaluation import word_pairs
from training.judging.heldout import Heldout, losses
from training.vectors.word_vectors import Tables, Vectors

NAMES = [
    "held-out loss, champion's lines",
    "held-out loss, challenger's lines",
    "pairs pairs.txt",
    "pairs pairs.txt, least",
    "analogies questions.txt",
    "analogies questions.txt, least",
    "overlap@10",
    "coverage",
    "norms",
]


class Place:
    """A dataset, a champion, a challenger close to it, and files to evaluate on."""

    def __init__(self, folder: Path):
        self.dataset, self.champion, self.challengers = folder / "data", folder / "champion", folder / "challengers"
        self.pairs, self.questions = folder / "pairs.txt", folder / "questions.txt"
        write_held_out(self.dataset)
        heldout = Heldout.of_dataset(self.dataset)
        model = random_model(len(heldout.words), 6, 0)
        self.old = Tables(heldout.words, model.counts_V, model.center_VD, model.context_VD)
        write_tables(self.champion, self.old)
        Heldout.of_dataset(self.dataset, 700).write(self.champion)  # not the lines that the challenger holds out
        rng = np.random.default_rng(0)
        drawn = rng.choice(heldout.words[1:], (60, 4)).tolist()
        vector_of = dict(zip(heldout.words, self.old.center_VD, strict=True))
        self.pairs.write_text("\n".join(f"{a} {b} {vector_of[a] @ vector_of[b]}" for a, b, *_ in drawn))
        unit_of = {word: vector_D / max(np.linalg.norm(vector_D), 1e-9) for word, vector_D in vector_of.items()}
        for question in drawn:  # the champion answers all of them right
            a, b, c, _ = question
            wanted_D = unit_of[b] - unit_of[a] + unit_of[c]
            others = (word for word in heldout.words[1:] if word not in (a, b, c))
            question[3] = max((float(unit_of[word] @ wanted_D), word) for word in others)[1]
        self.questions.write_text("\n".join([": all", *map(" ".join, drawn)]))
        self.gates = Gates(
            pairs=(self.pairs,), pairs_least=0.5, analogies=self.questions, analogies_least=0.0, frequent_words=20
        )
        self.new = self.noisy(0.001)

    def noisy(self, noise: float, **replaced: Any) -> Tables:
        other = random_model(len(self.old.words), 6, 1)
        center_VD, context_VD = (
            (table_VD + np.float32(noise) * noise_VD).astype(np.float32)
            for table_VD, noise_VD in (
                (self.old.center_VD, other.center_VD),
                (self.old.context_VD, other.context_VD),
            )
        )
        return dataclasses.replace(Tables(list(self.old.words), self.old.counts_V, center_VD, context_VD), **replaced)

    def judge(self, new: Tables, first: bool = False, **changed: Any) -> Decision:
        challenger = self.challengers / str(len([*self.challengers.glob("*")]))
        write_tables(challenger, new)
        gates = dataclasses.replace(self.gates, **changed)
        return judge(gates, challenger, None if first else self.champion, self.dataset)


@pytest.fixture
def place(tmp_path: Path, threads: Threads) -> Place:
    threads(1)
    return Place(tmp_path)


def of(decision: Decision, name: str) -> Outcome:
    return next(gate for gate in decision.gates if gate.name == name)


def refusing(decision: Decision) -> list[str]:
    return [gate.name for gate in decision.gates if gate.passed is False]


# What is accepted, and what is not


def test_a_challenger_close_to_the_champion_passes_every_gate_and_shows_its_number(place: Place) -> None:
    decision = place.judge(place.new)
    assert [gate.name for gate in decision.gates] == NAMES
    assert [gate.name for gate in decision.gates if gate.passed is not True] == []
    assert [gate.name for gate in decision.gates if gate.value is None or gate.threshold is None] == []
    with_champion = [gate.name for gate in decision.gates if gate.champion_value is not None]
    assert with_champion == [NAMES[0], NAMES[1], NAMES[2], NAMES[4]]
    assert decision.accepted
    assert str(decision).splitlines()[-1] == "accepted"


def test_the_numbers_are_those_of_the_functions_behind_them(place: Place) -> None:
    decision = place.judge(place.new)
    found = losses(Heldout.load(place.champion), place.new, place.old)
    gate = of(decision, NAMES[0])
    assert found
    assert (gate.value, gate.champion_value) == (found.first, found.second)
    assert gate.threshold == pytest.approx(1.02 * found.second)
    assert gate.detail == f"{found.rows:,} rows; {found.words:,} words both know"
    gate = of(decision, NAMES[2])
    ours, theirs = (
        word_pairs(Vectors(tables.words, tables.center_VD), place.pairs) for tables in (place.new, place.old)
    )
    assert (gate.value, gate.champion_value) == (ours.spearman, theirs.spearman)
    assert gate.threshold == pytest.approx(theirs.spearman - 0.05)


def noisy_centers(place: Place) -> Tables:
    return place.noisy(0, center_VD=place.noisy(9).center_VD)


def renamed(place: Place) -> Tables:
    """The most frequent word is lost, and with it more than a tenth of the tokens."""
    return place.noisy(0, words=["<unk>", "other", *place.old.words[2:]])


def noisy_contexts(place: Place) -> Tables:
    return place.noisy(0, context_VD=place.noisy(2).context_VD)


def without_a_vector(place: Place) -> Tables:
    new = place.noisy(0)
    new.center_VD[-1] = 0
    return new


@pytest.mark.parametrize(
    ("challenger", "names"),
    [
        pytest.param(noisy_contexts, NAMES[:2], id="contexts"),
        pytest.param(noisy_centers, [*NAMES[:5], "overlap@10"], id="centers"),
        pytest.param(renamed, ["coverage"], id="a lost word"),
        pytest.param(without_a_vector, [NAMES[4], "norms"], id="a zero vector"),
    ],
)
def test_each_kind_of_damage_is_refused_by_the_gates_made_for_it(
    place: Place, challenger: Callable[[Place], Tables], names: list[str]
) -> None:
    decision = place.judge(challenger(place))
    assert refusing(decision) == names
    assert not decision.accepted
    assert len(decision.gates) == len(NAMES), "all gates are computed, whichever says no"
    last = str(decision).splitlines()[-1]
    assert last.startswith("refused: ")
    assert all(name in last for name in names)


def test_a_gate_says_yes_up_to_its_threshold_and_no_beyond(place: Place) -> None:
    worse = place.noisy(0.5)
    found = {gate.name: (gate.value or 0.0, gate.champion_value or 0.0) for gate in place.judge(worse).gates}
    loss, their_loss = found[NAMES[1]]
    for name, field, at, step in (
        (NAMES[1], "heldout_increase", loss / their_loss - 1, -1e-6),
        (NAMES[2], "pairs_drop", found[NAMES[2]][1] - found[NAMES[2]][0], -1e-6),
        (NAMES[3], "pairs_least", found[NAMES[3]][0], 1e-6),
        (NAMES[4], "analogies_drop", found[NAMES[4]][1] - found[NAMES[4]][0], -1e-6),
        (NAMES[5], "analogies_least", found[NAMES[5]][0], 1e-6),
        ("overlap@10", "overlap", found["overlap@10"][0], 1e-6),
    ):
        assert at > 0, name
        for value, expected in ((at - step, True), (at + step, False)):
            changed: dict[str, Any] = {field: value}
            assert of(place.judge(worse, **changed), name).passed is expected, (name, value)


def test_both_are_judged_on_the_same_words_pairs_and_questions(place: Place) -> None:
    """Words that are new, lost, in another order or in capitals change no number that compares."""
    words = list(place.old.words)
    words[3], words[7] = "new", words[7].upper()
    short = place.noisy(0.2, words=words)
    rows = [0, *range(len(words) - 1, 0, -1)]
    shuffled = Tables([words[row] for row in rows], short.counts_V, short.center_VD[rows], short.context_VD[rows])
    for new in (short, shuffled):
        decision = place.judge(new)
        shared = {*place.old.words} & {*words[1:]}
        for file, name in ((place.pairs, NAMES[2]), (place.questions, NAMES[4])):
            known = [
                line
                for line in file.read_text().split("\n")
                if {*line.split()[: 2 if file == place.pairs else 4]} <= shared
            ]
            assert of(decision, name).detail.startswith(f"{len(known)} of 60 ")
    assert of(place.judge(short), NAMES[2]) == of(place.judge(shuffled), NAMES[2])
    assert of(place.judge(short), NAMES[4]) == of(place.judge(shuffled), NAMES[4])
    assert of(place.judge(short), NAMES[0]).value == pytest.approx(of(place.judge(shuffled), NAMES[0]).value)


def test_the_alignment_changes_no_outcome(place: Place) -> None:
    turn_DD, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((6, 6)))
    tables = [(table_VD @ turn_DD).astype(np.float32) for table_VD in (place.new.center_VD, place.new.context_VD)]
    before, after = place.judge(place.new), place.judge(place.noisy(0, center_VD=tables[0], context_VD=tables[1]))
    for first, second in zip(before.gates, after.gates, strict=True):
        assert first.value == pytest.approx(second.value, abs=1e-3), first.name
        assert (first.name, first.passed) == (second.name, second.passed)


# First versions, gates that are off, and what cannot be computed


def test_a_first_version_is_asked_what_needs_no_champion(place: Place) -> None:
    decision = place.judge(place.new, first=True)
    assert [gate.name for gate in decision.gates] == NAMES
    asked = [gate.name for gate in decision.gates if gate.passed is not None]
    assert asked == [NAMES[3], NAMES[5], "norms"]
    assert {gate.detail for gate in decision.gates if gate.passed is None} == {"not evaluated: first version"}
    assert decision.accepted
    assert str(decision).splitlines()[-1] == "accepted"
    assert refusing(place.judge(place.noisy(5), first=True)) == [NAMES[3]]


def test_gates_that_are_off_are_not_there_but_for_norms(place: Place) -> None:
    off: dict[str, Any] = {"heldout_increase": None, "overlap": None, "coverage": None}
    files: dict[str, Any] = {"pairs": (), "pairs_least": None, "analogies": None, "analogies_least": None}
    (place.champion / "heldout.parquet").unlink()
    assert [gate.name for gate in place.judge(place.noisy(9), **off, **files).gates] == ["norms"]
    assert [gate.name for gate in place.judge(place.noisy(9), **off, **files, first=True).gates] == ["norms"]


def test_a_file_that_says_nothing_of_what_is_published_is_the_configurations_mistake(place: Place) -> None:
    place.pairs.write_text("hund katze 7\nmaus ratte 3\n")
    for first in (False, True):
        with pytest.raises(InputError, match=r"pairs.txt: found 0 of 2 pairs"):
            place.judge(place.new, first=first)
    for file, changed in (("none", {"pairs": (Path("none"),)}), ("nothing", {"analogies": Path("nothing")})):
        with pytest.raises(InputError, match=file):
            place.judge(place.new, **changed)


def test_a_challenger_that_has_lost_the_files_words_is_refused_and_not_an_error(place: Place) -> None:
    kept = {word for line in place.pairs.read_text().split("\n")[:1] for word in line.split()[:2]}
    words = [word if word in kept else f"x{word}" for word in place.old.words]
    decision = place.judge(place.noisy(0, words=["<unk>", *words[1:]]))
    assert {*NAMES[2:6], "coverage"} <= {*refusing(decision)}
    assert of(decision, NAMES[2]).detail == "says nothing about the words both know"
    assert of(decision, NAMES[3]).detail == "says nothing about its words"
    assert f"{NAMES[2]} cannot be computed" in str(decision).splitlines()[-1]


def test_a_challenger_without_a_shared_word_is_refused_by_all_that_compares(place: Place) -> None:
    decision = place.judge(place.noisy(0, words=["<unk>", *(f"x{word}" for word in place.old.words[1:])]))
    assert refusing(decision) == NAMES[:-1]
    json.dumps(dataclasses.asdict(decision), allow_nan=False)


def test_numbers_that_are_too_large_are_refused_in_words_that_json_has(place: Place) -> None:
    new = place.noisy(0)
    new.center_VD[1:], new.context_VD[1:] = 1e25, 1e25
    decision = place.judge(new)
    assert {NAMES[0], NAMES[1], "norms"} <= {*refusing(decision)}
    assert "no finite number" in of(decision, NAMES[0]).detail
    json.dumps(dataclasses.asdict(decision), allow_nan=False)


def test_what_is_missing_is_named(place: Place) -> None:
    (place.champion / "heldout.parquet").unlink()
    with pytest.raises(InputError, match=r"heldout.parquet: cannot be read .* set heldout_increase to null"):
        place.judge(place.new)


# The decision


def test_the_same_files_give_the_same_decision_without_a_path(place: Place) -> None:
    first, second = place.judge(place.new), place.judge(place.new)
    assert (first, str(first)) == (second, str(second))
    text = json.dumps(dataclasses.asdict(first), allow_nan=False)
    assert str(place.dataset.parent) not in text + str(first)


def test_the_table_is_aligned_and_its_last_line_gives_number_and_threshold() -> None:
    gates = (
        Outcome("loss", False, 0.45, 0.4, "at most", 0.408, "9 rows"),
        Outcome("overlap@10", None, None, None, "at least", None, "not evaluated: first version"),
        Outcome("pairs x", False, None, None, "at least", None, "says nothing"),
        Outcome("norms", True, 0, None, "at most", 0, "fine"),
    )
    assert str(Decision(False, gates)).splitlines() == [
        "    gate        challenger  champion  expected",
        "NO  loss            0.4500    0.4000  at most 0.4080  9 rows",
        "-   overlap@10                                        not evaluated: first version",
        "NO  pairs x                                           says nothing",
        "ok  norms                0            at most 0       fine",
        "refused: loss 0.4500, expected at most 0.4080; pairs x cannot be computed",
    ]


# Settings


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"heldout_increase": -0.1}, "gates.heldout_increase: found -0.1, expected 0 to 100, or null"),
        ({"heldout_increase": float("nan")}, "gates.heldout_increase: found nan"),
        ({"overlap": 30}, "gates.overlap: found 30, expected 0 to 1, or null"),
        ({"pairs_drop": 3.0}, "gates.pairs_drop: found 3, expected 0 to 2$"),
        ({"pairs_least": 2, "pairs": (Path("x"),)}, "gates.pairs_least: found 2, expected -1 to 1, or null"),
        ({"pairs_least": 0.3}, "gates.pairs_least: found 0.3 without gates.pairs"),
        ({"analogies_least": 0.3}, "gates.analogies_least: found 0.3 without gates.analogies"),
        ({"frequent_words": 0}, "gates.frequent_words: found 0, expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_a_line(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Gates(**changed)
