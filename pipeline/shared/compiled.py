"""``compiled``: machine code by numba, cached on disk if possible. A cache that fails never ends a run.

Compiling takes seconds; loading what another process has compiled takes milliseconds. An entry of the cache is one
function for one signature. The name of its file depends on everything that decides the machine code and on nothing
else: not on the folder of the source, nor on the rest of the source file. So entries may be copied to other machines,
and a changed docstring compiles nothing again. Entries are read from each of these folders, and written to the first
that is writable: only ``NUMBA_CACHE_DIR`` if it is set; else ``__pycache__`` beside the source, then ``shardvec`` in
the user's cache (``XDG_CACHE_HOME``, ``~/.cache``). If none is writable, every process compiles for itself.
"""

import hashlib
import logging
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import numba.extending
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import NullCache
from numba.core.compiler import CompileResult
from numba.core.compiler_lock import global_compiler_lock
from numba.core.serialize import dumps

from pipeline.shared.code_digest import code_digest
from pipeline.shared.files import AlreadyLocked, locked, write

F = TypeVar("F", bound=Callable[..., Any])

CACHE_LINE = 64
"""Bytes."""

FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}
"""What lets LLVM vectorise float loops: sums in another order and fused products. NaN and infinity keep their meaning.

The same machine code gives the same bits every time; another kind of processor may round differently.
"""

PATIENCE_S = 60
"""How long a process waits for another that compiles the same function; the other may have been stopped meanwhile."""

UNUSED_S = 30 * 24 * 3600
"""After this time without use an entry is removed."""

# numba has no types for mypy.
config: Any = numba.config
pickled: Any = dumps
rebuilt: Any = CompileResult._rebuild
tuple_type: Any = numba.types.BaseTuple

log = logging.getLogger(__name__)


def compiled(function: F, fast_math: bool = False) -> F:
    """The function in machine code, compiled at its first call. Integers wrap around; indices are not checked.

    int64 with uint64 makes float64, so every number that meets a uint64 must be one. A float divided by 0 is infinite.
    """
    dispatcher: Any = numba.njit(function, **_options(fast_math))
    kept = dispatcher._cache = _Cache(function, fast_math)
    compile_or_load = dispatcher.compile

    def compile_once(signature: Any) -> Any:
        with global_compiler_lock, kept.alone(signature, dispatcher.targetctx):
            return compile_or_load(signature)

    dispatcher.compile = compile_once
    return dispatcher  # type: ignore[no-any-return]


def compiled_fast(function: F) -> F:
    """``compiled`` with vectorised float loops, see ``FAST_MATH``."""
    return compiled(function, fast_math=True)


def inner(function: F, fast_math: bool = False) -> F:
    """``compiled``, for compiled callers, which compile an eighth faster without the wrapper that Python calls.

    It always becomes a part of its callers. Otherwise the process that compiles a caller would call a version that was
    optimised alone, and processes that load the caller from the cache another one, with other last bits.
    Tests may still call it from Python: that compiles it a second time.
    """
    options = {**_options(fast_math), "no_cpython_wrapper": True, "no_cfunc_wrapper": True, "forceinline": True}
    dispatcher: Any = numba.njit(function, **options)
    dispatcher._insert = lambda *_: None  # or numba would call the missing wrapper, and the process would crash
    for_python: Any = compiled(function, fast_math)
    dispatcher._compile_for_args = for_python._compile_for_args
    return dispatcher  # type: ignore[no-any-return]


def inner_fast(function: F) -> F:
    """``inner`` with vectorised float loops, see ``FAST_MATH``."""
    return inner(function, fast_math=True)


def _options(fast_math: bool) -> dict[str, Any]:
    # "numpy": with Python's error model a division may raise, and a loop that may end early is not vectorised.
    return {"nogil": True, "error_model": "numpy", **({"fastmath": FAST_MATH} if fast_math else {})}


