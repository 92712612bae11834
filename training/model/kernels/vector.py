"""What numba cannot express in Python: 16 floats at a time, four rows at a time, and atomic loads and stores.

No index is checked. An ``offset`` counts elements. ``num_chunks`` is a number of chunks of 16 columns. A loop over the
columns in Python gives the same results at half the speed: its sums do not stay in registers, and every row loads the
center again. On processors with narrower vectors, LLVM splits the chunks.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numba
import numba.core.cgutils
import numba.extending
import numpy as np
from llvmlite import ir

from pipeline.shared.compiled import inner_fast
from training.train_config import CHUNK

# numba has no types for mypy.
types: Any = numba.types
cgutils: Any = numba.core.cgutils
intrinsic: Any = numba.extending.intrinsic

TOGETHER = 4
"""Rows that ``dot_4`` and ``scatter_4`` process at once: enough sums to hide the latency of an addition."""

AHEAD = 32
"""How many ids ahead ``dot_4`` prefetches. An array of ids needs as much room behind the last."""

_FLOAT, _INT32, _INT64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, CHUNK)

Codegen = Callable[[Any, ir.IRBuilder, Any, Sequence[Any]], Any]


@intrinsic  # type: ignore[untyped-decorator]
def dot_4(
    typing: Any, rows: Any, ids: Any, at: Any, shift: Any, other: Any, offset: Any, num_chunks: Any, dots: Any
) -> tuple[Any, Codegen]:
    """Writes to ``dots[at : at + 4]`` the dot products of ``rows[ids[at : at + 4], shift:]`` with ``other[offset]``.

    Prefetches the rows of the ids that are ``AHEAD`` behind.
    """
    signature = types.void(rows, ids, types.int64, types.int64, other, types.int64, types.int64, dots)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        kinds, at_id, shift = signature.args, values[2], values[3]
        ours, later = (
            [builder.gep(row, [shift]) for row in _rows(context, builder, kinds[:2], values[:2], ids)]
            for ids in (at_id, builder.add(at_id, ir.Constant(_INT64, AHEAD)))
        )
        (theirs,) = _pointers(context, builder, kinds[4], values[4], [values[5]])
        (results,) = _pointers(context, builder, kinds[7], values[7], [at_id])
        zero = ir.Constant(_VECTOR, [0.0] * CHUNK)
        sums = [cgutils.alloca_once_value(builder, zero) for _ in ours]
        with cgutils.for_range(builder, values[6]) as loop:
            at = builder.mul(loop.index, ir.Constant(_INT64, CHUNK))
            factor = _load(builder, theirs, at)
            for row in later:
                _prefetch(builder, builder.gep(row, [at]))
            for row, total in zip(ours, sums, strict=True):
                builder.store(_fma(builder, _load(builder, row, at), factor, builder.load(total)), total)
        _store_sums(builder, [builder.load(total) for total in sums], results)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def scatter_4(
    typing: Any,
    rows: Any,
    ids: Any,
    at: Any,
    shift: Any,
    other: Any,
    offset: Any,
    total: Any,
    total_offset: Any,
    slopes: Any,
    steps: Any,
    num_chunks: Any,
) -> tuple[Any, Codegen]:
    """For each of ``ids[at : at + 4]`` in turn, with its slope and its step:

    total[total_offset] += slope·rows[id], then what lies ``shift`` floats behind rows[id] += step·other[offset].
    If ``shift`` is 0, a repeated id reads the row that was just changed.
    """
    int64 = types.int64
    signature = types.void(rows, ids, int64, int64, other, int64, total, int64, slopes, steps, int64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        kinds, at_id = signature.args, values[2]
        read = _rows(context, builder, kinds[:2], values[:2], at_id)
        written = [builder.gep(row, [values[3]]) for row in read]
        (theirs,) = _pointers(context, builder, kinds[4], values[4], [values[5]])
        (sums,) = _pointers(context, builder, kinds[6], values[6], [values[7]])
        every = [builder.add(at_id, ir.Constant(_INT64, index)) for index in range(TOGETHER)]
        slope, step = (
            [_splat(builder, builder.load(place)) for place in _pointers(context, builder, kinds[k], values[k], every)]
            for k in (8, 9)
        )
        with cgutils.for_range(builder, values[10]) as loop:
            at = builder.mul(loop.index, ir.Constant(_INT64, CHUNK))
            factor, summed = _load(builder, theirs, at), _load(builder, sums, at)
            for index in range(TOGETHER):
                row = _load(builder, read[index], at)
                summed = _fma(builder, slope[index], row, summed)
                moving = _load(builder, written[index], at)
                _store(builder, _fma(builder, step[index], factor, moving), written[index], at)
            _store(builder, summed, sums, at)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def fill(typing: Any, array: Any, begin: Any, end: Any, value: Any) -> tuple[Any, Codegen]:
    """Writes ``value`` to ``array[begin:end]`` and to at most 15 places behind."""
    signature = types.void(array, types.int64, types.int64, array.dtype)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        chunk = _splat(builder, values[3])
        with cgutils.for_range_slice(builder, values[1], values[2], ir.Constant(_INT64, CHUNK), inc=True) as (at, _):
            (place,) = _pointers(context, builder, signature.args[0], values[0], [at])
            builder.store(chunk, builder.bitcast(place, chunk.type.as_pointer()), align=4)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def copy(typing: Any, source: Any, begin: Any, count: Any, target: Any, at: Any) -> tuple[Any, Codegen]:
    """Copies ``source[begin : begin + count]``, counted as if it were flat, to ``target[at:]``."""
    signature = types.void(source, types.int64, types.int64, target, types.int64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        kinds = signature.args
        (read,) = _pointers(context, builder, kinds[0], values[0], [values[1]])
        (written,) = _pointers(context, builder, kinds[3], values[3], [values[4]])
        cgutils.raw_memcpy(builder, written, read, values[2], kinds[0].dtype.bitwidth // 8)
        return context.get_dummy_value()

    return signature, codegen


@intrinsic  # type: ignore[untyped-decorator]
def norm_square(typing: Any, rows: Any, offset: Any, num_chunks: Any) -> tuple[Any, Codegen]:
    """The square of the norm of ``rows[offset]``."""
    signature = types.float32(rows, types.int64, types.int64)

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        (row,) = _pointers(context, builder, signature.args[0], values[0], [values[1]])
        total = cgutils.alloca_once_value(builder, ir.Constant(_VECTOR, [0.0] * CHUNK))
        with cgutils.for_range(builder, values[2]) as loop:
            chunk = _load(builder, row, builder.mul(loop.index, ir.Constant(_INT64, CHUNK)))
            builder.store(_fma(builder, chunk, chunk, builder.load(total)), total)
        return _sum(builder, builder.load(total))

    return signature, codegen


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


@intrinsic  # type: ignore[untyped-decorator]
def call(typing: Any, address: Any, turn: Any, count: Any) -> tuple[Any, Codegen]:
    """Calls the C function ``void (int64, int64)`` at an address."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_INT64, _INT64])
        builder.call(builder.inttoptr(values[0], kind.as_pointer()), values[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _pointers(context: Any, builder: ir.IRBuilder, kind: Any, array: Any, offsets: Sequence[Any]) -> list[Any]:
    data = context.make_array(kind)(context, builder, array).data
    return [builder.gep(data, [offset]) for offset in offsets]


def _rows(context: Any, builder: ir.IRBuilder, kinds: Sequence[Any], values: Sequence[Any], at: Any) -> list[Any]:
    """Where the rows of the four ids from ``at`` begin. ``values`` are the rows, (V, C), and the ids."""
    rows = context.make_array(kinds[0])(context, builder, values[0])
    _, width = cgutils.unpack_tuple(builder, rows.shape)
    places = _pointers(
        context, builder, kinds[1], values[1], [builder.add(at, ir.Constant(_INT64, k)) for k in range(TOGETHER)]
    )
    return [builder.gep(rows.data, [builder.mul(builder.sext(builder.load(place), _INT64), width)]) for place in places]


def _load(builder: ir.IRBuilder, row: Any, at: Any) -> Any:
    return builder.load(builder.bitcast(builder.gep(row, [at]), _VECTOR.as_pointer()), align=4)


def _store(builder: ir.IRBuilder, value: Any, row: Any, at: Any) -> None:
    builder.store(value, builder.bitcast(builder.gep(row, [at]), _VECTOR.as_pointer()), align=4)


def _prefetch(builder: ir.IRBuilder, place: Any) -> None:
    byte = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [byte, _INT32, _INT32, _INT32])
    llvm_prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
    builder.call(llvm_prefetch, [builder.bitcast(place, byte), *(ir.Constant(_INT32, number) for number in (0, 3, 1))])


def _fma(builder: ir.IRBuilder, a: Any, b: Any, c: Any) -> Any:
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    fmuladd = cgutils.get_or_insert_function(builder.module, kind, f"llvm.fmuladd.v{CHUNK}f32")
    return builder.call(fmuladd, [a, b, c])


def _sum(builder: ir.IRBuilder, total: Any) -> Any:
    kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
    reduce = cgutils.get_or_insert_function(builder.module, kind, f"llvm.vector.reduce.fadd.v{CHUNK}f32")
    return builder.call(reduce, [ir.Constant(_FLOAT, 0.0), total], fastmath=("reassoc",))


def _store_sums(builder: ir.IRBuilder, four: Sequence[Any], place: Any) -> None:
    """Stores the sums of four vectors side by side. Half the instructions of four times ``_sum``."""
    a, b, c, d = four
    ab, cd = _fold(builder, a, b, 8), _fold(builder, c, d, 8)
    total = _fold(builder, ab, cd, 4)
    for other in (2, 1):
        total = builder.fadd(total, _shuffle(builder, total, total, [lane ^ other for lane in range(CHUNK)]))
    kind = ir.VectorType(_FLOAT, TOGETHER)
    builder.store(
        _shuffle(builder, total, total, range(0, CHUNK, TOGETHER)), builder.bitcast(place, kind.as_pointer()), align=4
    )


def _fold(builder: ir.IRBuilder, a: Any, b: Any, size: int) -> Any:
    """Of each pair of neighbouring groups of ``size`` lanes in a and b, the sum."""
    first = [lane for lane in range(2 * CHUNK) if lane // size % 2 == 0]
    return builder.fadd(_shuffle(builder, a, b, first), _shuffle(builder, a, b, [lane + size for lane in first]))


def _shuffle(builder: ir.IRBuilder, a: Any, b: Any, lanes: Iterable[int]) -> Any:
    chosen = list(lanes)
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(_INT32, len(chosen)), chosen))


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    nothing = ir.Constant(ir.VectorType(value.type, CHUNK), ir.Undefined)
    first = builder.insert_element(nothing, value, ir.Constant(_INT32, 0))
    return builder.shuffle_vector(first, nothing, ir.Constant(ir.VectorType(_INT32, CHUNK), [0] * CHUNK))
