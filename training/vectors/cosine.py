"""Cosines of vectors; S rows, D dimensions."""

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]


def unit(rows_SD: Float32) -> Float32:
    """Vectors of length 1; a zero vector stays zero."""
    return np.asarray(rows_SD / norms(rows_SD)[:, None])


def norms(rows_SD: Float32) -> Float32:
    """The length of each row; a zero vector's is the smallest positive number, so that its cosines are 0."""
    return np.asarray(np.maximum(np.linalg.norm(rows_SD, axis=1), np.finfo(np.float32).tiny))


def cosines(first_SD: Float32, second_SD: Float32) -> npt.NDArray[np.float64]:
    """The cosine of each pair of rows, shape (S,); 0 if one of the two is zero.

    Equal rows have exactly 1: both squares are under one root, and sqrt(x * x) is exactly x.
    """
    dots_S, first_S, second_S = (
        np.einsum("sd,sd->s", left_SD, right_SD, dtype=np.float64)
        for left_SD, right_SD in ((first_SD, second_SD), (first_SD, first_SD), (second_SD, second_SD))
    )
    squares_S = first_S * second_S
    return np.asarray(dots_S / np.sqrt(np.where(squares_S > 0, squares_S, 1)))