class _Cache(NullCache):
    """The cache of one function. After a damaged file or on a full disk it compiles again; it never ends a run.

    numba's own cache names its files by the source's path, line and time, none of which decides the code: a comment
    that moves a line would compile everything again, and a zip that Spark unpacks elsewhere each time would never find
    its code.
    """

    def __init__(self, function: Callable[..., Any], fast_math: bool):
        self._function, self._fast_math = function, fast_math
        module = function.__module__.rpartition(".")[2]
        self._prefix = f"{module}.{function.__name__}.{sys.implementation.cache_tag}"

    def load_overload(self, signature: Any, context: Any) -> Any:
        context.refresh()
        found = self._find(self._name(signature, context))
        if found is None:
            return None
        try:
            result = rebuilt(context, *pickle.loads(found.read_bytes()))
        except Exception as error:  # whatever a damaged pickle raises
            log.debug("compiling, since %s cannot be read: %r", found, error)
            return None
        with suppress(OSError):
            os.utime(found)  # it is in use
        return result

    def save_overload(self, signature: Any, result: Any) -> None:
        if result.library.has_dynamic_globals:  # addresses of this process
            return
        name = self._name(signature, result.target_context)
        content = pickled(result._reduce())
        folder = self._writable()
        if folder is None:
            return
        try:
            write(folder / name, content)
            self._remove_old(folder, name)
        except OSError as error:  # a full disk
            log.debug("compiled code is not kept: %r", error)

    @contextmanager
    def alone(self, signature: Any, context: Any) -> Iterator[None]:
        """Keeps other processes of this machine from compiling the same function, or waits until one has done so."""
        name = self._name(signature, context)
        with ExitStack() as held:
            if self._find(name) is None and (folder := self._writable()):
                deadline = time.monotonic() + PATIENCE_S
                while self._find(name) is None and time.monotonic() < deadline:
                    try:
                        held.enter_context(locked(folder / f".{name}.lock"))
                        break
                    except AlreadyLocked:
                        time.sleep(0.02)
                    except OSError:  # a folder that cannot hold locks
                        break
            yield

    def _name(self, signature: Any, context: Any) -> str:
        machine = _digest(numba.__version__, llvmlite.__version__, np.__version__, *context.codegen().magic_tuple())
        how = _digest(_spelled_out(signature), self._fast_math, config.BOUNDSCHECK, config.OPT)
        return f"{self._prefix}.{machine}.{code_digest(self._function)[:16]}.{how}.nbc"

    def _find(self, name: str) -> Path | None:
        return next((folder / name for folder in self._folders() if (folder / name).is_file()), None)

    def _folders(self) -> list[Path]:
        if chosen := os.environ.get("NUMBA_CACHE_DIR"):
            return [Path(chosen)]
        source = Path(self._function.__code__.co_filename).parent
        users = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # unchanged if the user has no home
        found = [source / "__pycache__"] if source.is_dir() else []
        return found if users.startswith("~") else [*found, Path(users) / "shardvec"]

    def _writable(self) -> Path | None:
        for folder in self._folders():
            with suppress(OSError):
                folder.mkdir(parents=True, exist_ok=True)
                if os.access(folder, os.W_OK | os.X_OK):
                    return folder
        log.debug("compiled code is not kept: no folder can be written")
        return None

    def _remove_old(self, folder: Path, name: str) -> None:
        """Removes this machine's entries of older versions of the function, and all entries unused for long."""
        *for_this_machine, code, _, _ = name.split(".")
        for entry in folder.glob("*.nbc"):
            *machine, other_code, _, _ = entry.name.split(".")
            replaced = machine == for_this_machine and other_code != code
            with suppress(OSError):
                if replaced or entry.stat().st_mtime < time.time() - UNUSED_S:
                    entry.unlink()


def _spelled_out(kinds: Any) -> Any:
    """Argument types with the field names of NamedTuples, whose order decides the code, and which ``repr`` omits."""
    if isinstance(kinds, tuple | tuple_type):
        return getattr(kinds, "name", None), getattr(kinds, "fields", None), *map(_spelled_out, kinds)
    return kinds


@cache
def _digest(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


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
