"""The only source of chance: 64-bit integers as a pure function of stable keys.

A *stream* is a 64-bit number made from the purpose of a draw and from the data that the draw belongs to, never from
the place or time of the draw. ``fold(stream, part)`` is output number ``part`` of SplitMix64 seeded with
``stream``. Folding in one key after the other walks down a tree in which every leaf is a good random number and no two
leaves are related:

    u = fold(fold(stream(seed, Purpose.SUBSAMPLE, epoch), sequence_key), position)

The arithmetic is on integers and exact: the same on every machine and with every version of numpy.
"""

from enum import IntEnum
from typing import TypeVar

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
Number = TypeVar("Number", np.uint64, U64)

_MASK = (1 << 64) - 1
_GOLDEN, _MIX_1, _MIX_2 = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_1, _27, _30, _31 = (np.uint64(number) for number in (1, 27, 30, 31))


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
    SHOP = 9
    STUDY = 10


def splitmix64(stream: Number, part: Number) -> Number:
    """Output number ``part`` of SplitMix64 with seed ``stream``: arrays in numpy, numbers in compiled code (draws.py).

    Uniform over all 2^64 values, and a bijection of ``part`` for each stream. Source: Steele, Lea & Flood 2014, "Fast
    splittable pseudorandom number generators".
    """
    z: Number = stream + (part + _1) * _GOLDEN
    z = (z ^ (z >> _30)) * _MIX_1
    z = (z ^ (z >> _27)) * _MIX_2
    z ^= z >> _31
    return z


def fold(stream: "int | U64", part: "int | npt.NDArray[np.integer]") -> U64:
    """The random 64-bit integers that belong to ``part`` within ``stream``; broadcasts like numpy.

    Negative parts wrap around. Costs about ten passes over the result.
    """
    with np.errstate(over="ignore"):
        return np.asarray(splitmix64(np.asarray(stream, dtype=np.uint64), np.asarray(part).astype(np.uint64)))


def stream(seed: int, purpose: Purpose, *parts: int) -> int:
    """The stream of one purpose under one seed, as a Python int in [0, 2^64). ``seed`` may be any integer."""
    state = seed & _MASK
    for part in (purpose, *parts):
        state = int(fold(state, part & _MASK))
    return state


def permutation(stream: int, n: int) -> npt.NDArray[np.int64]:
    """A uniform permutation of 0..n-1 (shape (n,), int64): the order of n random keys."""
    return np.argsort(fold(stream, np.arange(n)), kind="stable").astype(np.int64)
