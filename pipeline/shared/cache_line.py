"""``prefetch``: asks the processor for memory before compiled code needs it."""

from collections.abc import Callable, Sequence
from typing import Any

import numba.extending
from llvmlite import ir
from numba import types

CACHE_LINE = 64
"""Bytes."""

intrinsic: Any = numba.extending.intrinsic  # numba has no types for mypy


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, at: Any) -> tuple[Any, Callable[..., Any]]:
    """Prefetches the cache line of byte ``at`` of ``array``, which need not exist."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, values: Sequence[Any]) -> Any:
        byte, i32 = ir.IntType(8).as_pointer(), ir.IntType(32)
        data = context.make_array(signature.args[0])(context, builder, values[0]).data
        address = builder.gep(builder.bitcast(data, byte), [values[1]])
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        llvm_prefetch = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        builder.call(llvm_prefetch, [address, *(ir.Constant(i32, number) for number in (0, 3, 1))])  # read, keep, data
        return context.get_dummy_value()

    return types.void(array, types.int64), codegen
