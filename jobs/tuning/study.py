"""The study: Optuna chooses the settings of trials by what earlier ones gave, until trials or time are used up.

It is kept in STUDY/study.db, which optuna-dashboard shows, too. A killed study goes on: what was training begins again.
"""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import DatabaseError

from jobs.children import check_ending
from jobs.tuning.judges import Judge
from jobs.tuning.search_space import SECTIONS, drawn
from jobs.tuning.trials import ANEW, POLL_S, Bench, Trial, TrialFailed
from jobs.tuning.tune_config import TuneConfig
from pipeline.pipeline_config import PRESETS
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.randomness import Purpose, stream

STORAGE, STUDY = "study.db", "study"
OF_THE_CORPUS = ("tokenizer", "lowercase", "epochs", "holdout", "num_shards", "max_sentence_length", "seed")
"""Settings of prepare that the usual settings share with the study's."""
OF_THE_MACHINE = ("threads", "nproc", "deterministic", "seed", "device")
"""Settings of training that they share."""

FINISHED = TrialState.COMPLETE, TrialState.PRUNED
FAILED, REPEATS = "failed", "repeats"
"""Attributes of Optuna's trials: why there is no number, and which interrupted trial is repeated."""


@dataclass(frozen=True)
class Usual:
    """Settings that people take who do not search."""

    name: str
    prepare: dict[str, Any]
    train: dict[str, Any]


def usual_settings(config: TuneConfig) -> list[Usual]:
    """Each preset with the trainer's defaults; of a study that searches training alone, these defaults."""
    prepare, train = config.prepare, config.train
    default = {name: value for name, value in train.items() if name in OF_THE_MACHINE}
    if config.judge.by == "heldout_loss":
        return [Usual("defaults", prepare, default)]
    shared = {name: value for name, value in prepare.items() if name in OF_THE_CORPUS}
    return [Usual(f"preset-{preset}", {**shared, "preset": preset}, default) for preset in PRESETS]


def opened_study(judge: Judge, folder: Path) -> optuna.Study:
    """The study in a folder, new or begun before. Trials that were interrupted are to be repeated first."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        study = optuna.create_study(
            storage=f"sqlite:///{folder / STORAGE}",
            study_name=STUDY,
            direction="maximize" if judge.higher_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(n_warmup_steps=1),
            load_if_exists=True,
        )
    except (DatabaseError, optuna.exceptions.StorageInternalError, RuntimeError) as error:
        reason = one_line(getattr(error, "orig", error))
        raise InputError(f"{folder / STORAGE}: cannot be read ({reason}); bring it back, or {ANEW}") from None
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        study.tell(trial.number, state=TrialState.FAIL)
        if trial.params:
            study.enqueue_trial(trial.params, user_attrs={REPEATS: trial.number})
    return study


def judge_usual(config: TuneConfig, bench: Bench) -> None:
    """Runs the usual settings, unless that is done."""
    for usual in usual_settings(config):
        if bench.record(usual.name) is None:
            try:
                trial = bench.begun(usual.name, usual.prepare, usual.train)
                try:
                    trial.judged(with_baselines=True)
                except BaseException:
                    trial.stopped()
                    raise
            except TrialFailed as failed:
                print(f"{usual.name}: {failed}", flush=True)
                continue
        record = bench.record(usual.name)
        assert record
        print(f"{usual.name}: {bench.judge.name} {record['value']:.4f}, in {record['seconds']:.0f} s", flush=True)


def search(config: TuneConfig, bench: Bench, study: optuna.Study, deadline: float, num_jobs: int) -> None:
    """Runs trials, ``num_jobs`` at once, until there are enough; begins none after ``deadline``.

    Only training runs side by side: one trial at a time is prepared, by Spark on all cores, or judged.
    """
    running: list[_Running] = []
    try:
        while True:
            while len(running) < num_jobs and time.monotonic() < deadline and _num_begun(study) < config.trials:
                asked = _asked(study, config)
                try:
                    running.append(_Running(asked, _begun(config, bench, asked)))
                except TrialFailed as failed:
                    _tell_failed(study, asked, failed)
            if not running:
                return
            check_ending()
            time.sleep(POLL_S)
            running = [each for each in running if not _is_over(study, each)]
    except BaseException:
        for each in running:
            each.trial.stopped()
        raise


@dataclass
class _Running:
    asked: optuna.Trial
    trial: Trial
    num_reported: int = 0
    """How many held-out losses Optuna knows."""


def _num_begun(study: optuna.Study) -> int:
    return len(study.get_trials(deepcopy=False, states=(*FINISHED, TrialState.RUNNING)))


def _asked(study: optuna.Study, config: TuneConfig) -> optuna.Trial:
    """The next trial. Its settings follow from the seed and from what earlier trials gave: a study that was killed and
    goes on has the same trials as one that was not, if they run one after another."""
    number = len(study.get_trials(deepcopy=False, states=FINISHED))
    with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
        seed = stream(config.seed, Purpose.STUDY, 3, number) & 0xFFFFFFFF
        study.sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
    return study.ask()


def _begun(config: TuneConfig, bench: Bench, asked: optuna.Trial) -> Trial:
    found = drawn(asked, config.space)
    prepare, train = ({**config.fixed[section], **found[section]} for section in SECTIONS)
    return bench.begun(f"{asked.number:04}", prepare, train)


def _is_over(study: optuna.Study, running: _Running) -> bool:
    """Whether a trial has ended, or was ended since its held-out losses are above the median of others."""
    asked, trial = running.asked, running.trial
    if not trial.bench.judge.higher_is_better:
        losses = trial.heldout_losses()
        for number in range(running.num_reported, len(losses)):
            asked.report(losses[number], number)
        running.num_reported = len(losses)
        if trial.is_training and asked.should_prune():
            trial.stopped()
            study.tell(asked, state=TrialState.PRUNED)
            print(f"trial {asked.number}: ended early, {_described(asked)}", flush=True)
            return True
    if trial.is_training:
        return False
    try:
        value = trial.judged()
    except TrialFailed as failed:
        _tell_failed(study, asked, failed)
        return True
    study.tell(asked, value)
    best = "" if study.best_trial.number == asked.number else f", best {study.best_value:.4f}"
    print(f"trial {asked.number}: {value:.4f}{best}, {_described(asked)}", flush=True)
    return True


def _tell_failed(study: optuna.Study, asked: optuna.Trial, failed: TrialFailed) -> None:
    """Pruned and not failed for Optuna: the sampler then avoids such settings."""
    asked.set_user_attr(FAILED, str(failed))
    study.tell(asked, state=TrialState.PRUNED)
    print(f"trial {asked.number}: failed, {failed}; {_described(asked)}", flush=True)


def _described(asked: optuna.Trial) -> str:
    named = (f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in _params(asked))
    return ", ".join(named)


def _params(asked: optuna.Trial) -> list[tuple[str, Any]]:
    return sorted(asked.params.items())


def check_any(study: optuna.Study) -> None:
    """Raises InputError if no trial has a number."""
    if study.get_trials(deepcopy=False, states=[TrialState.COMPLETE]):
        return
    found = [trial.user_attrs[FAILED] for trial in study.get_trials(deepcopy=False) if FAILED in trial.user_attrs]
    reason = f"; the last one: {found[-1]}" if found else ", since the budget ended before the first one"
    raise InputError(f"search: found no trial with a result{reason}; expected one or more")
