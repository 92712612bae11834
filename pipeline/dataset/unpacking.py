"""Unpacks rows of a row group from their bits, in machine code; decode.py has checked all bounds before.

R rows to unpack, N rows of a buffer, L targets a row, V words with <unk>.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import CACHE_LINE, compiled, inner, prefetch

Int32 = npt.NDArray[np.int32]
Int16 = npt.NDArray[np.int16]
Column = tuple[npt.NDArray[np.uint64], int, Int32]
"""(words, bits, values): number i is the ``bits`` bits from bit i·bits on; an index into ``values`` if there are any.

``words`` are the column's bytes as 64-bit words that begin at *every* byte, so that one load contains a whole value,
two of at most 28 bits, or four of at most 14.
"""


class Columns(NamedTuple):
    """The columns of a row group that the trainer needs."""

    center: Int32
    targets: Column
    """Its ``values`` hold NO_WORD in place of <unk>, which no example names."""
    num_contexts: Column


class Rows(NamedTuple):
    """Rows of batches: center ids, targets (contexts, negatives, then 0), and how many of the targets are contexts."""

    center_N: Int32
    targets_NL: Int32
    num_contexts_N: Int16

    @classmethod
    def zeros(cls, num_rows: int, max_len: int) -> "Rows":
        """Empty rows."""
        # numpy, unlike torch, asks Linux for 2 MB pages when an array is large.
        return cls.of(lambda *shape, dtype: np.zeros(shape, dtype), num_rows, max_len)

    @classmethod
    def of(cls, zeros: Callable[..., npt.NDArray[Any]], num_rows: int, max_len: int) -> "Rows":
        """Empty rows, in arrays that ``zeros(*shape, dtype=...)`` makes."""
        ids = zeros(num_rows, dtype=np.int32), zeros(num_rows, max_len, dtype=np.int32)
        return cls(*ids, zeros(num_rows, dtype=np.int16))


class Places(NamedTuple):
    """The places in a buffer to which rows are written, beginning with place number ``first``.

    Of every ``stride`` rows of the buffer, the ``share`` rows from ``offset`` on are places, in this order.
    """

    first: int
    share: int
    stride: int
    offset: int

    @classmethod
    def all(cls) -> "Places":
        """All rows of the buffer, in order."""
        return cls(first=0, share=1, stride=1, offset=0)


NO_WORD = -1
"""The value of an index beyond the dictionary."""

MAX_BITS = 28
PLAIN_BITS = 32
"""Bits of plain values; ``values`` is then empty."""

_AHEAD = 12
"""How many rows ahead to prefetch. Without, unpacking takes 1.3 to 1.6 times as long."""

_3, _7 = np.uint64(3), np.uint64(7)


@compiled
def unpack_rows(
    rows_R: Int32, targets_a_context: int, vocab_size: int, columns: Columns, places: Places, out: Rows
) -> bool:
    """Writes rows of a row group to their places. Returns whether all real targets are words, 1 to V - 1.

    Only a row's n·targets_a_context real targets are unpacked, 26 of 60 on average; the rest of the row is set to 0.
    """
    words, bits, values = columns.targets
    length = out.targets_NL.shape[1]
    row_bits, width = np.uint64(length) * np.uint64(bits), np.uint64(bits)
    mask = (np.uint64(1) << width) - np.uint64(1)
    last = rows_R.size - 1
    if not rows_R.size:
        return True
    num_whole = (np.int64(words.size) - 1) * 8 // np.int64(row_bits)  # rows that end before the last word begins
    batch, within = places.first // places.share, places.first % places.share
    before = places.offset + batch * places.stride + within
    out.targets_NL[before] = 0
    signs = np.int32(0)  # negative as soon as one target is
    for index in range(rows_R.size):
        coming = np.int64(np.uint64(rows_R[min(index + _AHEAD, last)]) * row_bits >> _3)
        prefetch(words, coming)
        prefetch(words, coming + CACHE_LINE)
        row, at = rows_R[index], places.offset + batch * places.stride + within
        within += 1
        if within == places.share:
            batch, within = batch + 1, 0
        out.center_N[at] = columns.center[row]
        n = _value(columns.num_contexts, row)
        if n < 0:
            return False
        out.num_contexts_N[at] = n
        num_real = n * targets_a_context
        found_L = out.targets_NL[at]
        if bits <= MAX_BITS and row < num_whole:
            start = np.uint64(row) * row_bits
            in_fours = num_real & ~3 if bits <= 14 else 0
            for j in range(0, in_fours, 4):
                four = words[start >> _3] >> (start & _7)
                found_L[j] = values[four & mask]
                found_L[j + 1] = values[four >> width & mask]
                four = four >> width >> width
                found_L[j + 2] = values[four & mask]
                found_L[j + 3] = values[four >> width & mask]
                start += np.uint64(4) * width
            for j in range(in_fours, num_real - 1, 2):
                two = words[start >> _3] >> (start & _7)
                found_L[j] = values[two & mask]
                found_L[j + 1] = values[two >> width & mask]
                start += width + width
            if num_real & 1:
                found_L[num_real - 1] = values[words[start >> _3] >> (start & _7) & mask]
        else:
            for j in range(num_real):
                target = _value(columns.targets, np.int64(row) * length + j)
                if not 1 <= target < vocab_size:
                    return False
                found_L[j] = target
        found_L[num_real:] = 0
        # The row before, whose writes have reached the cache by now. Checking each value above takes a third longer.
        of_row = np.int32(0)
        for j in range(length):
            of_row |= out.targets_NL[before, j]
        signs |= of_row
        before = at
    return bool(signs | _signs(out.targets_NL[before]) >= 0)


def empty_rows(count: int, places: Places, out: Rows) -> None:
    """Writes ``count`` empty rows to the places."""
    batches_R, within_R = np.divmod(np.arange(places.first, places.first + count), places.share)
    for column_N in out:
        column_N[places.offset + batches_R * places.stride + within_R] = 0


@inner
def _signs(ids_L: Int32) -> Any:
    """A number that is negative if one of the ids is."""
    signs = np.int32(0)
    for j in range(ids_L.size):
        signs |= ids_L[j]
    return signs


@inner
def _value(column: Column, number: int) -> Any:
    """One value at any position; the last values come from the word that ends with the column."""
    words, bits, values = column
    bit = np.uint64(number) * np.uint64(bits)
    at = min(bit >> _3, np.uint64(words.size - 1))
    found = words[at] >> (bit - (at << _3)) & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
    return values[found] if values.size else np.int32(found)
