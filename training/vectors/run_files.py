"""What the files of a finished run are called, and how a file appears whole or not at all. Needs no torch."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

SUMMARY = "summary.json"
VECTORS = "vectors.safetensors"
VOCAB = "vocab.parquet"
REPORT = "report.html"
BOARD = "tensorboard"


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write in, beside ``path``; it is there under that name when all is written, and else not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def synced(path: Path) -> None:
    """Has the operating system write a file, or a folder's list of files, to the disk, for when the power fails."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
