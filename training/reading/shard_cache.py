"""A folder of this machine that keeps what was fetched from shards elsewhere, up to a number of bytes.

DIR/<SHA-256 of the shard>.<row group>     the stored bytes, and their CRC
DIR/<SHA-256 of the shard>.footer
DIR/.<name>.<pid>.<thread>                 being written, or left over
DIR/.total                                 bytes of all files, and the lock of those who change it

Names say what is in a file, so runs, ranks and datasets may share a folder. A file's time is that of its last use. The
lock is the operating system's (flock), which drops it when its owner dies. The total is raised before a file appears:
so a process that dies leaves it at most too large, and the files are counted anew when it reaches the limit.

Files are not fsynced: the CRC finds one that a power cut has damaged, and it is fetched again.
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
"""A file that is still being written after this time was left behind by a process that died."""

_OURS = re.compile(r"[0-9a-f]{64}\.(\d+|footer)")
_BEING_WRITTEN = re.compile(rf"\.{_OURS.pattern}\.\d+\.\d+")
_CRC_BYTES = 4


@dataclass(frozen=True)
class ShardCache:
    """At most ``max_bytes`` of files in ``folder``, over all processes that use it, and what they are just writing.

    The least recently used file is removed first. Files that are not named like ours are neither counted nor removed.
    Raises ManifestError where the folder cannot be written.
    """

    folder: Path
    max_bytes: int

    def prepare(self) -> None:
        """Makes the folder, counts its files, and removes leftovers and whatever exceeds the limit."""
        with self._writing(), self._locked() as total:
            _write_number(total, self._make_room(0))

    def get(self, name: str) -> bytes | None:
        """The content that was put under the name; None when it is not there or damaged. A damaged file is removed."""
        path = self.folder / name
        try:
            stored = path.read_bytes()
        except OSError:  # not there, or another user's
            return None
        with suppress(OSError):  # the same
            os.utime(path)
        content, crc = stored[:-_CRC_BYTES], stored[-_CRC_BYTES:]
        if _crc(content) != crc:
            self.remove(name)
            return None
        return content

    def put(self, name: str, content: bytes) -> None:
        """Keeps the content, unless it is larger than the whole cache, or the name is taken."""
        size = len(content) + _CRC_BYTES
        path = self.folder / name
        if size > self.max_bytes or path.exists():
            return
        beside = self.folder / f".{name}.{os.getpid()}.{get_ident()}"
        with self._writing():
            try:
                with beside.open("wb") as file:
                    file.write(content)
                    file.write(_crc(content))
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
        """Removes the file. The total is then too large until the files are counted anew."""
        with self._writing():
            (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> int:
        """Removes files until ``size`` more bytes fit; returns the bytes that are left.

        If any must go, an eighth of ``max_bytes`` goes with them, since counting looks at every file.
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
        """The file that holds the total, while no other process can change it."""
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


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "little")


def _read_number(file: int) -> int | None:
    """None when there is none, as in a new file."""
    text = os.pread(file, 32, 0)
    return int(text) if text.isdigit() else None


def _write_number(file: int, number: int) -> None:
    os.pwrite(file, b"%032d" % number, 0)
