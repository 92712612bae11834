"""TrainConfig: every setting of a run, checked once, stored in the run's folder."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.shared.cli import Parser, path, uri
from pipeline.shared.errors import InputError

SYNCHRONOUS = {"adam": 0.002, "sgd": 0.1, "adagrad": 0.05}
"""Optimizers of ``--sync-every 1``, and the learning rate each has when none is given; the first is the default."""

IN_PLACE = {"sgd": 0.025, "rowwise_adagrad": 0.05}
"""The same for ``--sync-every N``."""

GLOBAL_BATCH = 512, 65_536
"""Usual rows of a step, synchronous and in place."""

LARGEST_RATE = 1e30
"""Beyond any use, and a float32 even when it is multiplied by the number of ranks."""

DEVICES = ("auto", "cpu", "cuda")
KERNELS = ("auto", "reference", "cpu", "cuda")
CACHES = ("auto", "device", "none")
READERS = ("arrow", "petastorm")

NEWEST, AUTO = "newest", "auto"

SHARD_CACHE_BYTES = 10_000_000_000
"""Usual bytes of a shard cache."""

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}

LIMITS = {
    "epochs": 100_000,
    "lanes": 1 << 12,
    "global_batch": 1 << 24,
    "dim": 1 << 14,
    "threads": 1 << 10,
    "log_every": 1 << 30,
    "checkpoint_every": 1 << 30,
    "keep": 1 << 30,
    "shard_cache_bytes": 10**18,
}
"""The largest value of each: beyond any use, and below what would exhaust a machine."""


@dataclass(frozen=True)
class TrainConfig:
    """What a training run does. The same config on the same dataset gives the same global batches on any world."""

    data: str = "data/ptb"
    """The dataset, a folder or URI with manifest.json."""

    output: Path = Path("runs/ptb")
    """The run's folder."""

    epochs: int = 5

    global_batch: int = None  # type: ignore[assignment]
    """Rows of a step over all ranks; divisible by ``lanes``. None becomes the usual one, ``GLOBAL_BATCH``."""

    optimizer: str = None  # type: ignore[assignment]
    """None becomes the usual one: the first of ``SYNCHRONOUS``, or of ``IN_PLACE``."""

    lr: float = None  # type: ignore[assignment]
    """Learning rate; None becomes the optimizer's usual one. SGD's falls linearly in place, to almost 0."""

    dim: int = 100
    """D, length of a vector."""

    init_from: Path | None = None
    """A finished run's folder: words that its vocabulary has, too, begin with its rows, in both tables."""

    freeze_epochs: int = 0
    """Epochs at the beginning in which those rows do not move."""

    sync_every: int = 1
    """1: gradients are averaged over the ranks every step. N: each rank trains its own tables in place, and they are
    averaged every N steps."""

    seed: int = 0
    """Of the initial tables and of the order of rows."""

    lanes: int = 16
    """Equal ranges into which an epoch is cut; the number of ranks divides it."""

    device: str = "auto"
    """auto, cpu or cuda; auto takes cuda where there is one."""

    kernel: str = "auto"
    """reference, cpu or cuda, see training/model/kernels; auto takes the one of the device."""

    cache: str = "auto"
    """device: a GPU keeps the rows of each sampled epoch from its first use on; none: they are copied every time;
    auto: they are kept where they fit into half of its memory and are read more than once."""

    reader: str = "arrow"
    """arrow: the trainer's own; petastorm: petastorm's, in its environment. docs/data.md says what each promises."""

    threads: int | None = None
    """CPU threads a rank; None: cores / ranks on this machine."""

    log_every: int = 50
    """Steps between two step lines of metrics.jsonl."""

    checkpoint_every: int | None = None
    """Steps between two checkpoints within an epoch; None: only at each epoch's end."""

    keep: int = 2
    """The newest checkpoints that stay."""

    resume: str | int | None = None
    """Go on from a checkpoint: NEWEST, or the one after so many steps; AUTO: from the newest, and from the one before
    where that is damaged; begin where there is none. None: begin."""

    deterministic: bool = False
    """The same bits from the same command, with algorithms that are slower where the fast ones' order is the
    hardware's; a resumed run ends with the bits of one that was not interrupted, or is refused."""

    tensorboard: bool = True
    """Write for TensorBoard, into the run's folder."""

    overwrite: bool = False
    """Replace a run."""

    shard_cache: Path | None = None
    """A folder of this machine that keeps what was fetched of a dataset that lies elsewhere."""

    shard_cache_bytes: int | None = None
    """How large it may become; None becomes ``SHARD_CACHE_BYTES`` where there is one."""

    verbosity: int = 0
    """QUIET prints warnings, errors and the last line; VERBOSE a line wherever metrics.jsonl gets one, too."""

    def __post_init__(self) -> None:
        if self.sync_every < 1:
            raise InputError.flag("sync_every", self.sync_every, "1 or more")
        optimizers = IN_PLACE if self.in_place else SYNCHRONOUS
        if self.optimizer is None:
            self._become("optimizer", next(iter(optimizers)))
        if self.optimizer not in optimizers:
            mode = f"--sync-every {self.sync_every}"
            other = "1" if self.in_place else "N above 1"
            possible = f"{' or '.join(optimizers)} with {mode}"
            if self.optimizer in {**SYNCHRONOUS, **IN_PLACE}:
                possible += f", or --sync-every {other}"
            raise InputError.flag("optimizer", self.optimizer, possible)
        if self.lr is None:
            self._become("lr", optimizers[self.optimizer])
        if not 0 < self.lr <= LARGEST_RATE:
            raise InputError.flag("lr", self.lr, f"a number above 0, {LARGEST_RATE:g} at most")
        if self.global_batch is None:
            per_lane = GLOBAL_BATCH[self.in_place] // max(1, self.lanes)
            self._become("global_batch", max(1, per_lane) * self.lanes)
        if self.shard_cache is None and self.shard_cache_bytes is not None:
            raise InputError.flag("shard_cache_bytes", self.shard_cache_bytes, "--shard-cache with it")
        if self.shard_cache is not None and self.shard_cache_bytes is None:
            self._become("shard_cache_bytes", SHARD_CACHE_BYTES)
        for name in LIMITS:
            found = getattr(self, name)
            if found is not None and not 1 <= found <= LIMITS[name]:
                raise InputError.flag(name, found, f"1 to {LIMITS[name]:,}")
        if not 0 <= self.freeze_epochs <= self.epochs:
            raise InputError.flag("freeze_epochs", self.freeze_epochs, f"0 to --epochs {self.epochs}")
        if self.freeze_epochs and self.init_from is None and self.resume is None:
            raise InputError.flag("freeze_epochs", self.freeze_epochs, "--init-from with it, whose words are frozen")
        choices = {"device": DEVICES, "kernel": KERNELS, "cache": CACHES, "reader": READERS}
        for name, possible_values in choices.items():
            if getattr(self, name) not in possible_values:
                raise InputError.flag(name, getattr(self, name), f"one of {', '.join(possible_values)}")
        self.check_kernel(self.device)
        if self.resume is not None and self.overwrite:
            raise InputError("--overwrite begins anew and --resume goes on; leave one of them out")
        if self.cache == "device" and self.reader == "petastorm":
            raise InputError.flag("cache", self.cache, "auto or none with --reader petastorm, which keeps no rows")
        if self.global_batch % self.lanes:
            multiple = f"a multiple of --lanes {self.lanes}, such as {-(-self.global_batch // self.lanes) * self.lanes}"
            raise InputError.flag("global_batch", self.global_batch, multiple)

    @property
    def in_place(self) -> bool:
        return self.sync_every > 1

    @property
    def rate_falls(self) -> bool:
        """Whether the learning rate falls, and so depends on how many epochs the run has."""
        return self.in_place and self.optimizer == "sgd"

    def _become(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def check_kernel(self, device: str) -> None:
        """Raises InputError where a kernel is asked for that cannot run on ``device``, cpu or cuda."""
        if (device, self.kernel) in (("cpu", "cuda"), ("cuda", "cpu")):
            raise InputError.flag("kernel", self.kernel, f"reference or auto, since the device is {device}")
        if self.deterministic and self.kernel == "cuda":
            raise InputError.flag("kernel", self.kernel, "reference with --deterministic, since cuda adds in any order")

    def kernel_on(self, device: str) -> str:
        """The kernel on ``device``, cpu or cuda: what auto is there."""
        if self.kernel != "auto":
            return self.kernel
        return "reference" if device == "cuda" and self.deterministic else device

    def check_world(self, world_size: int) -> None:
        """Raises InputError unless every rank gets the same number of lanes."""
        if self.lanes % world_size:
            raise InputError(
                f"{world_size} processes do not divide --lanes {self.lanes}; "
                f"take {_divisors(self.lanes)} processes, or other --lanes"
            )


def _resume(text: str) -> str | int:
    if text in (AUTO, NEWEST):
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text}, expected nothing, auto, or a checkpoint's step") from None


