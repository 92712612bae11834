"""The draws of randomness.py one at a time, compiled: what the loops of sampling call."""

import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import compiled, inner
from pipeline.shared.randomness import GOLDEN, MIX_1, MIX_2, U64, Purpose, fold, stream

_GOLDEN, _MIX_1, _MIX_2 = np.uint64(GOLDEN), np.uint64(MIX_1), np.uint64(MIX_2)
_1, _27, _30, _31, _32 = (np.uint64(number) for number in (1, 27, 30, 31, 32))


@inner
def draw(stream: np.uint64, part: np.uint64) -> np.uint64:
    """``fold`` of two numbers: the 64 random bits that belong to ``part`` within ``stream``."""
    z = stream + (part + _1) * _GOLDEN
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    return z ^ (z >> _31)


@inner
def draw_below(stream: np.uint64, part: np.uint64, bound: np.uint64) -> np.uint64:
    """Uniform in [0, bound), from the upper 32 bits of a draw; bound < 2^32. Off by at most bound / 2^32 of itself."""
    return ((draw(stream, part) >> _32) * bound) >> _32


@compiled
def sums_of_draws(streams_T: U64, lengths: npt.NDArray[np.int64]) -> U64:
    """The sum, modulo 2^64, of the draws of every sequence; each token has a stream, and its position is the part."""
    sums = np.zeros(lengths.size, dtype=np.uint64)
    token = 0
    for sequence in range(lengths.size):
        for position in range(lengths[sequence]):
            sums[sequence] += draw(streams_T[token], np.uint64(position))
            token += 1
    return sums


def sequence_keys(hashes: U64, lengths: npt.NDArray[np.int64]) -> U64:
    """A 64-bit key for every sequence of hashes laid end to end (shape (len(lengths),)); order matters.

    Uniform, and the same wherever the sequence stands. ``lengths`` are >= 1 and sum to ``len(hashes)``.
    """
    return fold(stream(0, Purpose.SEQUENCE), sums_of_draws(hashes, lengths))
