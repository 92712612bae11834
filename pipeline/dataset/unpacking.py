"""Rows of a row group from their bits: machine code, which reads and writes only within what decode.py has checked.

R rows wanted, N rows of a buffer, L targets a row.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from pipeline.shared.compiled import compiled, inner

Int32 = npt.NDArray[np.int32]
Int16 = npt.NDArray[np.int16]
Column = tuple[npt.NDArray[np.uint64], int, Int32]
"""(words, bits, values): value number i is the ``bits`` bits from bit i·bits on, or what ``values`` has at that index.

``words`` are the column's bytes as 64-bit words that begin at *every* byte, so that one load holds a whole value, two
of at most 28 bits, or four of at most 14.
"""


class Columns(NamedTuple):
    """The columns of a row group that the trainer reads."""

    center: Column
    targets: Column
    num_contexts: Column


class Rows(NamedTuple):
    """Rows that a batch is made of: ids, targets (contexts, negatives, then 0), and how many targets are contexts."""

    center_N: Int32
    targets_NL: Int32
    num_contexts_N: Int16

    @classmethod
    def zeros(cls, num_rows: int, max_len: int) -> "Rows":
        """Empty rows."""
        # numpy, unlike torch, asks Linux for 2 MB pages where an array is large.
        ids = np.zeros(num_rows, np.int32), np.zeros((num_rows, max_len), np.int32)
        return cls(*ids, np.zeros(num_rows, np.int16))


class Places(NamedTuple):
    """Where rows go: of every ``stride`` rows of a buffer, ``share`` from row ``offset`` on are places, in this order.

    Rows go to the places from number ``first`` on.
    """

    first: int
    share: int
    stride: int
    offset: int


MAX_BITS = 28
PLAIN_BITS = 32
"""Bits of values that are no indices; ``values`` is then empty."""

_AHEAD = 12
"""Rows between asking for a row's bytes and using them. Unasked, all takes 1.3 to 1.6 times as long."""

_3, _7, _64 = np.uint64(3), np.uint64(7), np.int64(64)


def _ask_for_line(typing: Any, words: Any, at: Any) -> tuple[Any, Callable[..., Any]]:
    """Asks the processor for the cache line of byte ``at`` of ``words``, which need not exist."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        address = builder.gep(builder.bitcast(data, byte), [values[1]])
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(prefetch, [address, *(ir.Constant(i32, number) for number in (0, 3, 1))])  # read, keep, data
        return context.get_dummy_value()

    return types.void(words, types.int64), codegen


_prefetch: Any = intrinsic(_ask_for_line)


@compiled
def unpack_rows(rows_R: Int32, targets_a_context: int, columns: Columns, places: Places, out: Rows) -> None:
    """Writes rows of a row group to their places.

    Of a row only the n·targets_a_context real targets are unpacked, 26 of 60 in the mean; behind them it becomes 0.
    """
    words, bits, values = columns.targets
    length = out.targets_NL.shape[1]
    row_bits, width = np.uint64(length) * np.uint64(bits), np.uint64(bits)
    mask = (np.uint64(1) << width) - np.uint64(1)
    last = rows_R.size - 1
    num_whole = (np.int64(words.size) - 1) * 8 // np.int64(row_bits)  # rows that end before the last word begins
    batch, within = places.first // places.share, places.first % places.share
    for index in range(rows_R.size):
        coming = np.int64(np.uint64(rows_R[min(index + _AHEAD, last)]) * row_bits >> _3)
        _prefetch(words, coming)
        _prefetch(words, coming + _64)
        row, at = rows_R[index], places.offset + batch * places.stride + within
        within += 1
        if within == places.share:
            batch, within = batch + 1, 0
        out.center_N[at] = _value(columns.center, row)
        n = _value(columns.num_contexts, row)
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
                found_L[j] = _value(columns.targets, np.int64(row) * length + j)
        found_L[num_real:] = 0


def empty_rows(count: int, places: Places, out: Rows) -> None:
    """Writes ``count`` empty rows as ``unpack_rows`` writes others."""
    batches_R, within_R = np.divmod(np.arange(places.first, places.first + count), places.share)
    for column_N in out:
        column_N[places.offset + batches_R * places.stride + within_R] = 0


@inner
def _value(column: Column, number: int) -> Any:
    """One value, wherever it lies; the last ones from a word that ends with the column."""
    words, bits, values = column
    bit = np.uint64(number) * np.uint64(bits)
    at = min(bit >> _3, np.uint64(words.size - 1))
    found = words[at] >> (bit - (at << _3)) & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1))
    return values[found] if values.size else np.int32(found)
