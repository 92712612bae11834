"""Files on a disk: atomic and durable writes, locks, and OSErrors as InputErrors."""

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from pipeline.shared.errors import InputError, one_line


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yields a temporary file, which is renamed to ``path`` when the block ends; after an error it is removed.

    Readers find the old content or the new content, never a part of it, even after a power cut. Each call has a
    temporary file of its own, so processes on any number of machines may write the same ``path``. A symbolic link is
    replaced and not followed. Raises OSError.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        fsync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write(path: Path, content: bytes) -> None:
    """Writes a whole file atomically. Raises OSError."""
    with atomic_write(path) as file:
        file.write(content)


def write_json(path: Path, record: object) -> None:
    """Writes a JSON file atomically; what JSON does not know, such as a Path, becomes a string. Raises OSError."""
    write(path, f"{json.dumps(record, indent=1, default=str)}\n".encode())


def fsync(path: Path) -> None:
    """Flushes a file's content, or a folder's list of files, to the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Creates a folder, and the missing ones above it, durably. Raises OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for path in missing:
        fsync(path.parent)


def remove(folder: Path) -> None:
    """Removes a folder. Renames it first, so that nobody finds a part of it."""
    if folder.exists():
        doomed = folder.with_name(f".{folder.name.lstrip('.')}")
        if doomed != folder:
            shutil.rmtree(doomed, ignore_errors=True)
            folder.replace(doomed)
        shutil.rmtree(doomed)


@contextmanager
def os_errors(subject: str, remedy: str, kind: type[InputError] = InputError) -> Iterator[None]:
    """Raises an OSError of the block as InputError "SUBJECT (REASON); REMEDY".

    ``subject`` says what could not be done, as in "--output runs/ptb: cannot be written".
    """
    try:
        yield
    except BrokenPipeError:  # stdout, whose reader has closed it
        raise
    except OSError as error:
        raise kind(f"{subject} ({one_line(error.strerror or error)}); {remedy}") from error


class AlreadyLocked(Exception):
    """Another process has the lock."""


@contextmanager
def locked(path: Path) -> Iterator[BinaryIO | None]:
    """Holds an exclusive lock on the file ``path``, and removes the file at the end of the block.

    Yields the open file, or None if the file system has no locks. Raises AlreadyLocked, and OSError if the file cannot
    be created. Child processes that inherit the open file hold the lock too. The operating system releases it when the
    last of them ends, however it ends. A symbolic link is refused with an OSError: its target would be overwritten.
    """
    with ExitStack() as stack:
        is_ours = False
        while not is_ours:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            file = stack.enter_context(open(descriptor, "ab"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise AlreadyLocked from None
            except OSError:
                break
            # A process that just ended may have removed the file after we opened it and before we locked it.
            is_ours = path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat())
        stack.callback(path.unlink, missing_ok=True)
        yield file if is_ours else None
