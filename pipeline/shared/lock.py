"""A lock on a folder of this machine, or of a network's, that a dead process does not keep."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO


class Held(Exception):
    """Another process has the lock."""


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO | None]:
    """Holds the lock of the file ``path``, which is there as long; yields the file, where that keeps others away.

    It does not on a file system without locks: None. Raises Held, and OSError when the file cannot be made. The
    operating system holds the lock for the process, and for children that are given the file, and drops it when the
    last of them ends, however it does.
    """
    with ExitStack() as stack:
        is_ours = False
        while not is_ours:
            file = stack.enter_context(path.open("ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise Held from None
            except OSError:
                break
            # A process that just ended may have removed the file between our opening and our locking it.
            is_ours = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        stack.callback(path.unlink, missing_ok=True)
        yield file if is_ours else None
