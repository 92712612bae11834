"""Memory that processes of one machine share, and how each of them learns that another has ended.

The memory is a file without a name (memfd): it needs no /dev/shm, which containers keep small, and the system frees it
with the last process that has it, however that ends. Each process holds a lock on its own byte of the file. The system
gives it up when the process ends, also by SIGKILL or as a zombie, and not while it is merely stopped.
"""

import fcntl
import mmap
import os
import struct
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from pipeline.shared.errors import InputError
from training.model.limits import available_bytes

LOOK_S = 0.2
"""Between two looks at whether all the others are still there."""

_FLOCK = "@hhqqi4x"  # struct flock: type, whence, start, length, pid


class SharedMemory:
    """``bytes``, (N,) uint8, zeros at first, in each of the processes that ``create`` and ``join``."""

    def __init__(self, file: int, member: int):
        self.bytes: npt.NDArray[np.uint8] = np.frombuffer(mmap.mmap(file, os.fstat(file).st_size), dtype=np.uint8)
        self._file, self._member = file, member
        fcntl.fcntl(file, fcntl.F_OFD_SETLK, _lock(member))

    @classmethod
    def create(cls, num_bytes: int, member: int = 0) -> "SharedMemory":
        """New memory, of which this process is a member. Raises InputError."""
        if not hasattr(os, "memfd_create"):
            raise InputError("memory that processes share: found no memfd_create, expected Linux; use one process")
        # Linux gives more than it has, and then kills a process, perhaps another one.
        if num_bytes > (free := available_bytes()):
            found = f"found {free / 1e9:.1f} GB free, expected {num_bytes / 1e9:.1f} GB for what processes share"
            raise InputError(f"memory: {found}; use a larger machine, a smaller --dim, or a higher --min-count")
        file = os.memfd_create("shardvec")
        os.ftruncate(file, num_bytes)
        return cls(file, member)

    @classmethod
    def join(cls, address: str, member: int) -> "SharedMemory":
        """The memory that another member has at ``address``. Raises InputError if it is gone or not this user's."""
        try:
            return cls(os.open(address, os.O_RDWR | os.O_CLOEXEC), member)
        except OSError as error:
            found = f"{address}: memory that processes share cannot be opened ({error.strerror})"
            raise InputError(f"{found}; start all processes of a machine as one user, in one container") from None

    @property
    def address(self) -> str:
        """Where other processes of this user and container find the memory, while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._file}"

    def has_ended(self, member: int) -> bool:
        """Whether the process of another member, which had joined, has ended."""
        kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, _lock(member)))
        return bool(kind == fcntl.F_UNLCK)

    def close(self) -> None:
        """Gives up this member's lock. ``bytes`` stays valid."""
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _lock(self._member, fcntl.F_UNLCK))  # the mapping has the file, too
        os.close(self._file)


class Watch(threading.Thread):
    """Calls ``ended`` with the first of ``members``, once, when it finds that its process has ended."""

    def __init__(self, memory: SharedMemory, members: list[int], ended: Callable[[int], None]):
        super().__init__(name="watch", daemon=True)
        self._memory, self._members, self._ended, self._closed = memory, members, ended, threading.Event()
        self.start()

    def run(self) -> None:
        while not self._closed.wait(LOOK_S):
            gone = next(filter(self._memory.has_ended, self._members), None)
            if gone is not None:
                self._ended(gone)
                return

    def close(self) -> None:
        self._closed.set()
        self.join()


def _lock(member: int, kind: int = fcntl.F_WRLCK) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, member, 1, 0)
