"""The only source of chance: 64-bit integers as a pure function of stable keys.

A *stream* is a 64-bit number made from what the draw is for and from the data it belongs to, never from where or when
it is drawn. ``fold(stream, part)`` is output number ``part`` of SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable
pseudorandom number generators") seeded with ``stream``, so folding in one key after the other walks a tree in which
every leaf is a good random number and no two leaves are related:

    u = fold(fold(stream(seed, Purpose.SUBSAMPLE, epoch), sequence_key), position)

All of it is exact integer arithmetic: the same on every machine and with every version of numpy.
"""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]

GOLDEN, MIX_1, MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
"""The constants of SplitMix64."""

_MASK = (1 << 64) - 1


class Purpose(IntEnum):
    """What a stream is for. The numbers are part of the data format: never change or reuse one."""

    SUBSAMPLE = 1
    WINDOW = 2
    NEGATIVE = 3
    SHARD_ORDER = 4
    ROW_ORDER = 5
    DEMO = 6
    SEQUENCE = 7
    HOLDOUT = 8


def fold(stream: "int | U64", part: "int | npt.NDArray[np.integer]") -> U64:
    """The random 64-bit integers that belong to ``part`` within ``stream``; broadcasts like numpy.

    Uniform over all 2^64 values. Negative parts wrap. Costs about ten passes over the result.
    """
    state = np.asarray(stream, dtype=np.uint64)
    step = np.asarray(part).astype(np.uint64)
    with np.errstate(over="ignore"):
        z = np.asarray(state + (step + np.uint64(1)) * np.uint64(GOLDEN))
        z ^= z >> np.uint64(30)
        z *= np.uint64(MIX_1)
        z ^= z >> np.uint64(27)
        z *= np.uint64(MIX_2)
        z ^= z >> np.uint64(31)
    return z


def stream(seed: int, purpose: Purpose, *parts: int) -> int:
    """The stream of one purpose under one seed, as a Python int in [0, 2^64). ``seed`` may be any integer."""
    state = seed & _MASK
    for part in (purpose, *parts):
        state = int(fold(state, part & _MASK))
    return state


def below(bits: U64, bound: int) -> npt.NDArray[np.int64]:
    """Uniform integers in [0, bound) from random 64-bit integers, by their upper 32 bits; 1 <= bound < 2^32.

    A value's probability is off by at most bound / 2^32 of itself.
    """
    return (((bits >> np.uint64(32)) * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)


def permutation(stream: int, n: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of 0..n-1 (shape (n,), int64): the order of n random keys."""
    return np.argsort(fold(stream, np.arange(n)), kind="stable").astype(np.int64)
