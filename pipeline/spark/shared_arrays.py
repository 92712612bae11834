"""Arrays that the driver makes and every task reads. The workers of a machine share them: they map the same files.

So a machine holds the tables of a vocabulary once, however many cores it has. In an object store there is nothing to
map; there, each worker holds a copy.
"""

import io
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.shared.storage import Location


def put_arrays(generation: Location, name: str, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Writes each array to a file NAME-<its key>.npy. Raises OSError."""
    for key, array in arrays.items():
        with (generation / f"{name}-{key}.npy").atomic_write() as file:
            np.save(file, array, allow_pickle=False)


def get_arrays(generation: Location, name: str, keys: Iterable[str]) -> dict[str, npt.NDArray[Any]]:
    """The arrays that ``put_arrays`` wrote, by key. Raises OSError."""
    return {key: _get(generation / f"{name}-{key}.npy") for key in keys}


def _get(file: Location) -> npt.NDArray[Any]:
    if file.local is None:
        found: npt.NDArray[Any] = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
        return found
    # "c" for copy on write: nobody writes, so nothing is copied, but numba would compile once more for what cannot be
    # written. It takes no memmap either.
    return np.asarray(np.load(file.local, mmap_mode="c", allow_pickle=False))
