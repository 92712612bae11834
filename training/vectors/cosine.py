"""Cosines of vectors; S rows, D dimensions."""

import numpy as np
import numpy.typing as npt

from pipeline.shared.errors import InputError

Float32 = npt.NDArray[np.float32]

SHORT = 1e-15
"""The squares of shorter vectors lose bits in float32, or become 0."""


def unit(rows_SD: Float32) -> Float32:
    """Vectors of length 1; a zero vector stays zero."""
    return np.asarray(rows_SD / norms(rows_SD)[:, None])


def norms(rows_SD: Float32) -> Float32:
    """The length of each row; a zero vector's is the smallest positive number, so that its cosines are 0.

    Raises InputError for a row that is too long for float32, and for one with values that are no numbers.
    """
    with np.errstate(over="ignore"):
        lengths_S = np.linalg.norm(rows_SD, axis=1)
        odd_S = (lengths_S < SHORT) | (lengths_S == np.inf)  # the squares do not fit into float32
        squares_S = np.einsum("sd,sd->s", rows_SD[odd_S], rows_SD[odd_S], dtype=np.float64)
        lengths_S[odd_S] = np.sqrt(squares_S)
    if np.isnan(lengths_S).any():
        raise InputError(f"found values that are no numbers in vector {int(np.isnan(lengths_S).argmax())}")
    if np.isinf(lengths_S).any():
        raise InputError("found a vector longer than 3.4e38, which has no cosine in float32; scale the vectors")
    return np.asarray(np.maximum(lengths_S, np.finfo(np.float32).tiny))


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
