"""TrainConfig: every setting of a run, checked once, stored in the run's folder."""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import InputError, Parser, path

OPTIMIZERS = {"adam": 0.002, "sgd": 0.1, "adagrad": 0.05}
"""Optimizers, and the learning rate each has when none is given."""


LIMITS = {
    "epochs": 100_000,
    "global_batch": 1 << 24,
    "dim": 1 << 14,
    "lanes": 1 << 12,
    "threads": 1 << 10,
    "log_every": 1 << 30,
}
"""The largest value of each: beyond any use, and below what would exhaust a machine."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does. The same config on the same dataset gives the same global batches on any world."""

    data: Path = Path("data/ptb")
    """The dataset, a folder with manifest.json."""

    output: Path = Path("runs/ptb")
    """The run's folder."""

    epochs: int = 5

    global_batch: int = 512
    """Rows of a step over all ranks; divisible by ``lanes``."""

    optimizer: str = "adam"

    lr: float | None = None
    """Learning rate; None: the optimizer's usual one, ``OPTIMIZERS``."""

    dim: int = 100
    """D, length of a vector."""

    sync_every: int = 1
    """Gradients are averaged over the ranks every step; nothing else is possible yet."""

    seed: int = 0
    """Of the initial tables and of the order of rows."""

    lanes: int = 16
    """Equal ranges into which an epoch is cut; the number of ranks divides it."""

    device: str = "auto"
    """auto, cpu or cuda; auto takes cuda where there is one."""

    threads: int | None = None
    """CPU threads a rank; None: cores / ranks on this machine."""

    log_every: int = 50
    """Steps between two step lines of metrics.jsonl."""

    overwrite: bool = False
    """Replace a finished run."""

    def __post_init__(self) -> None:
        for name in LIMITS:
            found = getattr(self, name)
            if found is not None and not 1 <= found <= LIMITS[name]:
                raise InputError.flag(name, found, f"1 to {LIMITS[name]:,}")
        if self.optimizer not in OPTIMIZERS:
            raise InputError.flag("optimizer", self.optimizer, " or ".join(OPTIMIZERS))
        if self.lr is not None and not (math.isfinite(self.lr) and self.lr > 0):
            raise InputError.flag("lr", self.lr, "a number above 0")
        if self.sync_every != 1:
            raise InputError.flag("sync_every", self.sync_every, "1 (gradients averaged every step)")
        if self.device not in ("auto", "cpu", "cuda"):
            raise InputError.flag("device", self.device, "auto, cpu or cuda")
        if self.global_batch % self.lanes:
            multiple = f"a multiple of --lanes {self.lanes}, such as {-(-self.global_batch // self.lanes) * self.lanes}"
            raise InputError.flag("global_batch", self.global_batch, multiple)

    @property
    def learning_rate(self) -> float:
        return OPTIMIZERS[self.optimizer] if self.lr is None else self.lr

    def check_world(self, world_size: int) -> None:
        """Raises InputError unless every rank gets the same number of lanes."""
        if self.lanes % world_size:
            raise InputError(
                f"{world_size} processes do not divide --lanes {self.lanes}; "
                f"take {_divisors(self.lanes)} processes, or other --lanes"
            )


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)


def parse(argv: list[str] | None = None) -> tuple[TrainConfig, int | None]:
    """The checked config of a command line, and --nproc. Raises InputError."""
    parser = Parser("training/train.py", "Trains skip-gram word vectors on a dataset that prepare wrote.")
    parser.formatter_class = argparse.ArgumentDefaultsHelpFormatter
    usual_rates = ", ".join(f"{name} {rate:g}" for name, rate in OPTIMIZERS.items())

    def flag(group: argparse._ArgumentGroup, name: str, kind: Callable[[str], Any], text: str, **options: Any) -> None:
        """A flag with the field's own default; one that may be absent shows none."""
        default = getattr(TrainConfig, name, None)
        options["default"] = argparse.SUPPRESS if default is None else default
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text, **options)

    group = parser.add_argument_group("files")
    flag(group, "data", path, "the dataset, a folder with manifest.json")
    flag(group, "output", path, "the run's folder")
    group.add_argument("--overwrite", action="store_true", default=argparse.SUPPRESS, help="replace a finished run")
    group = parser.add_argument_group("model and optimisation")
    flag(group, "dim", int, "length of a vector")
    flag(group, "epochs", int, "passes; pass e reads sampled epoch e modulo how many there are")
    flag(group, "global_batch", int, "examples a step, over all processes")
    flag(group, "optimizer", str, "from torch.optim", choices=tuple(OPTIMIZERS))
    flag(group, "lr", float, f"learning rate (default: {usual_rates})")
    flag(group, "sync_every", int, "steps between two averagings; 1: gradients, every step")
    flag(group, "seed", int, "of the initial tables and the order of rows")
    group = parser.add_argument_group("processes")
    flag(group, "nproc", int, "processes on this machine (default: as many as torchrun made)")
    flag(group, "lanes", int, "equal ranges of an epoch; the number of processes divides it")
    flag(group, "device", str, "auto takes cuda where there is one", choices=("auto", "cpu", "cuda"))
    flag(group, "threads", int, "CPU threads a process (default: cores / processes on this machine)")
    flag(group, "log_every", int, "steps between two lines of metrics.jsonl")
    given = vars(parser.parse_args(argv))
    nproc = given.pop("nproc", None)
    return TrainConfig(**given), nproc
