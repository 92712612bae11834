"""Plans a cycle: the state of the corpus, checks before anything runs, and the commands of prepare and train."""

import hashlib
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pyspark.sql import SparkSession

from jobs.children import ROOT, flags
from jobs.retraining.cycle_records import card
from jobs.retraining.retrain_config import RetrainConfig
from jobs.retraining.workspace import DEMO, Workspace
from pipeline.pipeline_config import Source
from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors
from pipeline.shared.records import digest
from pipeline.shared.redact import HIDDEN, redacted_command
from pipeline.shared.settings import fields_of
from pipeline.shared.storage import Location
from pipeline.tables.sources import corpus_of as corpus_of_source
from pipeline.text.corpus import Corpus, demo
from training.judging.questions import read_analogies, read_pairs
from training.train_config import TrainConfig

State = list[dict[str, Any]]


def corpus_of(config: RetrainConfig, workspace: Workspace) -> Corpus:
    """The corpus as it is now. Raises InputError if it is missing or empty."""
    if config.corpus.demo:
        return demo(workspace.folder / DEMO)
    return corpus_of_source(config.corpus)


def state_of(config: RetrainConfig, workspace: Workspace, session: Callable[[], SparkSession]) -> State:
    """One entry for each file of the corpus: its path, its size, and its time or the digest of its content.

    Of a Delta or Iceberg table, its version instead. Equal states mean an unchanged corpus. Spark lists remote files
    and those of tables in its catalog; ``session`` is called only for them.
    """
    found = [dict(entry) for entry in corpus_of(config, workspace).state(session)]
    if config.corpus.changed_by == "content":
        for entry in found:
            if "path" in entry:
                del entry["mtime_ns"]
                entry["sha256"] = _digest_of(str(entry["path"]))
    return found


def _digest_of(path: str) -> str:
    """The SHA-256 of a file. Raises InputError if the file cannot be read."""
    with (
        os_errors(f"corpus: {path} cannot be read", "fix that, or set changed_by: times"),
        Location.of(path).open() as file,
    ):
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_id_of(state: State, config: RetrainConfig) -> str:
    """The id of a cycle: equal for equal corpora and settings."""
    return digest([state, settings_of(config)])[:16]


def settings_of(config: RetrainConfig) -> dict[str, Any]:
    """The settings that change the vectors, without secrets: a digest of a short one would reveal it."""
    return {**config.numbers, "torchrun": redacted_command(config.torchrun)}


def size_of(state: State) -> tuple[int, str]:
    """The size of a corpus and its unit: the rows of a table whose log counts them; else the bytes of its files."""
    unit = "rows" if any("rows" in entry for entry in state) else "bytes"
    return sum(int(entry.get(unit, 0)) for entry in state), unit


def check_grown(state: State, config: RetrainConfig, workspace: Workspace, current: Path | None) -> str:
    """Describes the corpus, compared with that of the published vectors. Raises InputError if it has shrunk."""
    size, unit = size_of(state)
    versions = [f"version {entry['version']}" for entry in state if "version" in entry]
    files = f"{sum('path' in entry for entry in state):,} file(s)"
    found = f"{', '.join(versions) or files}, {size:,} {unit}"
    plan = workspace.cycle(card(current)["run_id"]).read("plan") if current else None
    if current is None or plan is None:
        return found
    before, unit_before = size_of(plan["source_state"])
    gone = sorted({entry["path"] for entry in plan["source_state"] if "path" in entry} - {e.get("path") for e in state})
    missing = f"; {len(gone)} of its files are gone ({gone[0]})" if gone else ""
    if not before or unit != unit_before:
        return found
    if size < before and not config.corpus.may_shrink:
        raise InputError(
            f"corpus: found {found}, expected the {before:,} {unit} of version {current.name} or more{missing}; "
            f"restore the missing files, or set may_shrink: true"
        )
    return f"{found}, {size / before - 1:+.1%} since version {current.name}{missing}"


def check_dim(config: RetrainConfig, current: Path | None) -> None:
    """Raises InputError if the new vectors would have another dimension than the published ones."""
    found = config.train.get("dim", fields_of(TrainConfig)["dim"].default)
    if current is not None and found != (published := card(current)["dim"]):
        raise InputError(
            f"train.dim: found {found}, expected the {published} of version {current.name}, with which new vectors are "
            f"aligned; keep it, or begin a new workspace"
        )


def check_gates(config: RetrainConfig) -> None:
    """Raises InputError if a file of the gates cannot be read: now, not after hours of training."""
    for file in config.gates.pairs:
        read_pairs(file)
    if config.gates.analogies:
        read_analogies(config.gates.analogies)


def prepare_command(config: RetrainConfig, workspace: Workspace, dataset: Path) -> list[str]:
    """The command of `prepare`: spark-submit with every setting of the sampling."""
    source = config.corpus
    inputs = [str(workspace.folder / DEMO)] if source.demo else source.input
    where = ["--input", *inputs] if inputs else []
    columns = flags({name: getattr(source, name) for name in fields_of(Source) if name != "input"})
    command = ["spark-submit", *config.spark_submit, str(ROOT / "jobs" / "prepare.py")]
    return [*command, *where, "--output", str(dataset), *columns, *flags(asdict(config.prepare))]


def train_command(config: RetrainConfig, dataset: Path, run: Path, current: Path | None) -> list[str]:
    """The command of `train`: the trainer with the file's settings, starting from published vectors if there are any.

    The trainer starts ``nproc`` processes itself: the stock torchrun refuses ``--nproc``, even after the script's name.
    torchrun starts the trainer only if the config has arguments for torchrun.
    """
    settings = dict(config.train)
    if current is not None and (warm := config.warm_start).enabled:
        settings |= {**warm.changes, "init_from": str(current)}
    launcher = ["torchrun", *config.torchrun] if config.torchrun else [sys.executable]
    command = [*launcher, str(ROOT / "training" / "train.py"), "--data", str(dataset), "--output", str(run)]
    return [*command, *flags(settings), "--resume", "auto"]


def with_secrets(planned: list[str], command: list[str]) -> list[str]:
    """A planned command with its secrets, which the plan does not keep: they come from the config's ``command``.

    Raises InputError if they cannot, because the config has changed since the plan.
    """
    if redacted_command(command) == planned:
        return command
    if any(HIDDEN in argument for argument in planned):
        raise InputError(
            f"{planned[0]}: found other arguments than in the plan, which keeps no secrets, expected the same; "
            f"run `plan` again first"
        )
    return planned
