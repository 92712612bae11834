"""Examples of sequences: kept tokens as centers, each with the contexts of its window and its negatives. Compiled.

T tokens of a slice, T' of which subsampling keeps; Q sequences; N examples, L = max_len; V words, S slots (noise.py).
"""

import numpy as np
import numpy.typing as npt

from pipeline.sampling.negatives import draw_negatives, redraw_contexts
from pipeline.shared.compiled import compiled, inner
from pipeline.shared.draws import draw, draw_below
from pipeline.shared.randomness import U64

_1, _32 = np.uint64(1), np.uint64(32)


@compiled
def keep_tokens(
    ids_T: npt.NDArray[np.int32],
    lengths_Q: npt.NDArray[np.int64],
    keys_Q: U64,
    repeats_Q: U64,
    epoch_stream: np.uint64,
    keep_V: U64,
    kept_ids_T: npt.NDArray[np.int32],
    kept_positions_T: npt.NDArray[np.int32],
    kept_lengths_Q: npt.NDArray[np.int64],
) -> int:
    """Writes what subsampling keeps of every sequence, end to end: ids, positions before subsampling, lengths.

    Returns how many examples that gives: a sequence of which one token is left has none.
    """
    token = num_kept = num_examples = 0
    for q in range(lengths_Q.size):
        stream = draw(draw(epoch_stream, keys_Q[q]), repeats_Q[q])
        start = num_kept
        for position in range(lengths_Q[q]):
            word = ids_T[token]
            kept_ids_T[num_kept] = word
            kept_positions_T[num_kept] = position
            num_kept += (draw(stream, np.uint64(position)) >> _32) < keep_V[word]
            token += 1
        kept_lengths_Q[q] = num_kept - start
        if kept_lengths_Q[q] > 1:
            num_examples += kept_lengths_Q[q]
    return num_examples


@compiled
def fill_rows(
    kept_ids_T: npt.NDArray[np.int32],
    kept_positions_T: npt.NDArray[np.int32],
    kept_lengths_Q: npt.NDArray[np.int64],
    keys_Q: U64,
    repeats_Q: U64,
    window_stream: np.uint64,
    negative_stream: np.uint64,
    window: int,
    negatives: int,
    slots_S: U64,
    slot_shift: np.uint64,
    ends_V: npt.NDArray[np.int64],
    center_N: npt.NDArray[np.int32],
    rows_NL: npt.NDArray[np.int32],
    num_contexts_N: npt.NDArray[np.int16],
) -> None:
    """Writes the examples: center; contexts, then negatives, then 0; and how many contexts there are."""
    start = example = 0
    for q in range(kept_lengths_Q.size):
        stop = start + kept_lengths_Q[q]
        if stop - start < 2:
            start = stop
            continue
        windows = draw(draw(window_stream, keys_Q[q]), repeats_Q[q])
        noise = draw(draw(negative_stream, keys_Q[q]), repeats_Q[q])
        for token in range(start, stop):
            row_L, position = rows_NL[example], np.uint64(kept_positions_T[token])
            radius: int = 1 + np.int64(draw_below(windows, position, np.uint64(window)))  # type: ignore[assignment]
            n = copy_contexts(kept_ids_T, start, token, stop, radius, row_L)
            real = n * (1 + negatives)
            row_noise = draw(noise, position)
            if draw_negatives(row_L[n:real], row_L[:n], row_noise, slots_S, slot_shift):
                redraw_contexts(row_L[n:real], row_L[:n], row_noise, slots_S, slot_shift, ends_V)
            row_L[real:] = 0
            center_N[example] = kept_ids_T[token]
            num_contexts_N[example] = n
            example += 1
        start = stop


@inner
def copy_contexts(
    ids_T: npt.NDArray[np.int32], start: int, token: int, stop: int, radius: int, row_L: npt.NDArray[np.int32]
) -> int:
    """Writes the contexts of a token, left to right, to the front of a row; returns how many there are.

    A window of radius r reaches r tokens to either side and never over the edges of its sequence, ``start`` and
    ``stop`` (Mikolov et al. 2013; d2l 15.3.3).
    """
    n = 0
    for other in range(max(start, token - radius), min(stop, token + radius + 1)):
        if other != token:
            row_L[n] = ids_T[other]
            n += 1
    return n
