"""A cycle's run in MLflow: its settings, metrics and files, and the gates' decision."""

import json
import math
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from jobs.retraining.cycle_records import read_record
from training.vectors.run_files import REPORT, SUMMARY, is_finished, read_config, read_metrics, read_summary

LOGGED_TAG = "shardvec.logged"
ARTIFACTS = (
    *("plan.json", "prepare.log", "train.log"),
    *("run/config.json", "run/metrics.jsonl", f"run/{SUMMARY}", "run/loss.png", f"run/{REPORT}"),
)
OF_STEPS = ("loss", "tokens_per_s", "lr")
OF_EPOCHS = ("loss", "mean_loss", "tokens_per_s")
OF_HELDOUT = ("loss",)
METRICS_AT_ONCE, PARAMS_AT_ONCE = 1000, 100
"""MLflow's limits for one request."""
VALUE_LENGTH = 500
"""Longer settings are cut; plan.json has them in full."""


def log_cycle(client: Any, run: Any, cycle: Path) -> None:
    """Logs a cycle's settings, metrics and existing files. Idempotent.

    Every metric has the time at which the run began: MLflow stores a metric of equal step, time and value only once.
    """
    from mlflow.entities import Metric, Param

    mlflow_id = run.info.run_id
    if LOGGED_TAG not in run.data.tags:
        plan, trained = read_record(cycle / "plan.json") or {}, is_finished(cycle / "run")
        settings = {"plan": plan.get("settings"), "train": read_config(cycle / "run") if trained else None}
        params = (Param(name, value) for name, value in flat(settings) if name not in run.data.params)
        for chunk in _chunks(params, PARAMS_AT_ONCE):
            client.log_batch(mlflow_id, params=chunk)
        points = curves(cycle / "run") if trained else ()
        metrics = (Metric(name, value, run.info.start_time, step) for name, value, step in points)
        for chunk in _chunks(metrics, METRICS_AT_ONCE):
            client.log_batch(mlflow_id, metrics=chunk)
        summary = read_summary(cycle / "run") if trained else {}
        for name in ("dataset_id", "commit"):
            client.set_tag(mlflow_id, f"shardvec.{name}", str(summary.get(name)))
        client.set_tag(mlflow_id, LOGGED_TAG, "yes")
    for name in ARTIFACTS:
        if (cycle / name).is_file():
            client.log_artifact(mlflow_id, str(cycle / name), str(Path(name).parent) if "/" in name else None)


def log_decision(client: Any, run: Any, cycle: Path) -> None:
    """Logs the gates' decision, the last one if there were several. Idempotent."""
    from mlflow.entities import Metric

    file = cycle / "decision.json"
    decision = read_record(file)
    if decision is None:
        return
    time_ms = int(file.stat().st_mtime * 1000)
    values = [
        (f"gates/{_key(gate['name'])}{suffix}", gate.get(of))
        for gate in decision.get("gates", ())
        for suffix, of in (("", "value"), ("/champion", "champion_value"))
    ]
    metrics = [Metric(name, value, time_ms, 0) for name, value in values if _is_number(value)]
    client.log_batch(run.info.run_id, metrics=metrics)
    client.set_tag(run.info.run_id, "shardvec.decision", "accepted" if decision["accepted"] else "refused")
    client.log_artifact(run.info.run_id, str(file))


def curves(run: Path) -> Iterator[tuple[str, float, int]]:
    """(name, value, step) of steps and epochs in metrics.jsonl."""
    lines = read_metrics(run)
    named = (("step", "", OF_STEPS), ("epoch", "epoch/", OF_EPOCHS), ("heldout", "heldout/", OF_HELDOUT))
    for kind, prefix, names in named:
        yield from ((prefix + name, line[name], line["step"]) for line in lines[kind] for name in names)


def flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as (name with dots, text). Lists are one value, long values are cut, empty ones are left out."""
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{_key(name)}.")
        elif value is not None and value != "":
            yield f"{prefix}{_key(name)}", (value if isinstance(value, str) else json.dumps(value))[:VALUE_LENGTH]


def _key(name: str) -> str:
    """``name`` without characters that MLflow refuses."""
    return re.sub(r"[^\w.@ -]", "_", str(name)).replace("@", "_at_")[:100]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while chunk := list(islice(items, size)):
        yield chunk
