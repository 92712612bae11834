"""The draws of randomness.py one at a time, compiled, for the loops that sample text and order rows."""

import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import compiled, inner
from pipeline.shared.randomness import U64, Purpose, fold, splitmix64, stream

draw = inner(splitmix64)
"""``fold`` of two numbers: the 64 random bits that belong to ``part`` within ``stream``."""

_32 = np.uint64(32)


@inner
def draw_below(stream: np.uint64, part: np.uint64, bound: np.uint64) -> np.uint64:
    """Uniform in [0, bound) for bound < 2^32, from a draw's upper 32 bits.

    The relative error of a value's probability is at most bound / 2^32.
    """
    return ((draw(stream, part) >> _32) * bound) >> _32


@compiled
def sums_of_draws(streams_T: U64, lengths: npt.NDArray[np.int64]) -> U64:
    """The sum, modulo 2^64, of every sequence's draws: one per token, whose position is the part of its stream."""
    sums = np.zeros(lengths.size, dtype=np.uint64)
    token = 0
    for sequence in range(lengths.size):
        for position in range(lengths[sequence]):
            sums[sequence] += draw(streams_T[token], np.uint64(position))
            token += 1
    return sums


def sequence_keys(hashes: U64, lengths: npt.NDArray[np.int64]) -> U64:
    """A 64-bit key, shape (len(lengths),), for every sequence of hashes that lie end to end; their order matters.

    Uniform, and independent of the sequence's place in the corpus. ``lengths`` are >= 1 and sum to ``len(hashes)``.
    """
    return fold(stream(0, Purpose.SEQUENCE), sums_of_draws(hashes, lengths))
