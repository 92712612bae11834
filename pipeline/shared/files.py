"""Files of this machine or of a shared folder: locked, written atomically, and on the disk before they have a name.

What keeps a user from writing one (a full disk, a missing right) becomes one line.
"""

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.shared.errors import InputError


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """A temporary file beside ``path``. It gets that name, durably, when the block ends; after an error it is removed.

    A reader, and a machine that loses power, finds the old content or the new one, never a part. Each call has a
    temporary file of its own, so that several processes, even on several machines, may write the same file. Raises
    OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Returns when the disk has this file's content, or this folder's list of files. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(subject: str, remedy: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Raises an OSError of the block as InputError: "SUBJECT (reason); REMEDY".

    ``subject`` says what could not be done, as in "--output runs/ptb: cannot be written".
    """
    try:
        yield
    except OSError as error:
        raise kind(f"{subject} ({error.strerror or error}); {remedy}") from error


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
