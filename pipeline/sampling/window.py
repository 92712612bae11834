"""Windows: the radius of each center's window, and the contexts in it. Compiled.

k contexts of a center.
"""

import numpy as np
import numpy.typing as npt

from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.compiled import inner
from pipeline.shared.draws import draw_below


@inner
def draw_radius(stream: np.uint64, position: np.uint64, window: int) -> int:
    """Uniform in 1..window (word2vec.c; d2l 15.3.3). ``mean_contexts`` depends on this law."""
    return 1 + np.int64(draw_below(stream, position, np.uint64(window)))  # type: ignore[return-value]


def mean_contexts(config: PipelineConfig) -> float:
    """The mean number of contexts of a center far from its sequence's ends. It follows from ``draw_radius``."""
    if config.window_kind == "fixed" or isinstance(config.window, str):
        return config.max_contexts
    return config.max_contexts * (config.window + 1) / (2 * config.window)


@inner
def copy_contexts(ids_T: npt.NDArray[np.int32], begin: int, token: int, end: int, row_L: npt.NDArray[np.int32]) -> None:
    """Writes the tokens of a window, which is ``begin`` to before ``end``, to the front of a row, without the center.

    Their order is that of the sequence (Mikolov et al. 2013; d2l 15.3.3).
    """
    n = 0
    for other in range(begin, end):
        if other != token:
            row_L[n] = ids_T[other]
            n += 1


@inner
def choose_contexts(
    ids_T: npt.NDArray[np.int32], begin: int, token: int, end: int, stream: np.uint64, contexts_k: npt.NDArray[np.int32]
) -> None:
    """Fills ``contexts_k`` with k tokens of a window that has more, without the center, in the sequence's order.

    A uniform sample without replacement, by Floyd's algorithm (Bentley & Floyd 1987, "A sample of brilliance"), which
    takes k draws however long the sequence is. Draw number ``slot`` depends on ``stream`` alone.
    """
    num_others, k = end - begin - 1, contexts_k.size
    for slot in range(k):  # until the end, contexts_k holds numbers of tokens within the window, in rising order
        last = num_others - k + slot
        chosen = int(draw_below(stream, np.uint64(slot), np.uint64(last + 1)))
        place = slot
        while place > 0 and contexts_k[place - 1] > chosen:
            place -= 1
        if place > 0 and contexts_k[place - 1] == chosen:
            chosen, place = last, slot  # ``last`` is above all that were chosen before
        for moved in range(slot, place, -1):
            contexts_k[moved] = contexts_k[moved - 1]
        contexts_k[place] = chosen
    for slot in range(k):
        other = begin + contexts_k[slot]
        contexts_k[slot] = ids_T[other + (other >= token)]
