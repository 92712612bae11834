"""Windows: the radius of each center's window, and the contexts in it. Compiled."""

import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import inner
from pipeline.shared.draws import draw_below


@inner
def draw_radius(stream: np.uint64, position: np.uint64, window: int) -> int:
    """Uniform in 1..window (word2vec.c; d2l 15.3.3). ``mean_contexts`` depends on this law."""
    return 1 + np.int64(draw_below(stream, position, np.uint64(window)))  # type: ignore[return-value]


def mean_contexts(window: int) -> int:
    """The mean number of contexts of a center far from its sequence's ends: twice the mean of ``draw_radius``."""
    return window + 1


@inner
def copy_contexts(
    ids_T: npt.NDArray[np.int32], start: int, token: int, stop: int, radius: int, row_L: npt.NDArray[np.int32]
) -> int:
    """Writes the contexts of a token, left to right, to the front of a row. Returns their number.

    A window of radius r reaches r tokens to either side, but not beyond the ends of its sequence, ``start`` and
    ``stop`` (Mikolov et al. 2013; d2l 15.3.3).
    """
    n = 0
    for other in range(max(start, token - radius), min(stop, token + radius + 1)):
        if other != token:
            row_L[n] = ids_T[other]
            n += 1
    return n
