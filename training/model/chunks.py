"""How the columns of tables are cut among the threads and processes that share them."""

CHUNK = 16
"""Columns of a chunk: one cache line of float32, and one AVX-512 register."""


def width_for(dim: int, size: int) -> int:
    """The columns of each of ``size`` members but the last ones, which may have fewer: whole chunks."""
    return -(-dim // (size * CHUNK)) * CHUNK


def all_have_columns(dim: int, size: int) -> bool:
    """Whether ``width_for`` leaves columns for each member."""
    return (size - 1) * width_for(dim, size) < dim
