"""A study on one page, study.html: its best settings, the history, what mattered, and all trials."""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from matplotlib.axes import Axes
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from jobs.tuning.judges import Judge
from jobs.tuning.results import Compared, spelled
from jobs.tuning.study import FAILED
from jobs.tuning.tune_config import TuneConfig
from pipeline.shared.files import write
from training.runs.report_plots import BLUE, GREEN, ORANGE, picture, whole_numbers

PAGE = "study.html"

MOST_LINES = 500
"""Of the picture of all trials, the best ones."""


def write_page(
    config: TuneConfig, judge: Judge, study: optuna.Study, found: list[Compared], sequences: dict[str, int]
) -> Path:
    """Writes STUDY/study.html, atomically. It contains its pictures and loads nothing."""
    loader = ChoiceLoader([PackageLoader("jobs.tuning", "."), PackageLoader("training.runs", ".")])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    trials = study.get_trials(deepcopy=False)
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    text = environment.get_template("study.html.j2").render(
        name=config.name,
        judge=judge,
        config=config,
        sequences=sequences,
        tiles=_tiles(study, done, trials, found),
        compared=[_compared(each) for each in found],
        others=[*found[0].others],
        best={**_named("prepare", found[0].prepare), **_named("train", found[0].train)},
        names=sorted({name for trial in trials for name in trial.params}),
        trials=[_row(trial) for trial in sorted(trials, key=lambda trial: _place(trial, judge))],
        pictures={
            "history": _history(done, study, found, judge),
            "importances": _importances(study, done),
            "all": _all_trials(done, judge),
        },
    )
    path = config.output / PAGE
    write(path, text.encode())
    return path


def _tiles(
    study: optuna.Study, done: list[FrozenTrial], trials: list[FrozenTrial], found: list[Compared]
) -> dict[str, str]:
    early = sum(trial.state == TrialState.PRUNED and FAILED not in trial.user_attrs for trial in trials)
    failed = sum(FAILED in trial.user_attrs for trial in trials)
    return {
        "best, on the test": f"{found[0].estimate.value:.4f}",
        "best, when it was chosen": f"{study.best_value:.4f}",
        "best trial": f"{study.best_trial.number}",
        "trials": f"{len(done):,}",
        **({"ended early": f"{early:,}"} if early else {}),
        **({"failed": f"{failed:,}"} if failed else {}),
    }


def _compared(each: Compared) -> list[str]:
    difference = spelled(each.tuned_minus_this, "+") if each.tuned_minus_this else ""
    return [each.name, spelled(each.estimate), difference, *(_spelled(value) for value in each.others.values())]


def _named(section: str, settings: dict[str, Any] | None) -> dict[str, Any]:
    return {f"{section}.{name}": _spelled(value) for name, value in (settings or {}).items()}


