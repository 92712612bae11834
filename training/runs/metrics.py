"""What a run reports while it trains: metrics.jsonl, and a progress bar or plain lines."""

import errno
import json
import math
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pipeline.shared.cli import QUIET, VERBOSE
from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors
from pipeline.shared.records import Count, RecordError, Seconds
from training.distributed import World
from training.runs.tensorboard import Board
from training.vectors.run_files import METRICS, Lines, parsed_metrics

FIRST_LINE_S, LINE_EVERY_S = 5, 60
"""When a log without a bar first reports progress, and how often after that."""


@dataclass(frozen=True)
class Stretch:
    """What happened between two moments of a run, over all ranks. An example is a center; the book says token."""

    loss: float
    """Mean over the examples."""
    examples: int
    seconds: float
    tokens_per_s: float
    wait_share: float
    """Share of the time that ranks spent waiting for batches."""


@dataclass(frozen=True)
class Moment:
    """Sums since the run began, over all ranks, including those before an interruption but not the time between."""

    loss: float = 0.0
    examples: Count = 0
    wait_s: Seconds = 0.0
    """Mean over the ranks."""
    clock_s: Seconds = 0.0
    finite: bool = True
    """Whether the loss and every rank's tables are finite."""

    def since(self, earlier: "Moment") -> Stretch:
        """What happened after ``earlier``; since ``Moment()``, the whole run."""
        examples, seconds = self.examples - earlier.examples, self.clock_s - earlier.clock_s
        return Stretch(
            loss=(self.loss - earlier.loss) / max(1, examples),
            examples=examples,
            seconds=round(seconds, 3),
            tokens_per_s=round(examples / max(seconds, 1e-9), 1),
            wait_share=round((self.wait_s - earlier.wait_s) / max(seconds, 1e-9), 4),
        )


@dataclass(frozen=True)
class Evaluation:
    """The loss of the held-out examples in epoch ``epoch``, after ``step`` steps of the run."""

    epoch: Count
    step: Count
    loss: float


class Meter:
    """Sums this rank's losses on its device; nothing is transferred until ``moment`` is called."""

    def __init__(self, device: torch.device, world: World, begin: Moment | None = None, counts: bool = True):
        """Continues from ``begin`` once all ranks are here. A collective call, as ``moment`` is.

        A rank that has the same rows as another one does not count them (``counts``).
        """
        self._counts = counts
        self._world, self._last = world, begin or Moment()
        self._loss_and_examples = torch.zeros(2, dtype=torch.float64, device=device)
        self._wait_s = 0.0
        world.all_reduce(torch.zeros(1, device=device)).item()
        self._started = time.perf_counter() - self._last.clock_s

    def add(self, losses_B: Tensor, num_contexts_B: Tensor, wait_s: float) -> None:
        """Adds a batch's losses, 0 for an empty row, and the seconds that this rank waited for the batch."""
        self._loss_and_examples[0] += losses_B.sum(dtype=torch.float64)
        if self._counts:
            self._loss_and_examples[1] += (num_contexts_B > 0).sum()
        self._wait_s += wait_s

    def moment(self, tables_finite: bool = True) -> Moment:
        """The sums over all ranks, the same on each. A collective call: every rank makes it at the same step."""
        own = self._loss_and_examples.new_tensor([self._wait_s, not tables_finite])
        loss, examples, waited, broken = self._world.all_reduce(torch.cat([self._loss_and_examples, own])).tolist()
        self._loss_and_examples.zero_()
        self._wait_s = 0.0
        self._last = Moment(
            loss=self._last.loss + loss,
            examples=self._last.examples + int(examples),
            wait_s=self._last.wait_s + waited / self._world.world_size,
            clock_s=time.perf_counter() - self._started,
            finite=math.isfinite(loss) and not broken,
        )
        return self._last


