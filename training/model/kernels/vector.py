"""What numba cannot express in Python: 16 floats at a time, four rows at a time, and atomic loads and stores.

Each array has an argument with an element offset, which is not checked. ``num_chunks`` is a number of chunks of 16
columns. A loop over the columns in Python gives the same results at half the speed: its sums do not stay in registers,
and every row loads the center again. On processors with narrower vectors, LLVM splits the chunks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numba
import numba.core.cgutils
import numba.extending
import numpy as np
from llvmlite import ir

from pipeline.shared.compiled import inner_fast

# numba has no types for mypy.
types: Any = numba.types
cgutils: Any = numba.core.cgutils
intrinsic: Any = numba.extending.intrinsic

CHUNK = 16
"""Columns of a chunk: one cache line of float32, and one AVX-512 register."""

TOGETHER = 4
"""Rows that ``dot_4`` and ``scatter_4`` process at once: enough sums to hide the latency of an addition."""

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, CHUNK)

Codegen = Callable[[Any, ir.IRBuilder, Any, Sequence[Any]], Any]


def _dot(num_rows: int) -> Any:
    def dot(typing: Any, rows: Any, offsets: Any, other: Any, offset: Any, num_chunks: Any) -> tuple[Any, Codegen]:
        """Dot products of ``rows[offsets]`` with ``other[offset]``, as a tuple."""
        signature = types.UniTuple(types.float32, num_rows)(rows, offsets, other, offset, num_chunks)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
            kinds = signature.args
            ours = _pointers(context, builder, kinds[0], values[0], cgutils.unpack_tuple(builder, values[1]))
            (theirs,) = _pointers(context, builder, kinds[2], values[2], [values[3]])
            zero = ir.Constant(_VECTOR, [0.0] * CHUNK)
            sums = [cgutils.alloca_once_value(builder, zero) for _ in ours]
            with cgutils.for_range(builder, values[4]) as loop:
                at = builder.mul(loop.index, ir.Constant(_INT64, CHUNK))
                factor = _load(builder, theirs, at)
                for row, total in zip(ours, sums, strict=True):
                    builder.store(_fma(builder, _load(builder, row, at), factor, builder.load(total)), total)
            return context.make_tuple(builder, signature.return_type, [_sum(builder, total) for total in sums])

        return signature, codegen

    return intrinsic(dot)


def _scatter(num_rows: int) -> Any:
    def scatter(
        typing: Any,
        rows: Any,
        offsets: Any,
        moved: Any,
        other: Any,
        offset: Any,
        total: Any,
        total_offset: Any,
        slopes: Any,
        steps: Any,
        num_chunks: Any,
    ) -> tuple[Any, Codegen]:
        """For each offset in turn: total[total_offset] += slope·rows[offset], then rows[moved] += step·other[offset].

        If ``moved`` equals ``offsets``, a repeated offset reads the row that was just changed.
        """
        signature = types.void(rows, offsets, moved, other, offset, total, total_offset, slopes, steps, num_chunks)

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
            kinds = signature.args
            read, written = (
                _pointers(context, builder, kinds[0], values[0], cgutils.unpack_tuple(builder, places))
                for places in values[1:3]
            )
            (theirs,) = _pointers(context, builder, kinds[3], values[3], [values[4]])
            (sums,) = _pointers(context, builder, kinds[5], values[5], [values[6]])
            slope = [_splat(builder, value) for value in cgutils.unpack_tuple(builder, values[7])]
            step = [_splat(builder, value) for value in cgutils.unpack_tuple(builder, values[8])]
            with cgutils.for_range(builder, values[9]) as loop:
                at = builder.mul(loop.index, ir.Constant(_INT64, CHUNK))
                factor, summed = _load(builder, theirs, at), _load(builder, sums, at)
                for index in range(num_rows):
                    row = _load(builder, read[index], at)
                    summed = _fma(builder, slope[index], row, summed)
                    moving = _load(builder, written[index], at)
                    _store(builder, _fma(builder, step[index], factor, moving), written[index], at)
                _store(builder, summed, sums, at)
            return context.get_dummy_value()

        return signature, codegen

    return intrinsic(scatter)


dot_1, dot_4 = _dot(1), _dot(TOGETHER)
scatter_1, scatter_4 = _scatter(1), _scatter(TOGETHER)


@inner_fast
def power_of_two(exponent: np.float32) -> np.float32:
    """2 to an integral float32 power from -126 to 127, made from its bits."""
    return np.int32((np.int32(exponent) + np.int32(127)) << np.int32(23)).view(np.float32)


@inner_fast
def first_guess(number: np.float32) -> np.float32:
    """1 / sqrt(number) to 3.5 % for a positive float32, by halving its exponent (the constant is Lomont's, 2003)."""
    return np.int32(np.int32(0x5F375A86) - (np.float32(number).view(np.int32) >> np.int32(1))).view(np.float32)


def _atomic(operation: str) -> Any:
    def change(typing: Any, counters: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
        """Changes ``counters[index]``, in one order with all other such changes that all threads agree on."""

        def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
            (place,) = _pointers(context, builder, signature.args[0], values[0], [values[1]])
            builder.atomic_rmw(operation, place, values[2], "seq_cst")
            return context.get_dummy_value()

        return types.void(counters, types.int64, types.int64), codegen

    return intrinsic(change)


exchange, add = _atomic("xchg"), _atomic("add")


@intrinsic  # type: ignore[untyped-decorator]
def load_acquire(typing: Any, counters: Any, index: Any) -> tuple[Any, Codegen]:
    """``counters[index]``; what its writer wrote before it can be read afterwards (acquire order)."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        (place,) = _pointers(context, builder, signature.args[0], values[0], [values[1]])
        return builder.load_atomic(place, "acquire", 8)

    return types.int64(counters, index), codegen


def _pointers(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, offsets: Sequence[Any]) -> list[Any]:
    data = context.make_array(kind)(context, builder, array).data
    return [builder.gep(data, [offset]) for offset in offsets]


def _load(builder: ir.IRBuilder, row: Any, at: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(row, [at]), _VECTOR.as_pointer()), align=4)


def _store(builder: ir.IRBuilder, value: Any, row: Any, at: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(row, [at]), _VECTOR.as_pointer()), align=4)


def _fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fmuladd = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{CHUNK}f32")
    return builder.call(fmuladd, [a, b, c])


def _sum(builder: ir.IRBuilder, total: Any) -> Any:
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{CHUNK}f32")
    return builder.call(reduce, [ir.Constant(_FLOAT, 0.0), builder.load(total)], fastmath=("reassoc",))


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    nothing = ir.Constant(_VECTOR, ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT32, CHUNK), [0] * CHUNK))
