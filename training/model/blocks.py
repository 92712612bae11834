"""Tensors that come block by block, since the whole may not fit into memory; and the tables before training.

V words, D dimensions, B rows of a block.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

ROWS = 1 << 14
"""Rows of a block: some MB, whole pages of memory whatever D is."""


class Blocks(NamedTuple):
    """A tensor of ``shape``, whose numbers ``blocks()`` returns in order. Each block is valid until the next."""

    shape: tuple[int, ...]
    blocks: Callable[[], Iterator[Tensor]]
    dtype: torch.dtype = torch.float32

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def whole(self) -> Tensor:
        """All of it in memory."""
        return torch.cat([block.clone() for block in self.blocks()]).view(self.shape)


BlockTables = tuple[Blocks, Blocks]
"""Centers and contexts, (V, D) each."""

AnyTables = tuple[Tensor | Blocks, Tensor | Blocks]


def spans(num_rows: int) -> Iterator[slice]:
    """The rows of each block."""
    return (slice(first, min(first + ROWS, num_rows)) for first in range(0, num_rows, ROWS))


def blocks_of(table: "Tensor | Blocks") -> Blocks:
    """A table, (V, D), as blocks; a tensor's are views of it."""
    if isinstance(table, Blocks):
        return table
    return Blocks(tuple(table.shape), lambda: (table[rows] for rows in spans(len(table))), table.dtype)


def read(tensors: Mapping[str, Tensor | Blocks]) -> None:
    """Reads all blocks to their end and keeps nothing, on a rank that only takes part."""
    for tensor in tensors.values():
        if isinstance(tensor, Blocks):
            for _ in tensor.blocks():
                pass


def initial_tables(vocab_size: int, dim: int, seed: int = 0, in_place: bool = False) -> BlockTables:
    """The tables before training; row 0 is zero. The same ``seed`` gives the same ones: Xavier-uniform, as in the book.

    With ``in_place`` they are initialized as in word2vec.c: centers uniform in ±0.5/D, contexts 0.
    """
    after_centers: list[Tensor] = []

    def centers() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed % 2**63)
        bound = 0.5 / dim if in_place else _xavier(vocab_size, dim)
        yield from _uniform(vocab_size, dim, bound, generator)
        after_centers[:] = [generator.get_state()]

    def contexts() -> Iterator[Tensor]:
        if in_place:
            yield from (torch.zeros(rows.stop - rows.start, dim) for rows in spans(vocab_size))
            return
        generator = torch.Generator()
        if not after_centers:
            for _ in centers():
                pass
        generator.set_state(after_centers[0])  # one sequence of numbers goes through both tables
        yield from _uniform(vocab_size, dim, _xavier(vocab_size, dim), generator)

    return Blocks((vocab_size, dim), centers), Blocks((vocab_size, dim), contexts)


def _xavier(vocab_size: int, dim: int) -> float:
    """Glorot and Bengio 2010, Eq. 16, as torch computes it."""
    return math.sqrt(3.0) * nn.init.calculate_gain("linear") * math.sqrt(2.0 / (vocab_size + dim))


def _uniform(vocab_size: int, dim: int, bound: float, generator: torch.Generator) -> Iterator[Tensor]:
    for rows in spans(vocab_size):
        block_BD = torch.empty(rows.stop - rows.start, dim).uniform_(-bound, bound, generator=generator)
        if rows.start == 0:
            block_BD[0] = 0
        yield block_BD