def num_bytes(text: str) -> int:
    """A number of bytes given as an argument: ``10G`` is 10,000,000,000."""
    digits, unit = (text[:-1], text[-1].upper()) if text[-1:].isalpha() else (text, "")
    if not digits.isdecimal() or unit not in UNITS:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of bytes, such as 500M")
    return int(digits) * UNITS[unit]


def _divisors(number: int) -> str:
    return ", ".join(str(divisor) for divisor in range(1, number + 1) if number % divisor == 0)


def parse(argv: list[str] | None = None) -> tuple[TrainConfig, int | None]:
    """The checked config of a command line, and --nproc. Raises InputError."""
    parser = Parser(
        "training/train.py",
        "Trains skip-gram word vectors on a dataset that prepare wrote.",
        "torchrun training/train.py --nproc 4",
        "torchrun training/train.py --nproc 4 --data data/mine --output runs/mine --sync-every 4",
        "torchrun --nnodes 2 --nproc-per-node 8 ... training/train.py",
    )
    usual_rates = "; ".join(
        ", ".join(f"{name} {rate:g}" for name, rate in optimizers.items()) for optimizers in (SYNCHRONOUS, IN_PLACE)
    )
    usual_batches = "{:,}; {:,}".format(*GLOBAL_BATCH)

    def flag(group: argparse._ArgumentGroup, name: str, kind: Callable[[str], Any], text: str, **options: Any) -> None:
        """A flag with the field's own default; one that may be absent shows none."""
        default = getattr(TrainConfig, name, None)
        options["default"] = argparse.SUPPRESS if default is None else default
        group.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text, **options)

    group = parser.add_argument_group("files")
    flag(group, "data", uri, "the dataset, a folder or URI (s3://..., or what fsspec knows) with manifest.json")
    flag(group, "output", path, "the run's folder")
    group.add_argument("--overwrite", action="store_true", default=argparse.SUPPRESS, help="replace a run")
    flag(group, "checkpoint_every", int, "steps between two checkpoints (default: only at each epoch's end)")
    flag(group, "keep", int, "how many checkpoints stay, the newest")
    resume = "go on from the newest checkpoint, or the one after so many steps; auto: from a good one, if there is any"
    flag(group, "resume", _resume, resume, nargs="?", const=NEWEST, metavar="auto|STEP")
    flag(group, "shard_cache", path, "a folder that keeps what was fetched of a dataset elsewhere; runs may share it")
    most = "most it holds; K, M, G, T are units (default: 10G)"
    flag(group, "shard_cache_bytes", num_bytes, most, metavar="BYTES")
    flag(group, "log_every", int, "steps between two lines of metrics.jsonl")
    help_text = "write nothing for TensorBoard (usually: figures and words, into tensorboard/ of the run's folder)"
    group.add_argument(
        "--no-tensorboard", dest="tensorboard", action="store_false", default=argparse.SUPPRESS, help=help_text
    )
    group = parser.add_argument_group("model and optimisation")
    flag(group, "dim", int, "length of a vector, in numbers")
    init_from = "a finished run's folder, whose vectors its words begin with; rows are matched by word"
    flag(group, "init_from", path, init_from, metavar="RUN")
    flag(group, "freeze_epochs", int, "first epochs in which these vectors stay, and those of new words alone train")
    flag(group, "epochs", int, "passes; pass e reads sampled epoch e modulo how many there are")
    flag(group, "sync_every", int, "steps between two averagings; 1: of gradients, more: of tables trained in place")
    optimizers = f"{', '.join(SYNCHRONOUS)} (default: adam); in place {', '.join(IN_PLACE)} (sgd)"
    flag(group, "optimizer", str, optimizers, metavar="NAME")
    flag(group, "lr", float, f"learning rate (default: {usual_rates} in place, where sgd's falls linearly)")
    flag(group, "global_batch", int, f"examples a step, over all processes (default: {usual_batches} in place)")
    flag(group, "seed", int, "of the initial tables and the order of rows")
    group = parser.add_argument_group("processes")
    flag(group, "nproc", int, "processes on this machine (default: as many as torchrun made)")
    flag(group, "lanes", int, "equal ranges of an epoch; the number of processes divides it")
    flag(group, "device", str, "auto takes cuda where there is one", choices=DEVICES)
    flag(group, "kernel", str, "what computes a step; auto takes the device's own", choices=KERNELS)
    cache = "whether a GPU keeps rows from their first use on; auto: where they fit and are read more than once"
    flag(group, "cache", str, cache, choices=CACHES)
    flag(group, "reader", str, "what reads the shards; petastorm needs make setup-petastorm", choices=READERS)
    flag(group, "threads", int, "CPU threads a process (default: cores / processes on this machine)")
    help_text = "the same bits every time, slower on a GPU; refuses to resume where they would be others"
    group.add_argument("--deterministic", action="store_true", default=argparse.SUPPRESS, help=help_text)
    parser.add_verbosity("adds a line for each of metrics.jsonl's")
    given = vars(parser.parse_args(argv))
    nproc = given.pop("nproc", None)
    return TrainConfig(**given), nproc
