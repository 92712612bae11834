"""TrainConfig: every setting of a run, checked once, stored in the run's folder."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pipeline.shared.cli import Parser, uri
from pipeline.shared.errors import InputError
from pipeline.shared.settings import LocalPath, Number, Text, add_flags, setting, settings

SYNCHRONOUS = {"adam": 0.002, "sgd": 0.1, "adagrad": 0.05}
"""Optimizers of ``--sync-every 1``, each with its usual learning rate; the first is the default."""


class InPlaceOptimizer(NamedTuple):
    """An optimizer that trains the tables in place. training/model/kernels/reference.py defines its step."""

    lr: float
    """The usual learning rate."""
    lr_decays: bool = False
    """Whether the rate falls linearly with the number of examples seen (training/model/schedule.py)."""
    lr_times_ranks: bool = False
    """Whether W ranks train with W times the rate: the average of W copies moves as far as one of them, which saw only
    a W-th of the examples."""
    row_state: tuple[str, ...] = ()
    """Names of the numbers that the optimizer keeps for each row of a table. They start at 0, are saved in
    checkpoints, and are averaged over the ranks as the tables are."""


IN_PLACE = {
    "sgd": InPlaceOptimizer(lr=0.025, lr_decays=True, lr_times_ranks=True),
    "rowwise_adagrad": InPlaceOptimizer(lr=0.05, row_state=("sums",)),
}
"""Optimizers of ``--sync-every N``; the first is the default."""

GLOBAL_BATCH = 512, 65_536
"""Usual rows of a step: synchronous, in place."""

Reader = Literal["arrow", "petastorm"]
Sharding = Literal["auto", "replicated", "columns"]

CHUNK = 16
"""Columns of a chunk: one cache line of float32, and one AVX-512 register."""

NEWEST, AUTO = "newest", "auto"

SHARD_CACHE_BYTES = 10_000_000_000
"""Usual size of a shard cache."""

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

OF_A_MACHINE = (
    "data",
    "output",
    "overwrite",
    "keep",
    "shard_cache",
    "shard_cache_bytes",
    "tensorboard",
    "init_from",
    "device",
    "threads",
    "join_timeout",
    "verbosity",
)
"""Settings that may be others on another machine: the rest decides what ranks do together."""

FILES, MODEL, PROCESSES = "files", "model and optimisation", "processes"
"""The flags' groups."""


