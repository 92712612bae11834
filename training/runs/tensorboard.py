"""A run in TensorBoard: the figures of metrics.jsonl during training, and the words in the projector at its end.

tensorboard --logdir runs
"""

import os
import re
import socket
import time
from contextlib import suppress
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.shared.errors import InputError
from pipeline.shared.files import atomic_write, os_errors, write
from training.vectors.run_files import BOARD

SCALARS = ("loss", "mean_loss", "lr", "tokens_per_s", "wait_share")
MOST_WORDS = 10_000
"""In the projector: more than a browser turns smoothly."""

REMEDY = "make room and go on with --resume, or leave it out with --no-tensorboard"
PROJECTOR = """embeddings {
  tensor_name: "center"
  tensor_path: "center.tsv"
  metadata_path: "words.tsv"
}
"""


class Board:
    """An event file in a run's folder. Written by the caller's thread: a line costs 0.1 ms and comes every 50 steps."""

    def __init__(self, folder: Path, done: int = 0):
        """Appends after ``done`` steps: TensorBoard discards the points of later steps, which were lost.

        Raises InputError.
        """
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # a third of a second, and of no use without
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = Event, Summary
        with os_errors(f"{folder / BOARD}: cannot be written", REMEDY):
            (folder / BOARD).mkdir(exist_ok=True)
            self._file = _new_event_file(folder / BOARD)
        self._records = RecordWriter(self._file)
        self._write(file_version="brain.Event:2")
        if done:
            self._write(step=done + 1, session_log=SessionLog(status=SessionLog.START))

    def add(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl: "step/loss" and the like, "epoch/loss" and the like, each at its step of the run.

        Raises InputError.
        """
        values = [
            self._summary.Value(tag=f"{line['kind']}/{name}", simple_value=line[name])
            for name in SCALARS
            if name in line
        ]
        self._write(step=line["step"], summary=self._summary(value=values))

    def close(self) -> None:
        """Idempotent. Every line is in the file already, or ``add`` has raised: nothing is raised here."""
        if not self._file.closed:
            with suppress(OSError), self._file:
                os.fsync(self._file.fileno())

    def _write(self, **fields: Any) -> None:
        with os_errors(f"{self._file.name}: cannot be written", REMEDY):
            self._records.write(self._event(wall_time=time.time(), **fields).SerializeToString())
            self._file.flush()


def _new_event_file(folder: Path) -> BinaryIO:
    """A new file, named as TensorBoard expects; it reads the files of a folder in the order of their names."""
    for number in count():
        with suppress(FileExistsError):
            return (folder / f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{number}").open("xb")
    raise AssertionError


def check_board() -> None:
    """Raises InputError where there is no TensorBoard."""
    if find_spec("tensorboard") is None:
        raise InputError("found no package tensorboard, expected one to write for; install it, or add --no-tensorboard")


def write_projector(
    folder: Path, words: list[str], counts_V: npt.NDArray[np.int64], center_VD: npt.NDArray[np.float32]
) -> None:
    """What the projector shows of the run in ``folder``: its most frequent words, MOST_WORDS at most, without <unk>."""
    from training.vectors.export_formats import write_lines, write_numbers  # pyarrow.compute, which no other rank needs

    board = folder / BOARD
    board.mkdir(exist_ok=True)
    shown = slice(1, MOST_WORDS + 1)
    plain = [re.sub(r"\s", "_", word) for word in words[shown]]
    rows = [f"{word}\t{count}" for word, count in zip(plain, counts_V[shown].tolist(), strict=True)]
    with atomic_write(board / "center.tsv") as file:
        write_numbers(file, center_VD[shown])
    with atomic_write(board / "words.tsv") as file:
        write_lines(file, pa.array(["word\tcount", *rows]))
    write(board / "projector_config.pbtxt", PROJECTOR.encode())
