"""A local folder that caches what was fetched of remote shards, up to a number of bytes.

DIR/<key of the shard>.<row group>     the stored bytes, and their CRC
DIR/<key of the shard>.footer
DIR/.<name>.<16 hex>                   a file being written, or a leftover
DIR/.total                             bytes of all files, and the lock for changing it

A key is a digest of where the dataset is and of what the manifest there lists, so runs, ranks and datasets can share a
folder, and no dataset feeds another's readers. Whoever may write to the folder can: the CRC is no signature.

A file's time is that of its last use. The lock is the operating system's (flock), which releases it when its owner
dies. The total is raised before a file appears. So it can only be too large after a process dies, and files are counted
again when it reaches the limit.

Files are not fsynced: the CRC detects a file that a power cut has damaged, and it is fetched again.
"""

import fcntl
import os
import re
import secrets
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.dataset.manifest_file import ManifestError
from pipeline.shared.files import os_errors

TOTAL = ".total"
LEFT_OVER_S = 3600
"""A file that is still being written after this time is a leftover of a process that died."""

_OURS = re.compile(r"[0-9a-f]{64}\.(\d+|footer)")
_BEING_WRITTEN = re.compile(rf"\.{_OURS.pattern}\.[0-9a-f.]+")
_CRC_BYTES = 4


@dataclass(frozen=True)
class ShardCache:
    """At most ``max_bytes`` of files in ``folder``, which processes can share, apart from files being written.

    The least recently used file is removed first. Files with other names are neither counted nor removed. Raises
    ManifestError if the folder cannot be written.
    """

    folder: Path
    max_bytes: int

    def prepare(self) -> None:
        """Creates the folder, counts its files, and removes leftovers and files beyond the limit."""
        with self._writing(), self._locked() as total:
            _write_number(total, self._make_room(0))

    def get(self, name: str) -> bytes | None:
        """The content of ``put``; None if it is missing or damaged. A damaged file is removed."""
        path = self.folder / name
        try:
            stored = path.read_bytes()
        except OSError:  # missing, or another user's
            return None
        with suppress(OSError):  # another user's
            os.utime(path)
        content, crc = stored[:-_CRC_BYTES], stored[-_CRC_BYTES:]
        if _crc(content) != crc:
            self.remove(name)
            return None
        return content

    def put(self, name: str, content: bytes) -> None:
        """Stores the content, unless it is larger than the whole cache or the name exists."""
        size = len(content) + _CRC_BYTES
        path = self.folder / name
        if size > self.max_bytes or path.exists():
            return
        beside = self.folder / f".{name}.{secrets.token_hex(8)}"
        with self._writing():
            try:
                with open(beside, "xb", opener=_not_a_link) as file:
                    file.write(content)
                    file.write(_crc(content))
                with self._locked() as total:
                    if path.exists():  # another process was faster
                        return
                    used = _read_number(total)
                    if used is None or used + size > self.max_bytes:
                        used = self._make_room(size)
                    _write_number(total, used + size)
                    beside.replace(path)
            finally:
                beside.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """Removes the file. The total is then too large until the files are counted again."""
        with self._writing():
            (self.folder / name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> int:
        """Removes files until ``size`` more bytes fit. Returns the bytes of the remaining files.

        If it removes any, it frees another eighth of ``max_bytes``, because counting looks at every file.
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
        """The file with the total, locked against changes by other processes."""
        total = os.open(self.folder / TOTAL, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
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


def _not_a_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def _crc(content: bytes) -> bytes:
    return zlib.crc32(content).to_bytes(_CRC_BYTES, "little")


def _read_number(file: int) -> int | None:
    """The number in the file; None for a new file."""
    text = os.pread(file, 32, 0)
    return int(text) if text.isdigit() else None


def _write_number(file: int, number: int) -> None:
    os.pwrite(file, b"%032d" % number, 0)
