"""``code_digest``: identifies what a compiled function computes, whatever file, line or folder its source is in."""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
from numba.core.dispatcher import Dispatcher
from numba.core.extending import _Intrinsic


@cache
def code_digest(function: Callable[..., Any]) -> str:
    """A digest of the function's bytecode and of everything it names: constants, and the functions that it calls.

    Comments, docstrings, annotations and the rest of the file do not change it. Raises TypeError if a global is an
    object whose ``repr`` does not show its value.
    """
    digest = hashlib.sha256()
    functions = [function]
    for reached in functions:  # the list grows in the loop
        digest.update(repr(_bytecode(reached.__code__, reached.__doc__)).encode())
        for name, value in _named(reached):
            if (callee := _callee(value, reached.__module__)) is None:
                digest.update(f"{name}={_constant(name, value)};".encode())
            elif callee not in functions:
                functions.append(callee)
    return digest.hexdigest()


def _bytecode(code: CodeType, doc: str | None) -> tuple[Any, ...]:
    constants = [
        _bytecode(constant, None) if isinstance(constant, CodeType) else (type(constant).__name__, constant)
        for constant in code.co_consts
        if constant is None or constant != doc
    ]
    return code.co_code, code.co_names, code.co_varnames, code.co_freevars, tuple(constants)


def _named(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """Globals and closure variables that the function, or one inside it, may read, in a fixed order."""
    scope = function.__globals__
    yield from ((name, scope[name]) for name in sorted(_names(function.__code__)) if name in scope)
    cells = function.__closure__ or ()
    yield from zip(function.__code__.co_freevars, (cell.cell_contents for cell in cells), strict=True)


def _names(code: CodeType) -> set[str]:
    inside = [_names(constant) for constant in code.co_consts if isinstance(constant, CodeType)]
    return {*code.co_names}.union(*inside)


def _callee(value: Any, module: str) -> Any:
    """The Python function that ``value`` is or was compiled from, if it counts for ``module``; else None.

    Plain functions count if they belong to the same package, since they generate code. The version of a library stands
    for the library's functions.
    """
    if isinstance(value, Dispatcher):
        return value.py_func
    if isinstance(value, _Intrinsic):
        return value._defn
    is_ours = isinstance(value, FunctionType) and value.__module__.partition(".")[0] == module.partition(".")[0]
    return value if is_ours else None


def _constant(name: str, value: Any) -> str:
    if isinstance(value, ModuleType):
        return f"module {value.__name__}"
    if isinstance(value, type | FunctionType):
        fields = getattr(value, "_fields", "")  # of a NamedTuple: their order decides what goes where
        return f"{value.__module__}.{value.__qualname__}{fields}"
    said = f"{type(value).__name__} {value!r}"
    if " at 0x" in said or isinstance(value, np.ndarray):  # an address, or an array, which repr shortens
        raise TypeError(f"{name} = {said}: compiled code may read numbers, modules, types and compiled functions only")
    return said