class Metrics:
    """Writes metrics.jsonl and reports the run's progress. For rank 0."""

    def __init__(
        self,
        folder: Path,
        num_steps: int,
        num_epochs: int,
        done: int = 0,
        num_bytes: int = 0,
        verbosity: int = 0,
        board: Board | None = None,
    ):
        """``num_steps`` are the whole run's; the file's first ``num_bytes`` report the first ``done`` of them.

        Raises InputError when the file is shorter.
        """
        self.epochs: Lines = []
        self._num_epochs, self._board = num_epochs, board
        path = folder / METRICS
        with os_errors(f"{path}: cannot be opened", "bring back what training wrote, or begin again with --overwrite"):
            self._file = path.open("r+b" if num_bytes else "wb", buffering=0)
        size = os.fstat(self._file.fileno()).st_size
        if size < num_bytes:
            raise InputError(f"{path}: {size} bytes, the checkpoint was written after {num_bytes}; bring it back")
        try:
            self.epochs = parsed_metrics(self._file.read(num_bytes) if num_bytes else b"")["epoch"]
        except RecordError as error:
            raise InputError(f"{path}: {error}; bring back what training wrote") from None
        self._file.truncate(num_bytes)
        tqdm.set_lock(threading.RLock())  # its own is shared between processes, and a rank that is ended leaks it
        self._verbosity = verbosity
        self._num_steps, self._last = num_steps, done
        self._due = time.perf_counter() + FIRST_LINE_S
        disable = verbosity == QUIET or not sys.stderr.isatty()
        self._bar = tqdm(total=num_steps, initial=done, unit="step", disable=disable, leave=False)

    @property
    def num_bytes(self) -> int:
        """The length of metrics.jsonl."""
        return self._file.tell()

    def step(self, epoch: int, step: int, stretch: Stretch, lr: float) -> None:
        """A line of kind "step"; ``step`` counts the finished steps of the run, ``stretch`` is since the last line."""
        speed = {"tokens_per_s": stretch.tokens_per_s, "wait_share": stretch.wait_share}
        self._write("step", epoch=epoch, step=step, lr=lr, loss=stretch.loss, **speed)
        how = f"epoch {epoch + 1}, loss {stretch.loss:.4f}, {stretch.tokens_per_s:,.0f} tokens/s"
        self._bar.set_postfix_str(how)
        self._bar.update(step - self._bar.n)
        left_s = stretch.seconds / (step - self._last) * (self._num_steps - step)
        self._last = step
        if self._verbosity == VERBOSE or (self._bar.disable and time.perf_counter() >= self._due):
            self._due = time.perf_counter() + LINE_EVERY_S
            self._say(f"step {step:,}/{self._num_steps:,}: {how}, about {tqdm.format_interval(left_s)} left")

    def epoch(self, epoch: int, step: int, stretch: Stretch, mean_loss: float) -> None:
        """A line of kind "epoch"; ``mean_loss`` is the run's so far."""
        self._write("epoch", epoch=epoch, step=step, mean_loss=mean_loss, **asdict(stretch))
        self._say(
            f"epoch {epoch + 1}/{self._num_epochs}: loss {stretch.loss:.4f}, {stretch.examples:,} examples "
            f"in {stretch.seconds:.1f} s, {stretch.tokens_per_s:,.0f} tokens/s"
        )

    def heldout(self, evaluated: Evaluation, best: Evaluation) -> None:
        """A line of kind "heldout"."""
        self._write("heldout", **asdict(evaluated))
        lowest = "the lowest so far"
        if best != evaluated:
            lowest = f"the lowest was {best.loss:.4f}, after step {best.step:,} (epoch {best.epoch + 1})"
        self._say(f"held-out loss {evaluated.loss:.4f} after step {evaluated.step:,}: {lowest}")

    def close(self) -> None:
        """Idempotent."""
        self._bar.close()
        self._file.close()
        if self._board:
            self._board.close()

    def _say(self, line: str) -> None:
        """Prints above the bar, if there is one, without buffering, since logs are watched."""
        if self._verbosity != QUIET:
            with tqdm.external_write_mode(sys.stdout):
                print(line, flush=True)

    def _write(self, kind: str, **record: Any) -> None:
        line = {"kind": kind, **record}
        text = f"{json.dumps(line)}\n".encode()
        with os_errors(f"{self._file.name}: cannot be written", "make room and go on with --resume"):
            if self._file.write(text) < len(text):  # a full disk takes a part without raising
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if self._board:
            self._board.add(line)
        if kind == "epoch":
            self.epochs.append(line)
