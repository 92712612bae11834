"""A generation: the folder that one run of prepare fills, and its claim on the output while it does so.

OUTPUT/gen-<12 hex>/     nothing reads it until the manifest names it
OUTPUT/.prepare.lock     held by the operating system for the run that writes here; gone with it, however it ends
"""

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta

from pipeline.dataset.manifest_file import FILE_NAME, Manifest, ManifestError
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import Held, locked
from pipeline.shared.storage import Location

PREFIX = "gen-"
LOCK = ".prepare.lock"
REMOVALS = 50
ABANDONED_AFTER = timedelta(days=1)
"""An object store holds no locks: there, a generation without a manifest is taken for a dead run's after this long."""

_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{12}}")


@contextmanager
def new_generation(output: Location) -> Iterator[Location]:
    """A folder of our own inside ``output``; when this ends, whatever is not the manifest's generation is removed.

    So a run that fails leaves nothing, one that succeeds replaces what was there, and what a killed run left goes with
    the next. Raises InputError when another run is writing to ``output``, or it cannot be written.
    """
    was_missing = not output.exists()
    with writing(output):
        output.make_folder()
    try:
        with _locked(output) as is_alone:
            before = current(output)
            generation = output / f"{PREFIX}{secrets.token_hex(6)}"
            try:
                with writing(output):
                    generation.make_folder()
                yield generation
            finally:
                _clean(output, generation, before, is_alone)
    finally:
        if was_missing and output.local is not None:
            with suppress(OSError):  # it holds the dataset now
                output.local.rmdir()


def check_unchanged(output: Location, before: str | None) -> None:
    """Raises InputError when another run has written a manifest meanwhile: an object store holds no locks."""
    now = current(output)
    if now != before:
        raise InputError(f"--output {output}: another prepare has written {now} meanwhile; that one stays")


@contextmanager
def writing(output: Location) -> Iterator[None]:
    """Turns the OSError of a write to ``output`` into one line for the user."""
    try:
        yield
    except OSError as error:
        if output.local is not None:
            raise InputError(
                f"--output {output}: cannot be written ({error.strerror}); choose another folder"
            ) from None
        raise InputError(
            f"--output {output}: {one_line(error)}; check the address and your credentials for it"
        ) from None


def current(output: Location) -> str | None:
    """The generation that readers see; None where there is no dataset."""
    try:
        return Manifest.load(output).generation
    except ManifestError:
        return None


@contextmanager
def _locked(output: Location) -> Iterator[bool]:
    """Whether we are known to be the only run on this output. Raises InputError when we are known not to be."""
    if output.local is None:
        yield False
        return
    with ExitStack() as stack:
        try:
            with writing(output):
                is_alone = stack.enter_context(locked(output.local / LOCK)) is not None
        except Held:
            raise InputError(
                f"--output {output}: another prepare is writing there; wait for its end, or stop it"
            ) from None
        yield is_alone


def _clean(output: Location, ours: Location, before: str | None, is_alone: bool) -> None:
    """Removes every generation but the manifest's; where others may be at work, only those surely nobody's."""
    with suppress(OSError):  # the next run tries again
        kept = current(output)
        if kept is None and (output / FILE_NAME).exists():
            return  # it cannot be read, perhaps for a moment only, and may name any of them
        for entry in output.entries():
            name = entry.base_name
            if not _NAME.fullmatch(name) or name == kept:
                continue
            if is_alone or name in (before, os.path.basename(ours.path)) or _is_abandoned(output / name):
                _remove(output / name)


def _remove(generation: Location) -> None:
    """Removes it for good: tasks of a job that failed may write on for a moment, and what they add is in the way."""
    for _ in range(REMOVALS):
        with suppress(OSError):
            generation.remove()
        if not generation.exists():
            return
        time.sleep(0.1)


def _is_abandoned(generation: Location) -> bool:
    """Whether nothing has been written there for so long that its run must be dead."""
    times = [info.mtime for info in generation.files() if info.mtime is not None]
    return bool(times) and max(times) < datetime.now(UTC) - ABANDONED_AFTER
