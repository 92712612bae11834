"""Power cuts without a power switch: what a disk may hold if the machine stops, at every change of a watched folder.

Python announces every change of names before it is made (`sys.addaudithook`); `os.fsync` is wrapped. At each of these
moments the folder is looked at, which also finds what libraries in C++ have changed since. Needs no privilege, no
file system of its own and no tracer.
Source: Pillai et al., "All File Systems Are Not Created Equal" (OSDI 2014), on what a crash leaves of which calls.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from stat import S_ISDIR, S_ISLNK
from typing import Any

import pytest

Image = tuple[tuple[str, bytes | str | None], ...]
"""A folder's content: each path, with a file's bytes, the target of a link, or None for a folder."""

CRASHES = {
    "content lost": (True, False),
    "content and names lost": (False, False),
    "names lost": (False, True),
    "nothing lost": (True, True),
}
"""Whether names, and contents, are as they are now; otherwise as they were at the last fsync of their folder, or file.

The first is what ext4 leaves, whose names are written every 5 s and whose contents later; the second is all that POSIX
promises; the last is a process that is killed.
"""


@dataclass(eq=False)
class _Node:
    """A file, folder or link, whatever its names are. A link's target and the folder watched are durable from birth."""

    content: bytes | str | None = None
    entries: dict[str, "_Node"] = field(default_factory=dict)
    synced_content: bytes | str | None = None
    synced_entries: dict[str, "_Node"] = field(default_factory=dict)

    def sync(self) -> None:
        self.synced_content, self.synced_entries = self.content, dict(self.entries)

    def lines(self, names: bool, contents: bool, path: str = "") -> Iterator[tuple[str, bytes | str | None]]:
        for name, node in sorted((self.entries if names else self.synced_entries).items()):
            yield f"{path}{name}", node.content if contents else node.synced_content
            yield from node.lines(names, contents, f"{path}{name}/")


class Recording:
    """The images of ``folder``: each one once, with the crash and the event that it comes from. All is synced at first.

    One thread at a time may change the folder.
    """

    def __init__(self, folder: Path):
        self.images: dict[Image, str] = {}
        self.num_events = 0
        self._folder = folder
        self._nodes: dict[int, _Node] = {}
        self._contents: dict[bytes, bytes] = {}  # equal ones once, so that images share them
        self._look()
        for node in self._nodes.values():
            node.sync()

    def event(self, what: str) -> None:
        """Adds the images of this moment."""
        self._look()
        self.num_events += 1
        for crash, image in self.now().items():
            self.images.setdefault(image, f"{crash}, before {what} (event {self.num_events})")

    def now(self) -> dict[str, Image]:
        return {name: tuple(self._root.lines(*kept)) for name, kept in CRASHES.items()}

    def synced(self, descriptor: int) -> None:
        """After an fsync of a file, or of a folder, if it is in the folder."""
        self._look()
        if node := self._nodes.get(os.fstat(descriptor).st_ino):
            node.sync()

    def _look(self) -> None:
        before, self._nodes = self._nodes, {}  # an inode without a name is forgotten: the next file may get its number
        self._root = self._node(self._folder, before)

    def _node(self, path: Path, before: dict[int, _Node]) -> _Node:
        status = path.lstat()
        node = self._nodes.setdefault(status.st_ino, before.get(status.st_ino, _Node()))
        if S_ISDIR(status.st_mode):
            node.entries = {name: self._node(path / name, before) for name in os.listdir(path)}
        elif S_ISLNK(status.st_mode):
            node.content = node.synced_content = os.readlink(path)
        else:
            content = path.read_bytes()
            node.content = self._contents.setdefault(content, content)
            node.synced_content = node.synced_content or b""
        return node


_CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

_lock = threading.RLock()
_recordings: list[Recording] = []  # the one that is going on
_hooks: list[Any] = []  # Python knows no way to remove one


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    if not _recordings or not (event in _CHANGES or (event == "open" and arguments[2] & _WRITING)):
        return
    with _lock:
        if _recordings:
            _recordings[0].event(f"{event} {arguments[0]}")


@contextmanager
def recorded(folder: Path) -> Iterator[Recording]:
    """Records what this process does in ``folder``, where checkpoints are written while nobody else writes."""
    from training.runs.checkpoint import Writer

    fsync, save = os.fsync, Writer.save

    def noted_fsync(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        with _lock:
            recording.event(f"fsync {os.readlink(f'/proc/self/fd/{number}')}")
            fsync(descriptor)
            recording.synced(number)

    def patient_save(writer: Writer, *arguments: Any) -> None:
        save(writer, *arguments)
        writer.wait()

    if not _hooks:
        _hooks.append(_heard)
        sys.addaudithook(_heard)
    recording = Recording(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", noted_fsync)
        patch.setattr(Writer, "save", patient_save)
        _recordings.append(recording)
        try:
            yield recording
        finally:
            with _lock:
                _recordings.clear()
        recording.event("the end")


def restore(image: Image, folder: Path) -> Path:
    """Writes an image to a new folder."""
    folder.mkdir()
    for name, content in image:
        path = folder / name
        if content is None:
            path.mkdir()
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return folder


def sync_tree(folder: Path) -> None:
    """Fsyncs all that is in a folder: for stand-ins of commands whose real ones do that."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def survived(
    recording: Recording, survives: Callable[[Path], str | None], folder: Path, count: int | None = None
) -> str:
    """Restores all images, or ``count`` evenly chosen ones, into ``folder``, and says how many passed.

    ``survives`` returns what is wrong, or None. AssertionError names those that failed.
    """
    found = list(recording.images.items())
    tried = found if count is None else [found[-1 - index * len(found) // count] for index in range(count)]
    failed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # half of the time, and no second cut comes
        for number, (image, origin) in enumerate(tried):
            restored = restore(image, folder / f"image-{number}")
            try:
                wrong = survives(restored)
            except (Exception, SystemExit) as error:
                wrong = repr(error)
            if wrong:
                failed.append(f"{restored}: {origin}: {wrong}")
    assert not failed, "\n".join([f"{len(failed)} of {len(tried)} images failed, the first of them:", *failed[:10]])
    return f"{recording.num_events} events, {len(tried)} of {len(found)} images tried, all survived"
