"""What a study found: its best settings beside the usual ones, on the test's sequences, which chose nothing."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna

from jobs.config_sections import CorpusSettings
from jobs.retraining.retrain_config import config_of
from jobs.tuning.judges import Estimate, Judge, estimate
from jobs.tuning.study import usual_settings
from jobs.tuning.trials import ANEW, TESTED, Bench
from jobs.tuning.tune_config import TuneConfig
from pipeline.shared.errors import InputError
from pipeline.shared.files import write
from pipeline.shared.settings import fields_of

BEST, RESULTS = "best.yaml", "results.json"


@dataclass(frozen=True)
class Compared:
    """Settings, or what needs none, on the test's queries."""

    name: str
    estimate: Estimate
    tuned_minus_this: Estimate | None
    """Resampled query by query; None of the tuned ones themselves."""
    others: dict[str, float]
    """Other numbers of the judge."""
    prepare: dict[str, Any] | None = None
    train: dict[str, Any] | None = None


def compared(config: TuneConfig, bench: Bench, study: optuna.Study) -> list[Compared]:
    """The best trial first."""
    best = f"{study.best_trial.number:04}"
    rows, record = bench.rows(best), bench.record(best)
    if record is None:
        raise InputError(f"{bench.folder}: found no record of trial {best}, the best, expected its trial.json; {ANEW}")
    judge = bench.judge
    found = [Compared("tuned", estimate(judge, rows), None, judge.others(rows), record["prepare"], record["train"])]
    done = [usual.name for usual in usual_settings(config) if bench.record(usual.name)]
    pairs = [(name, name, TESTED) for name in done] + [(name, done[-1], name) for name in judge.baselines if done]
    for name, folder, what in pairs:
        others = bench.rows(folder, what)
        about = (bench.record(folder) or {}) if what == TESTED else {}
        found.append(
            Compared(
                name,
                estimate(judge, others),
                estimate(judge, rows, others),
                judge.others(others),
                about.get("prepare"),
                about.get("train"),
            )
        )
    return found


def table(found: list[Compared], judge: Judge) -> str:
    """For people, in a terminal."""
    width = max(len(each.name) for each in found)
    lines = [f"{judge.name} on the test, with 95 % intervals; then that of tuned minus this:"]
    for each in found:
        difference = f"  {spelled(each.tuned_minus_this, '+')}" if each.tuned_minus_this else ""
        lines.append(f"  {each.name.ljust(width)}  {spelled(each.estimate)}{difference}")
    return "\n".join(lines)


def spelled(found: Estimate, sign: str = "") -> str:
    return f"{found.value:{sign}.4f} ({found.low:{sign}.4f} to {found.high:{sign}.4f})"


def write_best(config: TuneConfig, best: Compared) -> Path:
    """STUDY/best.yaml: a config of jobs/retrain.py with the best settings, for the whole corpus."""
    import yaml

    source = asdict(config.corpus)
    given = {name: value for name, value in source.items() if value != fields_of(CorpusSettings)[name].default}
    content = {
        "name": config.name,
        "workspace": str(config.output.parent / f"retrain-{config.name}"),
        "corpus": {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()},
        "prepare": best.prepare,
        "train": best.train,
    }
    config_of(content)
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    path = config.output / BEST
    write(path, f"# The best settings of {config.output}: python jobs/retrain.py run --config {path}\n{text}".encode())
    return path
