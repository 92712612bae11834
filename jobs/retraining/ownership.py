"""Whose turn it is in a workspace: one command at a time, and its children with it."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from jobs.retraining.workspace import CURRENT, CYCLES, LOCK, OWN
from pipeline.shared.cli import check_output
from pipeline.shared.errors import MENDABLE, InputError
from pipeline.shared.files import AlreadyLocked, locked

ORPHANS_S = 90
"""How long what a killed command has started may take to end."""


@contextmanager
def owned(folder: Path) -> Iterator[int | None]:
    """Keeps other commands out of the workspace ``folder``; yields the lock's file number, for children to hold.

    None is yielded where there are no locks. What a killed command has started ends with it, but not at once: it is
    waited for. Raises InputError when a live one has the lock, and in place of any OSError that the user can mend.
    """
    check_output(folder, OWN, "workspace", "workspace:")
    with ExitStack() as stack:
        with _writing(folder):
            (folder / CYCLES).mkdir(parents=True, exist_ok=True)
            file = _lock(folder, stack)
            if file:
                file.truncate(0)
                file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
                file.flush()
        for leftover in folder.glob(f".{CURRENT}.*"):
            leftover.unlink(missing_ok=True)
        with _writing(folder):
            yield file.fileno() if file else None


def _lock(folder: Path, stack: ExitStack) -> BinaryIO | None:
    deadline = time.monotonic() + ORPHANS_S
    while True:
        try:
            return stack.enter_context(locked(folder / LOCK))
        except AlreadyLocked:
            owner = owner_of(folder)
            if owner is None or _is_alive(owner) or time.monotonic() > deadline:
                raise InputError(_held(folder, owner)) from None
        time.sleep(0.2)


def owner_of(folder: Path) -> dict[str, Any] | None:
    """Who wrote the lock; it may have ended since."""
    try:
        return json.loads((folder / LOCK).read_bytes())  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


def _held(folder: Path, owner: dict[str, Any] | None) -> str:
    if owner is None:
        who = "another command"
    elif _is_alive(owner):
        who = f"process {owner['pid']} on {owner['host']}"
    else:
        who = f"what process {owner['pid']}, which is dead, has started"
    return f"{folder}: found {who} at work there, expected one at a time; wait for its end, or stop it"


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turns the OSError of a write into one line for the user."""
    try:
        yield
    except OSError as error:
        if error.errno not in MENDABLE:
            raise
        where = error.filename or folder
        raise InputError(
            f"{where}: cannot be used ({error.strerror}); make room or mend it, and give the same command again"
        ) from error


def _is_alive(owner: dict[str, Any]) -> bool:
    """Whether the owner may still run: of another machine's we cannot know."""
    if owner["host"] != socket.gethostname():
        return True
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
