"""Where the ladder is climbed: on a GPU, or as a rehearsal on a CPU. All that differs between the two is here, as data.

The rehearsal takes the same way through the same code. Triton's interpreter stands in for the GPU, and ``stand_ins``
of child.py for what only a GPU has.
"""

from dataclasses import dataclass, field

from benchmarks.ladder.climb import Work
from benchmarks.measuring.corpora import MILLION, PTB, WIKIPEDIA, Law

STEPS = "steps"
"""The corpus of the trainings that are compared; the others are for speeds."""


@dataclass(frozen=True)
class Sizes:
    """Of rows, words and steps."""

    shapes: tuple[tuple[int, int, int, int, int], ...]
    """Of kernels' batches: rows, window, negatives, dim, words. No word twice where there are words enough."""
    large_words: int
    """Of the largest table."""
    dim: int
    """Of the trainings that are compared. Two ranks can share it by columns."""
    dims: tuple[int, int, int]
    """Of speeds: the book's, FULL-W2V's, a large one."""
    num_steps: int
    """Of an epoch of the trainings that are compared."""
    graphed: tuple[int, int]
    """Rows and steps that are trained with a CUDA graph and without; the rows also of the largest table's batch."""
    lanes: int
    copied_bytes: tuple[int, int]
    """Of the copies that measure the bandwidth: from memory, and within the L2 cache."""
    in_place_batch: int
    """Rows of a step in place, where speed is measured."""
    repeats: int
    """Turns of speeds, whose figures are their medians."""
    epochs: int
    """Of a run whose speed is measured; the first reads the shards."""
    rows: int
    """Of a corpus, at most, where Adam is measured, whose dense steps are slow with many words."""
    calls: int
    """Of a step that is measured or profiled alone."""


@dataclass(frozen=True)
class Place:
    """A machine's part in the ladder."""

    name: str
    device: str
    kernel: str
    """``--kernel`` of the trainings."""
    backend: str
    """Of torch.distributed, between ranks on GPUs of their own."""
    laws: dict[str, Law]
    sizes: Sizes
    stand_ins: tuple[str, ...] = ()
    """What child.py puts in the place of what is not here."""
    environment: dict[str, str] = field(default_factory=dict)
    patience: float = 3.0
    """A rung that takes so many times what is expected, and half a minute more, is ended."""

    @property
    def rehearses(self) -> bool:
        return self.device == "cpu"


GPU = Place(
    "GPU",
    device="cuda",
    kernel="auto",
    backend="nccl",
    # 50 steps of 512 rows.
    laws={STEPS: PTB._replace(num_tokens=61_000), "ptb": PTB, "wikipedia": WIKIPEDIA, "million": MILLION},
    sizes=Sizes(
        shapes=(
            (1, 1, 1, 1, 7),
            (5, 2, 2, 3, 9),
            (33, 5, 5, 17, 50),
            (64, 1, 3, 128, 6_719),
            (512, 5, 5, 100, 6_719),
            (512, 5, 5, 100, 67_849),
            (257, 5, 5, 300, 67_849),
            (100, 10, 15, 64, 67_849),
            (64, 5, 5, 1000, 10_000),
        ),
        large_words=10_000_000,
        dim=100,
        dims=(100, 128, 300),
        num_steps=50,
        graphed=(256, 20),
        lanes=16,
        copied_bytes=(1 << 30, 8 << 20),
        in_place_batch=65_536,
        repeats=3,
        epochs=6,
        rows=1_000_000,
        calls=100,
    ),
    stand_ins=("no_pages",),
    environment={"OMP_WAIT_POLICY": "PASSIVE"},
)

REHEARSAL = Place(
    "rehearsal without a GPU",
    device="cpu",
    kernel="cuda",
    backend="gloo",
    laws={
        STEPS: Law(200, 300, 1.02, 1.0, 19.5, 9.5, num_shards=2),
        "ptb": Law(100, 200, 1.02, 1.0, 19.5, 9.5, num_shards=2),
        "wikipedia": Law(300, 200, 1.10, 1.5, 100, num_shards=2),
    },
    sizes=Sizes(
        shapes=((1, 1, 1, 1, 7), (5, 2, 2, 3, 9), (6, 5, 5, 17, 1_000), (3, 1, 3, 300, 100)),
        large_words=2_000,
        dim=20,
        dims=(4, 5, 6),
        num_steps=4,
        graphed=(3, 4),
        lanes=4,
        copied_bytes=(1 << 20, 1 << 16),
        in_place_batch=16,
        repeats=1,
        epochs=2,
        rows=40,
        calls=2,
    ),
    stand_ins=("no_pages", "interpreter"),
    environment={"OMP_WAIT_POLICY": "PASSIVE", "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
    patience=10.0,
)


def place_of(work: Work) -> Place:
    """Where a rung is tried."""
    return REHEARSAL if work.rehearses else GPU
