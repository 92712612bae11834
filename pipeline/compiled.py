"""``compiled``: machine code by numba, kept on disk where that is possible, and never at the price of a run.

Compiling takes seconds, loading what another process has compiled takes milliseconds. numba keeps it in the first of
these folders that can be written: ``NUMBA_CACHE_DIR``, ``__pycache__`` beside the source, numba's folder in the user's
cache (``XDG_CACHE_HOME``, ``~/.cache``); for a zip given to ``--py-files`` in the last one only. Without any, every
process compiles for itself.
"""

import hashlib
import logging
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from importlib.resources import files
from typing import Any, TypeVar

import llvmlite.binding
import numba
from numba.core.caching import FunctionCache

F = TypeVar("F", bound=Callable[..., Any])

log = logging.getLogger(__name__)

FAST_MATH = {"reassoc", "contract", "arcp", "nsz"}
"""What lets float loops use vectors: sums in another order and fused products, but NaN and infinity stay what they are.

The same machine code gives the same bits every time; another kind of processor may round otherwise.
"""


def compiled(function: F, fast_math: bool = False) -> F:
    """The function in machine code, made at its first call. Integers do not overflow but wrap; indices are unchecked.

    Mixing int64 and uint64 makes float64, so uint64 must be named throughout. A float divided by 0 is infinite.
    """
    # numba looks at one source file alone when it decides whether its cache is stale, not at what is called or imported
    # from others, and lets two kinds of processor overwrite each other's files. Named by all of that, no file is ever
    # anything else than what its name says, whoever reads or writes it at the same time.
    package = function.__module__.rpartition(".")[0] or __package__
    function.__qualname__ = f"{function.__qualname__}_{_everything_that_decides_the_code(package)}"
    # "numpy": with Python's error model a division may raise, and a loop that may end early uses no vectors.
    options: dict[str, Any] = {"fastmath": FAST_MATH} if fast_math else {}
    dispatcher: Any = numba.njit(function, nogil=True, error_model="numpy", **options)
    try:
        dispatcher._cache = _Cache(function)  # type: ignore[no-untyped-call]
    except RuntimeError as error:  # numba found no folder
        log.debug("%s", error)
    return dispatcher  # type: ignore[no-any-return]


def compiled_fast(function: F) -> F:
    """``compiled``, and float loops may use vectors, see ``FAST_MATH``."""
    return compiled(function, fast_math=True)


class _Cache(FunctionCache):
    """numba's cache of one function. A damaged file or a full disk costs a compilation, where numba would raise."""

    def load_overload(self, *args: Any) -> Any:
        try:
            return super().load_overload(*args)  # type: ignore[no-untyped-call]
        except Exception as error:  # whatever a damaged pickle raises
            log.debug("compiling, since the cache cannot be read: %r", error)
            with suppress(OSError):
                self.flush()  # type: ignore[no-untyped-call]  # saving reads the index too
            return None

    def save_overload(self, *args: Any) -> None:
        try:
            super().save_overload(*args)  # type: ignore[no-untyped-call]
        except Exception as error:  # a disk that is full, or a pickle damaged since
            log.debug("compiled code is not kept: %r", error)


@cache
def _everything_that_decides_the_code(package: str) -> str:
    """A digest of the sources of the function's package and of this one, of numba's version and of the processor."""
    cpu = llvmlite.binding.get_host_cpu_name(), llvmlite.binding.get_host_cpu_features().flatten()
    sha = hashlib.sha256(repr((numba.__version__, cpu)).encode())
    for folder in sorted({package, __package__}):
        for file in sorted(files(folder).iterdir(), key=lambda file: file.name):
            if file.name.endswith(".py"):
                sha.update(file.read_bytes())
    return sha.hexdigest()[:16]