def borders(dim: int, size: int) -> list[int]:
    """Where the chunks of each of ``size`` members begin, and the number of chunks: as even as can be."""
    num_chunks = -(-dim // CHUNK)
    return [-(-member * num_chunks // size) for member in range(size + 1)]


def width_for(dim: int, size: int) -> int:
    """The columns, whole chunks, of the first of ``size`` members. Others may have a chunk less."""
    return borders(dim, size)[1] * CHUNK


def all_have_columns(dim: int, size: int) -> bool:
    """Whether each of ``size`` members has a chunk."""
    return size * CHUNK < dim + CHUNK


def _rates(in_place: bool) -> dict[str, float]:
    """The optimizers to choose from, each with its usual learning rate."""
    return {name: optimizer.lr for name, optimizer in IN_PLACE.items()} if in_place else SYNCHRONOUS


def _global_batch(given: dict[str, Any]) -> int:
    """The usual one, rounded down to a multiple of ``lanes``."""
    lanes: int = given["lanes"]
    return max(1, GLOBAL_BATCH[given["sync_every"] > 1] // lanes) * lanes


def _resume(text: str) -> str | int:
    if text in (AUTO, NEWEST):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text}, expected no value, auto, or a checkpoint's step") from None


def num_bytes(text: str) -> int:
    """Parses a number of bytes: ``10G`` is 10,000,000,000."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of bytes, such as 500M")
    return int(digits) * UNITS[unit]


def _named(in_place: bool) -> str:
    return ", ".join(f"{name} {rate:g}" for name, rate in _rates(in_place).items())


@settings()
class TrainConfig:
    """The settings of a run. The same config and dataset give the same global batches for any number of ranks.

    The defaults of optimizer, lr, global_batch and shard_cache_bytes depend on other settings. They are resolved when a
    config is created, so that a config, and config.json, always contain the values with which the run trains.
    """

    data: Text = setting(
        default="data/ptb",
        group=FILES,
        help="the dataset, a folder or URI (s3://..., or what fsspec knows) with manifest.json",
        flag={"type": uri},
    )

    output: LocalPath = setting(default=Path("runs/ptb"), group=FILES, help="the run's folder")

    overwrite: bool = setting(default=False, group=FILES, help="replace a run")

    checkpoint_every: int | None = setting(
        default=None,
        ge=1,
        le=1 << 30,
        group=FILES,
        help="steps between two checkpoints (default: only at each epoch's end)",
    )

    keep: int = setting(default=2, ge=1, le=1 << 30, group=FILES, help="how many of the newest checkpoints to keep")

    resume: str | int | None = setting(
        default=None,
        group=FILES,
        help="continue from the newest checkpoint, or from that of STEP; auto: from the newest good one, if any",
        flag={"type": _resume, "nargs": "?", "const": NEWEST, "metavar": "auto|STEP"},
    )
    """NEWEST, AUTO or a step. AUTO takes the checkpoint before a damaged one, or starts a new run if there is none."""

    shard_cache: LocalPath | None = setting(
        default=None, group=FILES, help="a folder that caches fetched parts of a remote dataset; runs can share it"
    )

    shard_cache_bytes: int | None = setting(
        default_factory=lambda given: SHARD_CACHE_BYTES if given["shard_cache"] else None,
        ge=1,
        le=10**18,
        group=FILES,
        help="size of the cache; K, M, G, T are units (default: 10G)",
        flag={"type": num_bytes, "metavar": "BYTES"},
    )

    log_every: int = setting(default=50, ge=1, le=1 << 30, group=FILES, help="steps between two lines of metrics.jsonl")

    tensorboard: bool = setting(
        default=True,
        group=FILES,
        help="write curves and words for TensorBoard to tensorboard/ in the run's folder",
        flag={"help": "write nothing for TensorBoard (default: curves and words, to tensorboard/ in the run's folder)"},
    )

    dim: int = setting(default=100, ge=1, le=1 << 14, group=MODEL, help="length of a vector, in numbers")

    init_from: LocalPath | None = setting(
        default=None,
        group=MODEL,
        help="a finished run's folder; words that it contains start with its vectors",
        flag={"metavar": "RUN"},
    )

    freeze_epochs: int = setting(
        default=0,
        ge=0,
        group=MODEL,
        help="number of first epochs in which these vectors are frozen and only new words train",
    )

    epochs: int = setting(
        default=5,
        ge=1,
        le=100_000,
        group=MODEL,
        help="passes; pass e reads sampled epoch e modulo the number of sampled epochs",
    )

    evaluate_every: int | None = setting(
        default=None,
        ge=1,
        le=1 << 30,
        group=MODEL,
        help="steps between two measurements of the held-out loss (default: at each epoch's end)",
        flag={"metavar": "STEPS"},
    )
    """Of a dataset that holds examples out. The vectors of the lowest loss are kept in best/ in the run's folder."""

    patience: int | None = setting(
        default=None,
        ge=1,
        le=1 << 30,
        group=MODEL,
        help="stop after so many measurements in a row without a lower held-out loss (default: never)",
        flag={"metavar": "N"},
    )

    sync_every: int = setting(
        default=1,
        ge=1,
        group=MODEL,
        help="steps between two averagings; 1: of gradients, more: of tables trained in place",
    )
    """1: gradients are averaged over the ranks at every step. N: each rank trains its own tables in place, and these
    are averaged every N steps."""

    rows_between_meetings: int | None = setting(
        default=None,
        ge=1,
        le=1 << 16,
        group=MODEL,
        help="in place: rows whose scores are computed before any of them moves a vector (default: 64; on a GPU 512, "
        "with --sharding columns)",
        flag={"metavar": "ROWS"},
    )
    """Ranks that share columns meet once for so many rows. More rows cost less time, above all between machines; fewer
    let each row see more of what others have changed."""

    optimizer: str = setting(
        default_factory=lambda given: next(iter(_rates(given["sync_every"] > 1))),
        group=MODEL,
        help=f"{', '.join(SYNCHRONOUS)} (default: adam); in place {', '.join(IN_PLACE)} (sgd)",
        flag={"metavar": "NAME"},
    )

    lr: Number = setting(
        default_factory=lambda given: _rates(given["sync_every"] > 1).get(given["optimizer"], math.nan),
        gt=0,
        le=1e30,
        group=MODEL,
        help=f"learning rate (default: {_named(False)}; {_named(True)} in place, where sgd's decays linearly)",
    )
    """At most 1e30, so that it fits into a float32 even after multiplication by the number of ranks."""

    lanes: int = setting(
        default=16,
        ge=1,
        le=1 << 12,
        group=PROCESSES,
        help="equal ranges of an epoch; the number of processes divides it",
    )

    global_batch: int = setting(
        default_factory=_global_batch,
        ge=1,
        le=1 << 24,
        group=MODEL,
        help="examples a step, over all processes (default: {:,}; {:,} in place)".format(*GLOBAL_BATCH),
    )
    """Rows of a step over all ranks; divisible by ``lanes``."""

    seed: int = setting(default=0, group=MODEL, help="of the initial tables and the order of rows")

    device: Literal["auto", "cpu", "cuda"] = setting(
        default="auto", group=PROCESSES, help="auto takes cuda if there is a GPU"
    )

    kernel: Literal["auto", "reference", "cpu", "cuda"] = setting(
        default="auto", group=PROCESSES, help="the code that computes a step; auto takes the device's own"
    )
    """See training/model/kernels."""

    cache: Literal["auto", "device", "none"] = setting(
        default="auto",
        group=PROCESSES,
        help="whether a GPU keeps rows after their first use; auto: if they fit and are read more than once",
    )
    """device: a GPU keeps the rows of each sampled epoch; none: they are copied every time; auto: they are kept if they
    fit into half of its memory and are read more than once."""

    reader: Reader = setting(
        default="arrow", group=PROCESSES, help="the library that reads the shards; petastorm needs make setup-petastorm"
    )
    """docs/data.md compares them."""

    sharding: Sharding = setting(
        default="auto",
        group=PROCESSES,
        help="what each process has: whole tables, or some columns of every word; auto: columns where that is possible",
    )
    """docs/training.md compares them."""

    group_size: int | None = setting(
        default=None,
        ge=1,
        le=1 << 12,
        group=PROCESSES,
        help="processes that share the tables by columns (default: as many of each machine's as can); see docs",
        flag={"metavar": "C"},
    )
    """Several groups train a copy each, as single processes do with whole tables. Members of a group may be on several
    machines: then it takes all processes of each."""

    threads: int | None = setting(
        default=None,
        ge=1,
        le=1 << 10,
        group=PROCESSES,
        help="CPU threads a process (default: cores / processes on this machine)",
    )

    join_timeout: int = setting(
        default=600,
        ge=1,
        le=1 << 30,
        group=PROCESSES,
        help="seconds that processes wait at the start until all of them are there",
        flag={"metavar": "SECONDS"},
    )

    deterministic: bool = setting(
        default=False,
        group=PROCESSES,
        help="the same bits every time, on a CPU with any number of threads; refuses to resume if they would differ",
    )
    """Slower algorithms replace those that add in the hardware's order, or in an order that depends on the threads. A
    resumed run ends with the bits of one that was not interrupted, or is refused."""

    verbosity: int = setting(
        default=0, help="-1: only warnings, errors and the last line; 1: a line for each metric too"
    )

    def __post_init__(self) -> None:
        rates = _rates(self.in_place)
        if self.optimizer not in rates:
            possible = f"{' or '.join(rates)} with --sync-every {self.sync_every}"
            if self.optimizer in {**SYNCHRONOUS, **IN_PLACE}:
                possible += f", or --sync-every {'1' if self.in_place else 'N above 1'}"
            raise InputError.flag("optimizer", self.optimizer, possible)
        if self.shard_cache is None and self.shard_cache_bytes is not None:
            raise InputError.flag("shard_cache_bytes", self.shard_cache_bytes, "--shard-cache with it")
        if self.freeze_epochs > self.epochs:
            raise InputError.flag("freeze_epochs", self.freeze_epochs, f"0 to --epochs {self.epochs}")
        if self.freeze_epochs and self.init_from is None and self.resume is None:
            raise InputError.flag("freeze_epochs", self.freeze_epochs, "--init-from with it, whose words are frozen")
        self.check_kernel(self.device)
        if self.resume is not None and self.overwrite:
            raise InputError("--overwrite starts a new run and --resume continues one; leave one of them out")
        if self.cache == "device" and self.reader == "petastorm":
            raise InputError.flag("cache", self.cache, "auto or none with --reader petastorm, which keeps no rows")
        if self.rows_between_meetings is not None and not self.in_place:
            raise InputError.flag("rows_between_meetings", self.rows_between_meetings, "--sync-every N above 1 with it")
        if self.sharding == "replicated" and self.group_size not in (None, 1):
            raise InputError.flag("group_size", self.group_size, "1 with --sharding replicated; leave one of them out")
        if self.sharding == "columns" and self.group_size == 1:
            raise InputError.flag("group_size", self.group_size, "2 or more with --sharding columns; leave one out")
        if self.global_batch % self.lanes:
            multiple = f"a multiple of --lanes {self.lanes}, such as {-(-self.global_batch // self.lanes) * self.lanes}"
            raise InputError.flag("global_batch", self.global_batch, multiple)

    @property
    def in_place(self) -> bool:
        return self.sync_every > 1

    @property
    def lr_decays(self) -> bool:
        """Whether the learning rate decays, and so depends on how many epochs the run has."""
        return self.in_place and IN_PLACE[self.optimizer].lr_decays

    def check_kernel(self, device: str) -> None:
        """Raises InputError if the kernel cannot run on ``device``, cpu or cuda."""
        if (device, self.kernel) in (("cpu", "cuda"), ("cuda", "cpu")):
            raise InputError.flag("kernel", self.kernel, f"reference or auto, since the device is {device}")
        if self.deterministic and self.kernel == "cuda":
            raise InputError.flag("kernel", self.kernel, "reference with --deterministic, since cuda adds in any order")

    def kernel_on(self, device: str) -> str:
        """The kernel to use on ``device``, cpu or cuda."""
        if self.kernel != "auto":
            return self.kernel
        return "reference" if device == "cuda" and self.deterministic else device

    def group_size_of(self, device: str, world_size: int, ranks_here: int) -> int:
        """How many of these ranks share a copy of the tables by columns; 1: none do.

        Raises InputError if they cannot, though columns are wanted.
        """
        if self.sharding == "replicated" or self.group_size == 1 or (world_size == 1 and not self.group_size):
            return 1
        obstacle = self.columns_obstacle(device, world_size, ranks_here)
        if obstacle and self.group_size:
            raise InputError(f"--group-size {self.group_size}: {obstacle}")
        if obstacle and self.sharding == "columns":
            raise InputError(f"--sharding columns: {obstacle}; or take --sharding replicated")
        return 1 if obstacle else self.group_size or max(self.group_sizes(ranks_here))

    def columns_obstacle(self, device: str, world_size: int, ranks_here: int) -> str | None:
        """Why the ranks cannot share the tables by columns, as what is found and what is expected; None if they can."""
        if self.kernel_on(device) == "cpu":
            if not self.in_place and self.optimizer != "adam":
                return f"found --optimizer {self.optimizer}, expected adam, --sync-every N, or --kernel reference"
        elif self.sharding != "columns" and not self.group_size:
            return f"found --kernel {self.kernel_on(device)}, expected --sharding columns with it, or --kernel cpu"
        if self.reader != "arrow":
            return f"found --reader {self.reader}, expected arrow"
        if sys.platform != "linux":
            return f"found {sys.platform}, expected linux, whose processes share memory without a name"
        share = f"which can share --dim {self.dim} in parts of {CHUNK}"
        wanted = self.group_size
        if wanted is None and ranks_here == 1:
            return "found one process on each machine, expected several, or --group-size to share between machines"
        if wanted is None and self.group_sizes(ranks_here) == [1]:
            numbers = " or ".join(map(str, self.group_sizes(self.lanes)))
            return f"found {ranks_here} processes on a machine, expected {numbers}, {share}"
        if wanted and (world_size % wanted or (ranks_here % wanted and wanted % ranks_here)):
            found = f"found {world_size} process(es), {ranks_here} on this machine"
            return f"{found}, expected a number that divides those of a machine, or is that of several whole machines"
        if wanted and not all_have_columns(self.dim, wanted):
            most = max(n for n in range(1, wanted) if all_have_columns(self.dim, n))
            return f"found a group of {wanted}, expected {most} or fewer, {share}"
        return None

    def group_sizes(self, num_ranks: int) -> list[int]:
        """The sizes of groups into which so many ranks can be divided, in rising order."""
        return [size for size in _divisors(num_ranks) if all_have_columns(self.dim, size)]

    def check_world(self, world_size: int) -> None:
        """Raises InputError unless every rank gets the same number of lanes."""
        if self.lanes % world_size:
            raise InputError(
                f"{world_size} processes do not divide --lanes {self.lanes}; "
                f"take {', '.join(map(str, _divisors(self.lanes)))} processes, or other --lanes"
            )


@settings()
class TrainCommand(TrainConfig):
    """The flags of training/train.py: a run's settings, and the number of processes on this machine."""

    nproc: int | None = setting(
        default=None, ge=1, group=PROCESSES, help="processes on this machine (default: as many as torchrun made)"
    )


def _divisors(number: int) -> list[int]:
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def parse(argv: list[str] | None = None) -> tuple[TrainConfig, int | None]:
    """Parses a command line. Returns the checked config, and --nproc. Raises InputError."""
    parser = Parser(
        "training/train.py",
        "Trains skip-gram word vectors on a dataset that prepare wrote.",
        "torchrun training/train.py --nproc 4",
        "torchrun training/train.py --nproc 4 --data data/mine --output runs/mine --sync-every 4",
        "torchrun --nnodes 2 --nproc-per-node 8 ... training/train.py",
    )
    add_flags(parser, TrainCommand)
    parser.add_verbosity("adds a line for each of metrics.jsonl's")
    given = vars(parser.parse_args(argv))
    nproc = given.pop("nproc", None)
    return TrainConfig(**given), nproc
