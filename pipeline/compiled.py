"""``compiled``: numba's njit, its machine code kept on disk where the module's folder, or the user's, takes it."""

from collections.abc import Callable
from typing import TypeVar, cast

import numba

_Function = TypeVar("_Function", bound=Callable[..., object])


def compiled(function: _Function) -> _Function:
    """The function as machine code that runs without Python's lock; compiled when first called with new types."""
    try:
        return cast(_Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # imported from a zip, or nowhere to write: compiled anew in every process
        return cast(_Function, numba.njit(nogil=True)(function))
