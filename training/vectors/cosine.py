"""Cosines of vectors, and the chunks in which a table is worked through, since a whole copy may not fit into memory.

S rows, D dimensions.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pipeline.shared.errors import InputError

Float32 = npt.NDArray[np.float32]

SHORT = 1e-15
"""The squares of shorter vectors lose bits in float32, or become 0."""

CHUNK_VALUES = 1 << 20
"""How many numbers of a table are worked on at once: 4 MB, or about 10 MB as text."""


def chunks(num_rows: int, width: int) -> Iterator[slice]:
    """Slices of the rows, in order, of about CHUNK_VALUES numbers each, if a row takes ``width`` of them."""
    size = max(1, CHUNK_VALUES // max(1, width))
    return (slice(begin, min(begin + size, num_rows)) for begin in range(0, num_rows, size))


def unit(rows_SD: Float32) -> Float32:
    """Vectors of length 1; a zero vector stays zero."""
    return np.asarray(rows_SD / norms(rows_SD)[:, None])


def norms(rows_SD: Float32) -> Float32:
    """The length of each row; a zero vector's is the smallest positive number, so that its cosines are 0.

    Raises InputError for a row that is too long for float32, and for one with values that are no numbers.
    """
    lengths_S = lengths(rows_SD)
    odd_S = np.flatnonzero((lengths_S < SHORT) | (lengths_S == np.inf))  # the squares do not fit into float32
    with np.errstate(over="ignore"):
        for chunk in chunks(len(odd_S), rows_SD.shape[1]):
            odd_BD = rows_SD[odd_S[chunk]]
            lengths_S[odd_S[chunk]] = np.sqrt(np.einsum("bd,bd->b", odd_BD, odd_BD, dtype=np.float64))
    if np.isnan(lengths_S).any():
        raise InputError(f"found values that are no numbers in vector {int(np.isnan(lengths_S).argmax())}")
    if np.isinf(lengths_S).any():
        raise InputError("found a vector longer than 3.4e38, which has no cosine in float32; scale the vectors")
    return np.asarray(np.maximum(lengths_S, np.finfo(np.float32).tiny))


def lengths(rows_SD: Float32) -> Float32:
    """The length of each row, computed in float32: infinite beyond 1e19, and 0 below 1e-23."""
    lengths_S = np.empty(len(rows_SD), np.float32)
    with np.errstate(over="ignore"):
        for chunk in chunks(*rows_SD.shape):
            lengths_S[chunk] = np.linalg.norm(rows_SD[chunk], axis=1)
    return lengths_S


def cosines(first_SD: Float32, second_SD: Float32) -> npt.NDArray[np.float64]:
    """The cosine of each pair of rows, shape (S,); 0 if one of the two is zero. Raises InputError as ``norms`` does.

    Equal rows have exactly 1: both squares are under one root, and sqrt(x * x) is exactly x.
    """
    dots_S, first_S, second_S = (
        np.einsum("sd,sd->s", left_SD, right_SD, dtype=np.float64)
        for left_SD, right_SD in ((first_SD, second_SD), (first_SD, first_SD), (second_SD, second_SD))
    )
    squares_S = first_S * second_S
    if np.isnan(dots_S).any():
        raise InputError(f"found values that are no numbers in pair {int(np.isnan(dots_S).argmax())} of vectors")
    return np.asarray(dots_S / np.sqrt(np.where(squares_S > 0, squares_S, 1)))
