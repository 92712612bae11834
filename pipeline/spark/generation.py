"""A generation: the folder that one run of prepare fills while it holds the lock of the output folder.

OUTPUT/gen-<12 hex>/     readers ignore it until the manifest names it
OUTPUT/.prepare.lock     the operating system releases the lock when the run ends, however it ends
OUTPUT/.publish-<time>-<hex>    in an object store, which has no locks: a run is about to replace the manifest
"""

import os
import random
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta

from pipeline.dataset.manifest_file import FILE_NAME, Manifest, ManifestError
from pipeline.shared.errors import InputError
from pipeline.shared.files import AlreadyLocked, locked, os_errors
from pipeline.shared.storage import Location

PREFIX = "gen-"
LOCK = ".prepare.lock"
CLAIM = ".publish-"
CLAIM_LASTS_S = 600
"""A claim this old is a killed run's, which nobody heeds. Publishing takes seconds, and clocks differ little."""
CLAIMS = 5
"""How often a run tries to be the only one that publishes."""
REMOVALS = 50
ABANDONED_AFTER = timedelta(days=1)
"""An object store has no locks: there, a generation this old is removed unless the manifest names it."""

_CLAIM = re.compile(rf"{re.escape(CLAIM)}(\d{{1,12}})-[0-9a-f]{{12}}")
_NAME = re.compile(rf"{PREFIX}[0-9a-f]{{12}}")


@contextmanager
def new_generation(output: Location) -> Iterator[Location]:
    """Makes a new folder in ``output``. At the end, every generation but the one that the manifest names is removed.

    So a failed run leaves nothing behind, a successful run replaces the old dataset, and the next run removes what a
    killed run left behind. Raises InputError if another run has the lock, or if ``output`` cannot be written.
    """
    was_missing = not output.exists()
    with writing(output):
        output.make_folder()
    try:
        with _locked(output) as is_exclusive:
            before = current_generation(output)
            generation = output / f"{PREFIX}{secrets.token_hex(6)}"
            try:
                with writing(output):
                    generation.make_folder()
                yield generation
            finally:
                _clean(output, generation, before, is_exclusive)
    finally:
        if was_missing and output.local is not None:
            with suppress(OSError):  # not empty: the dataset is there
                output.local.rmdir()


def publish(manifest: Manifest, output: Location, before: str | None) -> None:
    """Makes ``manifest`` the dataset's manifest. Of several runs with the same ``before``, at most one succeeds.

    Raises InputError if the manifest names another generation than ``before``: another run has replaced it. The store
    must be strongly consistent, as S3, GCS and Azure are.
    """
    with writing(output), _only_publisher(output):
        now = current_generation(output)
        if now != before:
            raise InputError(f"--output {output}: another prepare has written {now} meanwhile; that one stays")
        manifest.save(output)


@contextmanager
def _only_publisher(output: Location) -> Iterator[None]:
    """Holds a claim in an object store while no other run holds one; a local ``output`` is locked anyway.

    Each run writes its claim before it lists the others', so of two runs at least one sees the other and gives way.
    """
    if output.local is not None:
        yield
        return
    claim = output / f"{CLAIM}{time.time():.0f}-{secrets.token_hex(6)}"
    try:
        for attempt in range(CLAIMS):
            claim.put(b"")
            if not _other_claims(output, claim):
                break
            claim.remove()
            time.sleep(random.uniform(0.5, 2) * (attempt + 1))
        else:
            raise InputError(f"--output {output}: another prepare is about to publish; run it again")
        yield
    finally:
        claim.remove()


def _other_claims(output: Location, ours: Location) -> list[str]:
    names = [entry.base_name for entry in output.entries()]
    claims = [_CLAIM.fullmatch(name) for name in names if name != os.path.basename(ours.path)]
    return [claim[0] for claim in claims if claim and int(claim[1]) > time.time() - CLAIM_LASTS_S]


def writing(output: Location) -> AbstractContextManager[None]:
    """Raises an OSError of the block as InputError."""
    remedy = "choose another folder" if output.local else "check the address and your credentials for it"
    return os_errors(f"--output {output}: cannot be written", remedy)


def current_generation(output: Location) -> str | None:
    """The generation that the manifest names; None if there is no dataset."""
    try:
        return Manifest.load(output).generation
    except ManifestError:
        return None


@contextmanager
def _locked(output: Location) -> Iterator[bool]:
    """Yields True if this run holds the lock of ``output``, and False if its file system has no locks.

    Raises InputError if another run holds the lock.
    """
    if output.local is None:
        yield False
        return
    with ExitStack() as stack:
        try:
            with writing(output):
                is_exclusive = stack.enter_context(locked(output.local / LOCK)) is not None
        except AlreadyLocked:
            raise InputError(
                f"--output {output}: another prepare is writing there; wait for its end, or stop it"
            ) from None
        yield is_exclusive


def _clean(output: Location, ours: Location, before: str | None, is_exclusive: bool) -> None:
    """Removes all generations but the manifest's; without the lock, only this run's, the replaced and abandoned."""
    with suppress(OSError):  # the next run tries again
        kept = current_generation(output)
        if kept is None and (output / FILE_NAME).exists():
            return  # the manifest cannot be read, perhaps only for a moment, and may name any generation
        for entry in output.entries():
            name = entry.base_name
            if not _NAME.fullmatch(name) or name == kept:
                continue
            if is_exclusive or name in (before, os.path.basename(ours.path)) or _is_abandoned(output / name):
                _remove(output / name)


def _remove(generation: Location) -> None:
    """Retries for 5 s or more, since tasks of a failed job may still be writing."""
    for _ in range(REMOVALS):
        with suppress(OSError):
            generation.remove()
        if not generation.exists():
            return
        time.sleep(0.1)


def _is_abandoned(generation: Location) -> bool:
    """Returns True if the newest file of ``generation`` is older than ABANDONED_AFTER."""
    times = [info.mtime for info in generation.files() if info.mtime is not None]
    return bool(times) and max(times) < datetime.now(UTC) - ABANDONED_AFTER
