"""Windows: from kept token ids to centers and their contexts. Pure numpy.

N tokens (and so centers), C = 2·window context places.
"""

import numpy as np
import numpy.typing as npt


def contexts(
    ids_N: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64], radius_N: npt.NDArray[np.int64], window: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The contexts of every token: (contexts_NC, num_contexts_N), left to right, 0 after the last.

    ``ids_N`` holds sequences of ``lengths`` end to end; a window of radius r reaches r tokens to either side and never
    over a sequence's edge (Mikolov et al. 2013; d2l 15.3.3).
    """
    starts = np.cumsum(lengths) - lengths
    position_N = np.arange(ids_N.size) - np.repeat(starts, lengths)
    after_N = np.repeat(lengths, lengths) - 1 - position_N
    left_N = np.minimum(radius_N, position_N)
    right_N = np.minimum(radius_N, after_N)
    num_contexts_N = left_N + right_N

    slot_C = np.arange(2 * window)
    offset_NC = slot_C - left_N[:, None]
    offset_NC += offset_NC >= 0  # the center is not its own context
    is_context_NC = slot_C < num_contexts_N[:, None]
    index_NC = np.where(is_context_NC, np.arange(ids_N.size)[:, None] + offset_NC, 0)
    contexts_NC = np.where(is_context_NC, ids_N[index_NC], 0).astype(np.int32) if ids_N.size else _empty(window)
    return contexts_NC, num_contexts_N


def _empty(window: int) -> npt.NDArray[np.int32]:
    return np.zeros((0, 2 * window), dtype=np.int32)