def _spelled(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _place(trial: FrozenTrial, judge: Judge) -> float:
    """Where a trial is in the table: the best first, those without a number last."""
    if trial.state != TrialState.COMPLETE:
        return math.inf
    assert trial.value is not None
    return -trial.value if judge.higher_is_better else trial.value


def _row(trial: FrozenTrial) -> dict[str, Any]:
    result = f"{trial.value:.4f}" if trial.state == TrialState.COMPLETE else "ended early"
    if trial.state != TrialState.COMPLETE and trial.state != TrialState.PRUNED:
        result = "interrupted" if trial.state == TrialState.FAIL else "waiting"
    is_over = trial.duration is not None and trial.state != TrialState.FAIL
    took = round(trial.duration.total_seconds()) if is_over and trial.duration else None
    params = {name: _spelled(value) for name, value in trial.params.items()}
    return {"number": trial.number, "result": trial.user_attrs.get(FAILED, result), "seconds": took, "params": params}


def _history(done: list[FrozenTrial], study: optuna.Study, found: list[Compared], judge: Judge) -> str:
    best = max if judge.higher_is_better else min
    numbers = [trial.number for trial in done]
    values: list[float] = [trial.value for trial in done if trial.value is not None]
    so_far = [best(values[: place + 1]) for place in range(len(values))]

    def draw(axes: Axes) -> None:
        axes.plot(numbers, values, "o", color=BLUE, markersize=4, label="a trial")
        axes.step(numbers, so_far, where="post", color=ORANGE, linewidth=1.2, label="best so far")
        axes.set(xlabel="trial", ylabel=judge.name)
        axes.legend(frameon=False)
        whole_numbers(axes)

    return picture("history", f"{judge.name} of each trial, the best one {study.best_value:.4f}", draw)


def _importances(study: optuna.Study, done: list[FrozenTrial]) -> str:
    """By PED-ANOVA: which settings tell the best tenth of trials from the others. Empty if it cannot be computed."""
    if len(done) < 10:
        return ""
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        try:
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (RuntimeError, ValueError):
            return ""
    names = [*shares][::-1]

    def draw(axes: Axes) -> None:
        axes.barh(names, [shares[name] for name in names], color=BLUE)
        axes.set(xlabel="importance")

    return picture("importances", f"Importance of settings, {names[-1]} first", draw)


def _all_trials(done: list[FrozenTrial], judge: Judge) -> str:
    """Parallel coordinates: a line for each trial, through its settings to its result."""
    trials = sorted(done, key=lambda trial: _place(trial, judge))[:MOST_LINES]
    names = sorted({name for trial in trials for name in trial.params})
    values = [trial.value or 0.0 for trial in trials]
    lowest, span = min(values), max(max(values) - min(values), 1e-12)

    def draw(axes: Axes) -> None:
        for place in reversed(range(len(trials))):
            trial = trials[place]
            heights = [_height(trial, name) for name in names] + [(values[place] - lowest) / span]
            share = place / max(1, len(trials) - 1)
            colour, strong = (ORANGE, 2.0) if place == 0 else (GREEN if share <= 0.1 else BLUE, 1.0)
            axes.plot(range(len(heights)), heights, color=colour, linewidth=strong, alpha=1 - 0.8 * share)
        axes.grid(axis="y", visible=False)
        axes.set(xlim=(-0.3, len(names) + 0.3), ylim=(-0.05, 1.05), yticks=[])
        axes.spines["left"].set_visible(False)
        axes.set_xticks(
            range(len(names) + 1), [*(name.replace(".", "\n") for name in names), judge.name.replace(" ", "\n")]
        )
        for place, name in enumerate(names):
            for height, label in _labels(trials, name):
                axes.text(place, height, f" {label}", fontsize=8, va="center", color=axes.xaxis.label.get_color())
        for height, value in ((0, lowest), (1, lowest + span)):
            axes.text(len(names), height, f" {value:.3f}", fontsize=8, va="center", color=axes.xaxis.label.get_color())

    return picture(
        "all", f"Settings and results of {len(trials)} trials", draw, (max(4.6, 1.0 * len(names) + 1.5), 3.8)
    )


def _height(trial: FrozenTrial, name: str) -> float:
    """Where a trial's line crosses the axis of a setting, 0 to 1; not a number if it has none."""
    if name not in trial.params:
        return math.nan
    found, value = trial.distributions[name], trial.params[name]
    if isinstance(found, CategoricalDistribution):
        return _share(found.choices.index(value), 0, len(found.choices) - 1)
    assert isinstance(found, IntDistribution | FloatDistribution)
    if found.log:
        return _share(math.log(value), math.log(found.low), math.log(found.high))
    return _share(value, found.low, found.high)


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5


def _labels(trials: Sequence[FrozenTrial], name: str) -> list[tuple[float, str]]:
    """Heights on a setting's axis and what is there: all choices, or the ends of the range."""
    found = next(trial.distributions[name] for trial in trials if name in trial.distributions)
    if isinstance(found, CategoricalDistribution):
        last = len(found.choices) - 1
        return [(_share(place, 0, last), _spelled(choice)) for place, choice in enumerate(found.choices)]
    assert isinstance(found, IntDistribution | FloatDistribution)
    return [(0, _spelled(found.low)), (1, _spelled(found.high))]
