"""Laws of a study, with trials that take no time: their numbers are a function of their settings."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from test_tune_config import made

from jobs.tuning import study as module
from jobs.tuning.judges import Judge
from jobs.tuning.study import check_any, opened_study, search, usual_settings
from jobs.tuning.trials import Bench, TrialFailed
from jobs.tuning.tune_config import TuneConfig
from pipeline.shared.errors import InputError

SPACE = {
    "prepare": {"window": [1, 2, 5, "sequence"], "window_kind": ["dynamic", "fixed"]},
    "train": {"lr": {"low": 0.001, "high": 1, "log": True}, "dim": {"low": 4, "high": 64}},
}
LATER = 1e12
"""A deadline that is never reached."""


@dataclass
class FakeJudge:
    higher_is_better: bool = True


@dataclass
class FakeTrial:
    bench: "FakeBench"
    prepare: dict[str, Any]
    train: dict[str, Any]
    polls: int
    is_stopped: bool = False

    @property
    def is_training(self) -> bool:
        self.polls -= 1
        return self.polls > 0 and not self.is_stopped

    def heldout_losses(self) -> list[float]:
        return [self.value] * (self.bench.polls - self.polls)

    def stopped(self) -> None:
        self.is_stopped = True

    def judged(self) -> float:
        self.bench.num_judged += 1
        if self.bench.num_judged == self.bench.interrupted_at:
            raise KeyboardInterrupt
        return self.value

    @property
    def value(self) -> float:
        lr, dim = float(self.train["lr"]), int(self.train["dim"])
        return lr - abs(dim - 30) / 100 + float(self.prepare["window"] == 2)


@dataclass
class FakeBench:
    judge: FakeJudge = field(default_factory=FakeJudge)
    interrupted_at: int = 0
    failing: bool = False
    polls: int = 1
    num_judged: int = 0
    begun_trials: list[FakeTrial] = field(default_factory=list)

    def begun(self, name: str, prepare: dict[str, Any], train: dict[str, Any]) -> FakeTrial:
        if self.failing or prepare["window"] == 5:
            raise TrialFailed("prepare: too few words")
        self.begun_trials.append(FakeTrial(self, prepare, train, self.polls))
        return self.begun_trials[-1]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0)


def searched(folder: Path, bench: FakeBench, trials: int, num_jobs: int = 1, **given: Any) -> optuna.Study:
    folder.mkdir(exist_ok=True)
    config: TuneConfig = made(search=SPACE, trials=trials, **given)
    study = opened_study(cast(Judge, bench.judge), folder)
    search(config, cast(Bench, bench), study, LATER, num_jobs)
    return study


def finished(study: optuna.Study) -> list[tuple[dict[str, Any], float | None]]:
    states = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    return [(trial.params, trial.values and trial.value) for trial in study.get_trials(states=states)]


def test_a_study_that_was_interrupted_twice_has_the_trials_of_one_that_was_not(tmp_path: Path) -> None:
    whole = finished(searched(tmp_path / "whole", FakeBench(), 25))
    assert len(whole) == 25
    for number in (3, 9):
        with pytest.raises(KeyboardInterrupt):
            searched(tmp_path / "parts", FakeBench(interrupted_at=number), 25)
    assert finished(searched(tmp_path / "parts", FakeBench(), 18)) == whole[:18]
    assert finished(searched(tmp_path / "parts", FakeBench(), 25)) == whole
    assert finished(searched(tmp_path / "other", FakeBench(), 25, seed=1)) != whole


def test_it_finds_what_is_better_than_chance(tmp_path: Path) -> None:
    values = [value for _, value in finished(searched(tmp_path / "a", FakeBench(), 60)) if value is not None]
    assert sum(values[40:]) / len(values[40:]) > sum(values[:10]) / 10 + 0.2
    assert max(values) > 1.7


def test_settings_that_fail_are_said_and_the_study_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study = searched(tmp_path / "a", FakeBench(), 12)
    check_any(study)
    num_failed = sum(params["prepare.window"] == 5 for params, _ in finished(study))
    assert 0 < num_failed < 12
    assert capsys.readouterr().out.count("failed, prepare: too few words; ") == num_failed
    none = searched(tmp_path / "b", FakeBench(failing=True), 3)
    with pytest.raises(InputError, match=r"found no trial with a result; the last one: prepare: too few words"):
        check_any(none)


def test_a_window_that_is_a_sequence_has_no_kind(tmp_path: Path) -> None:
    bench = FakeBench()
    searched(tmp_path / "a", bench, 30)
    kinds = {(trial.prepare["window"] == "sequence", trial.prepare.get("window_kind")) for trial in bench.begun_trials}
    assert kinds == {(True, None), (False, "dynamic"), (False, "fixed")}


def test_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"not a database at all, but long enough to be read as one" * 20)
    with pytest.raises(InputError, match=r"study.db: cannot be read \(.*\); bring it back, or begin anew") as caught:
        opened_study(cast(Judge, FakeJudge()), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["{", "null", "[]", '{"value": 1.0}'])
def test_a_damaged_record_of_a_trial_is_one_line(tmp_path: Path, content: str) -> None:
    bench = Bench(tmp_path, cast(Judge, FakeJudge()), lambda: cast(Any, None), None, 1)
    assert bench.record("0000") is None
    (tmp_path / "trials" / "0000").mkdir(parents=True)
    (tmp_path / "trials" / "0000" / "trial.json").write_text(content)
    with pytest.raises(InputError, match=r"trial.json: cannot be read \(.*\); bring it back, or begin anew"):
        bench.record("0000")
    with pytest.raises(InputError, match=r"test.npy: cannot be read \(.*\); bring it back, or begin anew"):
        bench.rows("0000")


@pytest.mark.parametrize("num_jobs", [2, 3])
def test_several_at_once_are_as_many_in_all_and_all_are_ended_by_an_interruption(tmp_path: Path, num_jobs: int) -> None:
    assert len(finished(searched(tmp_path / "a", FakeBench(polls=4), 10, num_jobs))) == 10
    bench = FakeBench(polls=4, interrupted_at=4)
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "b", bench, 10, num_jobs)
    assert all(trial.is_stopped or trial.polls <= 0 for trial in bench.begun_trials)
    assert any(trial.is_stopped for trial in bench.begun_trials)
    assert len(finished(searched(tmp_path / "b", FakeBench(), 10, num_jobs))) == 10


def test_no_trial_begins_after_the_deadline(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    bench, config = FakeBench(), made(search=SPACE)
    study = opened_study(cast(Judge, bench.judge), tmp_path / "a")
    search(config, cast(Bench, bench), study, 0, 1)
    assert bench.begun_trials == []
    with pytest.raises(InputError, match="since the budget ended before the first one"):
        check_any(study)


def test_trials_with_high_held_out_losses_end_early(tmp_path: Path) -> None:
    bench = FakeBench(judge=FakeJudge(higher_is_better=False), polls=9)
    study = searched(tmp_path / "a", bench, 40)
    ended = [trial.value for trial in bench.begun_trials if trial.is_stopped]
    whole = [trial.value for trial in bench.begun_trials if not trial.is_stopped]
    assert len(ended) > 3
    assert sum(ended) / len(ended) > sum(whole) / len(whole)
    assert study.best_value == min(whole)


def test_usual_settings_are_the_presets_with_the_trainers_defaults() -> None:
    prepare, train = {"window": 3, "epochs": 4, "lowercase": True, "preset": "items"}, {"lr": 0.5, "threads": 1}
    words, items = usual_settings(made(prepare=prepare, train=train))
    assert words.prepare == {"epochs": 4, "lowercase": True, "preset": "words"}
    assert items.prepare == {**words.prepare, "preset": "items"}
    assert words.train == items.train == {"threads": 1}
    (defaults,) = usual_settings(made(judge={"by": "heldout_loss"}, prepare=prepare, train=train))
    assert defaults.prepare == {"holdout": 0.05, **prepare}
