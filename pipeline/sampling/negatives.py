"""Negatives: noise words, drawn with replacement, that are not among their own row's contexts. Compiled.

A row has n contexts and J = n·K negatives. V words, S slots of the alias table (noise.py).
"""

import numpy as np
import numpy.typing as npt

from pipeline.sampling.noise import Noise
from pipeline.shared.compiled import inner
from pipeline.shared.draws import draw

MAX_REDRAWS = 16

_COIN = np.uint64(0xFFFFFFFF)
_16, _32 = np.uint64(16), np.uint64(32)


@inner
def draw_negatives(
    negatives_J: npt.NDArray[np.int32], contexts_n: npt.NDArray[np.int32], stream: np.uint64, noise: Noise
) -> bool:
    """Fills ``negatives_J`` with noise words; place j gets draw number j of ``stream``.

    Returns True if one of them is a context; then call ``redraw_contexts``. That is a separate function because this
    one runs for every row and is a fifth slower if the compiler optimises both together.
    """
    for place in range(negatives_J.size):
        negatives_J[place] = noise_word(draw(stream, np.uint64(place)), noise)
    hit = 0
    for context in contexts_n:  # this order of loops, without a break, lets the compiler compare many at a time
        for place in range(negatives_J.size):
            if negatives_J[place] == context:
                hit = 1
    return hit > 0


@inner
def redraw_contexts(
    negatives_J: npt.NDArray[np.int32], contexts_n: npt.NDArray[np.int32], stream: np.uint64, noise: Noise
) -> None:
    """Replaces each negative that is a context by new draws until it is none (d2l 15.3.4).

    Round MAX_REDRAWS draws from the exact conditional law over the other words, so the loop ends. Draw number
    (place, round) depends on ``stream`` alone.
    """
    for place in range(negatives_J.size):
        redraw = 0
        while is_among(negatives_J[place], contexts_n):
            redraw += 1
            bits = draw(stream, np.uint64(place) + (np.uint64(redraw) << _16))  # a row has fewer than 2^15 places
            if redraw < MAX_REDRAWS:
                negatives_J[place] = noise_word(bits, noise)
            else:
                negatives_J[place] = allowed_word(bits, contexts_n, noise.ends_V)


@inner
def noise_word(bits: np.uint64, noise: Noise) -> np.int32:
    """The word of 64 random bits: the highest, from ``slot_shift`` up, choose the slot, the low 32 are its coin."""
    slot = bits >> noise.slot_shift
    entry = noise.slots_S[slot]
    return np.int32(slot if (bits & _COIN) < (entry >> _32) else entry & _COIN)


@inner
def is_among(word: np.int32, words: npt.NDArray[np.int32]) -> bool:
    for other in words:  # noqa: SIM110 (numba has no any)
        if word == other:
            return True
    return False


@inner
def allowed_word(bits: np.uint64, contexts_n: npt.NDArray[np.int32], ends_V: npt.NDArray[np.int64]) -> np.int32:
    """Draws a word from the noise law without the contexts.

    Inverts the cumulative law with the contexts' intervals cut out: from the smallest id up, a number at or beyond a
    forbidden interval moves up by the interval's length.
    """
    allowed = ends_V[-1]
    word = next_above(0, contexts_n)
    while word:
        allowed -= ends_V[word] - ends_V[word - 1]
        word = next_above(word, contexts_n)
    x = np.int64(bits % np.uint64(allowed))
    word = next_above(0, contexts_n)
    while word and x >= ends_V[word - 1]:
        x += ends_V[word] - ends_V[word - 1]
        word = next_above(word, contexts_n)
    return word_at(x, ends_V)


@inner
def word_at(x: np.int64, ends_V: npt.NDArray[np.int64]) -> np.int32:
    """The word whose interval of the cumulative law contains ``x``: the first that ends beyond ``x``.

    Written out because numba's own searchsorted takes half a second to compile.
    """
    first, last = 0, ends_V.size
    while first < last:
        middle = (first + last) >> 1
        if ends_V[middle] <= x:
            first = middle + 1
        else:
            last = middle
    return np.int32(first)


@inner
def next_above(least: int, words: npt.NDArray[np.int32]) -> int:
    """The smallest of the words that is greater than ``least``, or 0. Sorting would need memory for a copy."""
    found = 0
    for word in words:
        if word > least and (word < found or found == 0):
            found = word
    return found
