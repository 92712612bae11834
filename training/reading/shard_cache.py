"""A folder of this machine that keeps what was fetched from shards elsewhere, up to a number of bytes.

DIR/<SHA-256 of the shard>.<row group>     the stored bytes, and their CRC
DIR/<SHA-256 of the shard>.footer
DIR/.<name>.<pid>.<thread>                 being written, or left over
DIR/.total                                 bytes of all files, and the lock of those who change it

Names say what is in a file, so runs, ranks and datasets share a folder. The time of a file is that of its last use. The
lock is the operating system's (flock): it goes with its owner, however that dies. The total is raised before a file
appears, so after a death it is at most too large, and counting the files anew, which it then comes to, mends it.
"""

import fcntl
import os
import re
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident

from pipeline.dataset.manifest_file import ManifestError
from pipeline.shared.files import os_errors

TOTAL = ".total"
LEFT_OVER_S = 3600
"""A file that has been being written for so long is a dead process's."""

_OURS = re.compile(r"[0-9a-f]{64}\.(\d+|footer)")
_BEING_WRITTEN = re.compile(rf"\.{_OURS.pattern}\.\d+\.\d+")
_CRC_BYTES = 4


@dataclass(frozen=True)
class ShardCache:
    """At most ``max_bytes`` of files in ``folder``, over all processes that use it, and what they are just writing.

    The file that was not used for longest goes first. Files that are not named like ours are neither counted nor
    removed. Raises ManifestError where the folder cannot be written.
    """

    folder: Path
    max_bytes: int

    def prepare(self) -> None:
        """Makes the folder, counts what is in it, and removes what is left over or too much."""
        with self._writing(), self._locked() as total:
            _write_number(total, self._make_room(0))

    def get(self, name: str) -> bytes | None:
        """What was put under the name; None when it is not there, or damaged, and then it is removed."""
        path = self.folder / name
        try:
            stored = path.read_bytes()
        except OSError:  # not there, or another user's
            return None
        with suppress(OSError):  # the same
            os.utime(path)
        content, crc = memoryview(stored)[:-_CRC_BYTES], stored[-_CRC_BYTES:]
        if _crc(content) != crc:
            self.remove(name)
            return None
        return stored[:-_CRC_BYTES]

    def put(self, name: str, content: bytes) -> None:
        """Keeps it, unless it is larger than the whole cache; what is there already stays."""
        size = len(content) + _CRC_BYTES
        path = self.folder / name
        if size > self.max_bytes or path.exists():
            return
        beside = self.folder / f".{name}.{os.getpid()}.{get_ident()}"
        with self._writing():
            try:
                with beside.open("wb") as file:
                    file.write(content)
                    file.write(_crc(memoryview(content)))
                with self._locked() as total:
                    if path.exists():  # another was faster
                        return
                    used = _read_number(total)
                    if used is None or used + size > self.max_bytes:
                        used = self._make_room(size)
                    _write_number(total, used + size)
                    beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """The total then is too large until files are counted anew."""
        with self._writing():
            (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> int:
        """Removes files until ``size`` more bytes fit, and an eighth of the whole when any had to go; what is left.

        That eighth, because counting looks at every file.
        """
        found = []
        now = time.time()
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # removed meanwhile
                if _OURS.fullmatch(entry.name):
                    found.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
                elif _BEING_WRITTEN.fullmatch(entry.name) and now - entry.stat().st_mtime > LEFT_OVER_S:
                    os.unlink(entry.path)
        used = sum(num_bytes for _, num_bytes, _ in found)
        if used + size <= self.max_bytes:
            return used
        for _, num_bytes, path in sorted(found):
            if used + size <= self.max_bytes - self.max_bytes // 8:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)
            used -= num_bytes
        return used

    @contextmanager
    def _locked(self) -> Iterator[int]:
        """The file of the total, while nobody else changes it."""
        total = os.open(self.folder / TOTAL, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(total, fcntl.LOCK_EX)
            yield total
        finally:
            os.close(total)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        remedy = "choose another folder, or fewer --shard-cache-bytes"
        with os_errors(f"--shard-cache {self.folder}: cannot be written", remedy, ManifestError):
            self.folder.mkdir(parents=True, exist_ok=True)
            yield


def _crc(content: memoryview) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "little")


def _read_number(file: int) -> int | None:
    """None when there is none, as in a new file."""
    text = os.pread(file, 32, 0)
    return int(text) if text.isdigit() else None


def _write_number(file: int, number: int) -> None:
    os.pwrite(file, b"%032d" % number, 0)
