"""Resuming: how far a run is, which checkpoint it resumes from, and whether that checkpoint belongs to this run."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.errors import InputError, tell
from pipeline.shared.records import Count, RecordError, checked, record
from training.model.state import Slot, check_state
from training.model.steps import Step
from training.run import Position, Run
from training.runs.checkpoint import (
    OF_THE_FILE,
    RECORD,
    STATE,
    CheckpointError,
    damaged,
    newest,
    read,
    read_record,
    read_state,
    state_file,
    steps,
)
from training.runs.metrics import Evaluation, Moment
from training.runs.run_folder import active_folder
from training.runs.warm_start import KEPT, Start, StartRecord
from training.train_config import AUTO, CHUNK, NEWEST, TrainConfig


@dataclass
class Progress:
    """How far a run is: ``step`` steps of epoch ``epoch`` are done."""

    epoch: Count = 0
    step: Count = 0
    done: Count = 0
    """Steps of the run."""
    examples: Count = 0
    """Examples that the learning rate depends on. Within an epoch, full batches are counted."""
    epoch_begin: Moment = field(default_factory=Moment)
    last_line: Moment = field(default_factory=Moment)
    """When the last line of kind "step" was written."""
    now: Moment = field(default_factory=Moment)
    saved: Count = 0
    """Steps that were done at the last checkpoint."""
    evaluated: Evaluation | None = None
    """The last evaluation; None before the first, or if nothing is held out."""
    best: Evaluation | None = None
    """The one of the lowest loss, the first of these."""
    since_best: Count = 0
    """Evaluations since then."""

    def add(self, num_steps: int, global_batch: int) -> None:
        """Counts ``num_steps`` more steps of the epoch."""
        self.step += num_steps
        self.done += num_steps
        self.examples += num_steps * global_batch

    def end_epoch(self) -> None:
        """Begins the next epoch, and corrects ``examples``, since batches may hold empty rows."""
        self.epoch, self.step = self.epoch + 1, 0
        self.examples, self.epoch_begin = self.now.examples, self.now

    def is_due(self, every: int | None, last: int) -> bool:
        """Whether a multiple of ``every`` steps has passed since ``last`` steps were done."""
        return every is not None and self.done // every > last // every

    def evaluate(self, loss: float) -> None:
        """Notes the held-out loss of this step."""
        self.evaluated = Evaluation(self.epoch, self.done, loss)
        if self.best is None or loss < self.best.loss:
            self.best, self.since_best = self.evaluated, 0
        else:
            self.since_best += 1

    @property
    def last_evaluated(self) -> int:
        """Steps that were done at the last evaluation."""
        return self.evaluated.step if self.evaluated else 0

    def is_out_of(self, patience: int | None) -> bool:
        """Whether the last ``patience`` evaluations found no lower loss."""
        return patience is not None and self.since_best >= patience

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.step, self.done)


@record
class Settings:
    """Settings that change the numbers. The others change nothing, or only how sums are rounded."""

    global_batch: int
    optimizer: str
    lr: float
    dim: int
    sync_every: int
    seed: int
    lanes: int
    reader: str
    epochs: int
    freeze_epochs: int = 0
    rows_between_meetings: int | None = None


FIXED = tuple(setting.name for setting in fields(Settings) if setting.name != "epochs")
"""Settings that a resumed run may not change. It may train for more epochs."""


@record
class RunRecord:
    """What a checkpoint holds beside the tensors."""

    dataset_id: str
    settings: Settings
    world_size: Annotated[int, Field(ge=1)]
    threads: Annotated[int, Field(ge=1)]
    kernel: str
    start: StartRecord | None
    progress: Progress
    metrics_bytes: Count
    sharding: Literal["replicated", "columns"] = "replicated"
    group_size: Annotated[int | None, Field(ge=1)] = None
    """How many ranks shared a copy of the tables; None: all of them, if they shared columns at all."""
    deterministic: bool = False


@dataclass(frozen=True)
class Resumed:
    """The checkpoint after ``step`` steps of the run in ``folder``, from which this run goes on."""

    folder: Path
    step: int
    record: RunRecord
    state: dict[str, Tensor]

    def start(self, num_words: int) -> Start | None:
        """The start of the run that wrote the checkpoint; without kept words if no row is frozen any more."""
        if self.record.start is None:
            return None
        kept_K = self.state.pop(KEPT, torch.zeros(0, dtype=torch.int64)).clone()
        with self.checking(STATE):
            check_state({KEPT: kept_K}, {KEPT: Slot((kept_K.numel(),), torch.int64, 1, num_words - 1)})
        return Start(self.record.start, kept_K)

    def restore(self, step: Step) -> None:
        """Restores the step. Raises CheckpointError unless the tensors are what such a step saves."""
        with self.checking(STATE):
            step.load_state_dict(self.state, self.step)

    @contextmanager
    def checking(self, file: str = RECORD) -> Iterator[None]:
        """Raises a ValueError of the block as CheckpointError about this file of the checkpoint."""
        try:
            yield
        except ValueError as error:
            raise damaged(self.folder, self.step, file, error) from None


def record_of(
    progress: Progress, run: Run, execution: dict[str, Any], start: Start | None, metrics_bytes: int
) -> dict[str, Any]:
    """A RunRecord as JSON. ``execution`` is ranks, threads and kernel."""
    return {
        "dataset_id": run.manifest.dataset_id,
        "settings": {name: getattr(run.config, name) for name in (*FIXED, "epochs")},
        **execution,
        "deterministic": run.config.deterministic,
        "start": asdict(start.record) if start else None,
        "progress": asdict(progress),
        "metrics_bytes": metrics_bytes,
    }


def read_checkpoint(run: Run) -> Resumed | None:
    """The checkpoint to resume from, on every rank; None for a new run. Rank 0 checks it; all map it into memory."""
    config, world = run.config, run.world
    if config.resume is None:
        return None
    folder = active_folder(config.output)
    found = None
    for step in candidates(folder, config.resume) if world.is_first else []:
        try:
            found = read(folder, step)
            checked_record(folder, step, found.record)
            break
        except CheckpointError as error:
            if config.resume != AUTO or not any(earlier < step for earlier in steps(folder)):
                raise
            tell(f"warning: {error}")
    elsewhere = world.all_reduce_max(max(steps(folder), default=0))
    body, _ = world.broadcast(found.record if found else None, {})
    if body is None and elsewhere:
        raise InputError(
            f"--resume {config.resume}: {folder} has no checkpoint on the machine of rank 0, but one of step "
            f"{elsewhere} on another; share the folder between the machines, or let rank 0 run there"
        )
    if body is None:
        return None
    with world.everywhere(state_file(folder, body["step"])) as file:
        state = read_state(folder, body["step"], file)
    return Resumed(folder, body["step"], checked_record(folder, body["step"], body), state)


def checked_record(run: Path, step: int, body: dict[str, Any]) -> RunRecord:
    """The record of the checkpoint after ``step`` steps. Raises CheckpointError unless it is whole and consistent."""
    try:
        own = {name: value for name, value in body.items() if name not in OF_THE_FILE}
        record = checked(own, RunRecord)
        if not record.progress.saved == record.progress.done == body["step"] == step:
            raise RecordError(f"found progress.done {record.progress.done} and step {body['step']}, expected {step}")
    except RecordError as error:
        raise damaged(run, step, RECORD, error) from None
    return record


def candidates(run: Path, resume: str | int | None) -> list[int]:
    """The steps of the checkpoints of ``run`` to try, in order; empty if there is nothing to resume from.

    Raises InputError if the checkpoint that ``resume`` names is missing.
    """
    present = steps(run)
    if resume == AUTO:
        try:
            last = newest(run)
        except InputError:
            last = present[-1] if present else None  # `latest` is damaged, the checkpoint perhaps not
        return [] if last is None else [last, *(step for step in reversed(present) if step < last)]
    wanted = newest(run) if resume == NEWEST else resume
    if wanted is None:
        raise InputError(f"--resume: {run} holds no checkpoint; leave it out to begin, or say --resume auto")
    assert isinstance(wanted, int)
    if resume != NEWEST and wanted not in present:
        found = ", ".join(map(str, present)) or "none"
        raise InputError(f"--resume {wanted}: {run} holds no such checkpoint; there are: {found}")
    return [wanted]


def check_same_run(run: Path, config: TrainConfig, manifest: Manifest, device: str, start: Start | None) -> None:
    """Raises InputError unless the checkpoint to resume from was written with these settings, on this dataset, and, if
    --init-from is given, by a run that began with these vectors.
    """
    for step in candidates(run, config.resume):
        try:
            record = checked_record(run, step, read_record(run, step))
        except InputError:
            if config.resume != AUTO:
                raise
            continue
        _check(record, run, config, manifest, device, start)
        return
    if config.freeze_epochs and start is None:
        raise InputError.flag("freeze_epochs", config.freeze_epochs, "--init-from too: there is no checkpoint")


def _check(
    record: RunRecord, run: Path, config: TrainConfig, manifest: Manifest, device: str, start: Start | None
) -> None:
    if record.dataset_id != manifest.dataset_id:
        raise InputError(
            f"--data {config.data}: found dataset {manifest.dataset_id}, expected {record.dataset_id:.60}, which "
            f"{run} is trained on; name that one, or begin anew with another --output"
        )
    began_with = record.start.xxh3 if record.start else None
    if start and start.record.xxh3 != began_with:
        expected = f"vectors {began_with:.60}" if began_with else "none"
        raise InputError(
            f"--init-from {config.init_from}: found vectors {start.record.xxh3}, expected {expected}, which {run} "
            f"began with; leave it out to go on, since the checkpoint holds all that is needed, or begin anew with "
            f"another --output"
        )
    before = {**asdict(record.settings), "kernel": record.kernel}
    now = {**{name: getattr(config, name) for name in FIXED}, "kernel": config.kernel_on(device)}
    if config.lr_decays or config.epochs < record.progress.epoch:
        now["epochs"] = config.epochs
    others = [name for name in now if now[name] != before[name]]
    if others:
        remedy = f"say {_flags(before, others)}, or begin anew with another --output"
        raise InputError(f"--resume: found {_flags(now, others)}, but {run} is trained with other settings; {remedy}")


def differences(record: RunRecord, execution: dict[str, Any], config: TrainConfig, any_world: bool) -> Iterator[str]:
    """Messages on a number of ranks or threads that has changed. Raises InputError if the bits must not change."""
    before, now = _bits_of(asdict(record)), _bits_of({**execution, "deterministic": config.deterministic})
    names = [name for name in now if now[name] != before[name]]
    if not names or (any_world and config.reader == "arrow" and names == ["copies"]):
        return
    replicated = record.sharding == execution["sharding"] == "replicated"
    by_thread = replicated and record.deterministic == config.deterministic
    words = {
        "copies": "ranks:" if replicated else "copies of the tables:",
        "parts": "threads a rank:" if by_thread else "parts of their columns:",
    }
    changes = " and ".join(f"{words[name]} {now[name]} instead of {before[name]}" for name in names)
    if config.reader == "petastorm" and "copies" in names and record.progress.step:
        raise InputError(
            f"--resume: found {changes}, in mid-epoch, whose order depends on it with --reader petastorm; take as many"
        )
    if config.deterministic:
        raise InputError(
            f"--resume: found {changes}, which changes the bits; take as many, or leave --deterministic out"
        )
    if config.in_place and "copies" in names:
        yield f"{changes}: the average is another, so the vectors will be others, about as good"
    else:
        yield f"{changes}: the vectors will be the same but for rounding"


def _bits_of(execution: dict[str, Any]) -> dict[str, int | str]:
    """What the bits depend on: how many copies of the tables are trained, and in how many parts of columns each."""
    world_size, threads = execution["world_size"], execution["threads"]
    group_size = execution["group_size"] or (world_size if execution["sharding"] == "columns" else 1)
    parts: int | str = group_size * threads
    if execution["deterministic"] and execution["kernel"] == "cpu":
        parts = f"{CHUNK} columns each"
    return {"copies": world_size // group_size, "parts": parts}


def _flags(values: dict[str, Any], names: list[str]) -> str:
    return " ".join(f"--{name.replace('_', '-')} {values[name]!s:.60}" for name in names)
