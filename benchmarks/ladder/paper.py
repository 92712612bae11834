"""Bounds on the kernels' speed, from bytes, instructions and published figures of cards. Nothing is measured.

T targets of a row (contexts and negatives), D dimensions, V words. A token, in tokens/s, is a row.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Multiprocessor(NamedTuple):
    """Limits of a multiprocessor: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"."""

    shared_bytes: int
    warps: int = 64
    programs: int = 32
    registers: int = 65536
    schedulers: int = 4
    """Each has its own quarter of the registers, and issues an instruction of a warp per clock."""


MULTIPROCESSORS = {80: Multiprocessor(164 << 10), 90: Multiprocessor(228 << 10), 100: Multiprocessor(228 << 10)}
"""By compute capability."""

REGISTERS_AT_ONCE = 256
"""Registers of a warp are allocated in this unit (CUDA's occupancy calculator)."""

RESERVED_BYTES = 1 << 10
"""Shared memory that the system takes for every program, from compute capability 8.0 on (the same guide)."""


def programs_at_once(arch: int, registers: int, warps: int, shared_bytes: int) -> int:
    """How many programs a multiprocessor runs at once, if each has ``warps`` warps of 32 threads."""
    limits = MULTIPROCESSORS[arch]
    of_warp = -(-registers * 32 // REGISTERS_AT_ONCE) * REGISTERS_AT_ONCE
    by_registers = limits.registers // limits.schedulers // of_warp * limits.schedulers
    by_shared = limits.shared_bytes // (shared_bytes + RESERVED_BYTES)
    return min(by_registers // warps, limits.warps // warps, limits.programs, by_shared)


class Card(NamedTuple):
    name: str
    arch: int
    multiprocessors: int
    clock_hz: float
    hbm: float
    """Bytes/s of the card's memory."""
    l2_bytes: int
    sources: str

    @property
    def l2(self) -> float:
        """Bytes/s of the L2 cache."""
        return L2_BYTES_PER_CLOCK * self.clock_hz

    @property
    def instructions(self) -> float:
        """Instructions of warps per second, if every scheduler issues one per clock."""
        return self.multiprocessors * MULTIPROCESSORS[self.arch].schedulers * self.clock_hz


L2_BYTES_PER_CLOCK = 5120
"""NVIDIA's figure for A100 (A100 whitepaper, "L2 cache read bandwidth"). It has published none for the others, which
are assumed to have no less; atomic additions may be slower than reads."""

CARDS = (
    Card("A100 80 GB SXM", 80, 108, 1.41e9, 2.039e12, 40 << 20, "NVIDIA's A100 datasheet and whitepaper"),
    Card("H100 SXM", 90, 132, 1.98e9, 3.35e12, 50 << 20, "NVIDIA's H100 datasheet; clock: 67 TFLOP/s of float32"),
    Card(
        "B200",
        100,
        148,
        1.98e9,
        8.0e12,
        126 << 20,
        "NVIDIA's DGX B200 datasheet (HBM) and Blackwell tuning guide (L2); Chips and Cheese, *Nvidia's B200* (others)",
    ),
)

VOCABULARIES = (6_719, 67_849, 1_000_000)
"""Words of Penn Treebank, of 17 M tokens of Wikipedia, and a round number."""

STEP_ROWS = 512
"""Rows of a step of the book's recipe."""

FLOAT_BYTES = 4


def targets_of_rows(window: int, negatives: int) -> list[int]:
    """The numbers of targets that rows far from a sequence's ends have, all equally often (pipeline's draw_radius)."""
    return [2 * radius * (1 + negatives) for radius in range(1, window + 1)]


def table_bytes(vocab: int, dim: int) -> int:
    """Both tables."""
    return 2 * vocab * dim * FLOAT_BYTES


class RowBytes(NamedTuple):
    """What a row moves between multiprocessors and L2, or HBM if the tables do not fit into L2."""

    read: float
    added: float
    """By atomic additions; in HBM, a vector that was added to is read once and written back once."""
    others: float
    """Ids, counts, losses and what forward leaves for backward."""

    @property
    def total(self) -> float:
        return self.read + self.added + self.others


def bytes_in_place(dim: int, targets: float) -> RowBytes:
    """Center and targets are gathered and added to. Slopes stay in L1 and L2."""
    vectors = (targets + 1) * dim * FLOAT_BYTES
    return RowBytes(vectors, vectors, (targets + 1) * 4 + 2 + FLOAT_BYTES)


def bytes_of_recipe(dim: int, targets: float) -> RowBytes:
    """Forward and backward: backward reads ids, slopes, the center and its gradient, which forward has written."""
    vector, ids = dim * FLOAT_BYTES, (targets + 1) * 4 + 2
    vectors = (targets + 1) * vector
    return RowBytes(vectors + vector, vectors, 2 * ids + 2 * targets * FLOAT_BYTES + 2 * vector + 2 * FLOAT_BYTES)


def bytes_of_adam(vocab: int, dim: int) -> float:
    """A dense step: gradients are zeroed and read; weights and both moments are read and written."""
    return (1 + 4 + 3) * table_bytes(vocab, dim)


def bandwidth(card: Card, num_bytes: float) -> float:
    """Of L2 if it holds ``num_bytes``, else of HBM."""
    return card.l2 if num_bytes <= card.l2_bytes else card.hbm


def in_place_tokens_per_s(card: Card, vocab: int, dim: int, targets: float) -> float:
    return bandwidth(card, table_bytes(vocab, dim)) / bytes_in_place(dim, targets).total


def recipe_step_s(card: Card, vocab: int, dim: int, targets: float) -> float:
    """Seconds of a step. Weights, gradients and moments are read and written whatever the rows name."""
    total = STEP_ROWS * bytes_of_recipe(dim, targets).total + bytes_of_adam(vocab, dim)
    return total / bandwidth(card, 4 * table_bytes(vocab, dim))


def issue_tokens_per_s(card: Card, instructions: float) -> float:
    """``instructions``: of all warps for a row."""
    return card.instructions / instructions


def mean_blocks(targets: Sequence[int], block_t: int) -> float:
    """The mean number of blocks of targets a row."""
    return sum(-(-number // block_t) for number in targets) / len(targets)
