"""One command at a time in a folder, and who it is."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one up to Python 3.11

from pipeline.shared.errors import InputError
from pipeline.shared.files import AlreadyLocked, locked, make_folder, os_errors
from pipeline.shared.records import STRICT, RecordError, checked, read
from pipeline.shared.storage import Location

LOCK = ".lock"

ORPHANS_S = 90
"""How long the children of a killed command may take to end."""


@with_config(STRICT)
class Holder(TypedDict):
    """.lock: the process that took the lock last."""

    pid: Annotated[int, Field(ge=1, lt=2**31)]
    host: str


@contextmanager
def alone_in(folder: Path) -> Iterator[int | None]:
    """Keeps other commands out. Yields the lock's file descriptor, for children to inherit; None without locks.

    Creates the folder. Waits for the children of a killed command, which need a moment to end. Raises InputError if
    another command is running, and for any OSError of the block.
    """
    with (
        os_errors(f"{folder}: cannot be used", "make room or check its permissions, and run the command again"),
        ExitStack() as stack,
    ):
        make_folder(folder)
        deadline = time.monotonic() + ORPHANS_S
        while True:
            try:
                file = stack.enter_context(locked(folder / LOCK))
                break
            except AlreadyLocked:
                _check_orphaned(folder, deadline)
                time.sleep(0.2)
        if file:
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            file.flush()
        yield file.fileno() if file else None


def lock_holder(folder: Path) -> dict[str, Any] | None:
    """The pid and host of the command that took the lock. It may have ended since."""
    try:
        return dict(checked(read(Location.of(folder / LOCK)), Holder))
    except (OSError, RecordError):
        return None


def _check_orphaned(folder: Path, deadline: float) -> None:
    """Raises InputError, unless children of a dead command hold the lock and the deadline has not passed."""
    holder = lock_holder(folder)
    if holder is None:
        who = "another command"
    elif _may_be_alive(holder):
        who = f"process {holder['pid']} on {holder['host']}"
    elif time.monotonic() < deadline:
        return
    else:
        who = f"children of process {holder['pid']}, which is dead,"
    raise InputError(f"{folder}: found {who} at work, expected one command at a time; wait until it ends, or stop it")


def _may_be_alive(holder: dict[str, Any]) -> bool:
    """False if the process has ended. Of another machine's processes this is unknown."""
    if holder["host"] != socket.gethostname():
        return True
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
