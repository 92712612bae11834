"""A run in TensorBoard: the figures of metrics.jsonl while it goes on, and the words in the projector at its end.

tensorboard --logdir runs
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.shared.errors import InputError
from pipeline.shared.files import atomic_write
from training.vectors.run_files import BOARD

SCALARS = ("loss", "mean_loss", "lr", "tokens_per_s", "wait_share")
MOST_WORDS = 10_000
"""In the projector: more than a browser turns smoothly."""

FLUSH_S = 10
PROJECTOR = """embeddings {
  tensor_name: "center"
  tensor_path: "center.tsv"
  metadata_path: "words.tsv"
}
"""


class Board:
    """Event files in a run's folder; ``add`` costs 0.5 ms, and a thread writes."""

    def __init__(self, folder: Path, done: int = 0):
        """Goes on after ``done`` steps: points of later ones, which were lost, are taken back."""
        from torch.utils.tensorboard import SummaryWriter  # half a second, and of no use without

        purge_step = done + 1 if done else None
        self._writer = SummaryWriter(str(folder / BOARD), purge_step=purge_step, flush_secs=FLUSH_S)
        self._failed = False
        self._hook = threading.excepthook
        threading.excepthook = self._note_of_a_thread

    def add(self, line: dict[str, Any]) -> None:
        """A line of metrics.jsonl: "step/loss" and its like, "epoch/loss" and its like, each at its step of the run.

        Raises OSError when this point, or one before, cannot be written.
        """
        with self._noting_failure():
            for name in SCALARS:
                if name in line:
                    self._writer.add_scalar(f"{line['kind']}/{name}", line[name], line["step"])

    def flush(self) -> None:
        """Returns when all points are in the file. Raises OSError when they cannot be."""
        with self._noting_failure():
            self._writer.flush()

    def close(self) -> None:
        """Raises OSError when points cannot be written, unless that has been said."""
        try:
            if not self._failed:
                with self._noting_failure():
                    self._writer.close()
        finally:
            threading.excepthook = self._hook

    def _note_of_a_thread(self, ended: threading.ExceptHookArgs) -> None:
        """What ends TensorBoard's own thread is raised here at the next call, so it needs no traceback besides."""
        if not (isinstance(ended.exc_value, OSError) and type(ended.thread).__module__.startswith("tensorboard.")):
            self._hook(ended)

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """A writer that has failed once raises the same at every call, and so would hide what is said of it."""
        try:
            yield
        except OSError:
            self._failed = True
            raise


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
    with atomic_write(board / "projector_config.pbtxt") as file:
        file.write(PROJECTOR.encode())
