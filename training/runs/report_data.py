"""The data of report.html: a run's files, its dataset if that still exists, and an evaluation.

V words, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.decode import UNREADABLE
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.verify import checked_batches
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.records import RecordError, read
from pipeline.shared.storage import Location
from training.vectors.run_files import METRICS, Lines, read_config, read_metrics, read_summary
from training.vectors.word_vectors import Tables

Evaluation = dict[str, list[list[str]]]
"""Rows of the tables "pairs" and "analogies": a name, the figure, how many were used, how many were unknown."""

MOST_ROWS = 1 << 20
"""The most rows that are read. Shards are in the order of a hash, so the first rows are a random sample."""


@dataclass(frozen=True)
class Rows:
    """Statistics of the rows that were read, of sampled epoch 0."""

    read: int
    of: int
    """Rows of the whole sampled epoch."""
    centers_V: npt.NDArray[np.int64]
    """How often each word is a center."""
    num_contexts: list[int]
    """The number of rows that have 0, 1, 2 ... contexts."""


@dataclass(frozen=True)
class Sampled:
    """What is left of a dataset; ``missing`` says what could not be read."""

    manifest: Manifest | None
    rows: Rows | None
    missing: str | None


@dataclass(frozen=True)
class FinishedRun:
    """A finished run: the content of its files, and what is left of its dataset."""

    name: str
    config: dict[str, Any]
    summary: dict[str, Any]
    steps: Lines
    """Of metrics.jsonl, those of kind "step"."""
    epochs: Lines
    heldout: Lines
    words: list[str]
    counts_V: npt.NDArray[np.int64]
    center_VD: npt.NDArray[np.float32]
    sampled: Sampled

    @property
    def best(self) -> dict[str, Any] | None:
        """Epoch, step and loss of the lowest held-out loss; None if nothing was held out."""
        heldout = self.summary.get("heldout")
        return heldout["best"] if heldout else None

    @property
    def heldout_by_epoch(self) -> dict[int, float]:
        """The held-out loss at the end of each epoch."""
        ends = {line["step"]: line["epoch"] for line in self.epochs}
        return {ends[line["step"]]: line["loss"] for line in self.heldout if line["step"] in ends}

    @classmethod
    def load(cls, folder: Path) -> "FinishedRun":
        """Raises InputError if ``folder`` holds no finished run, or a damaged one."""
        tables = Tables.load(folder)
        summary = read_summary(folder)
        return cls.at_end(folder, folder.absolute().name, summary, tables.words, tables.counts_V, tables.center_VD)

    @classmethod
    def at_end(
        cls,
        folder: Path,
        name: str,
        summary: dict[str, Any],
        words: list[str],
        counts_V: npt.NDArray[np.int64],
        center_VD: npt.NDArray[np.float32],
        manifest: Manifest | None = None,
    ) -> "FinishedRun":
        """The run whose config.json and metrics.jsonl are in ``folder``, where summary.json may not be written yet."""
        config = read_config(folder)
        lines = read_metrics(folder)
        if not lines["epoch"]:
            raise InputError(f"{folder / METRICS}: found no epoch; train again")
        sampled = read_sampled(config["data"], summary["dataset_id"], manifest)
        kinds = lines["step"], lines["epoch"], lines["heldout"]
        return cls(name, config, summary, *kinds, words, counts_V, center_VD, sampled)


def read_sampled(data: str, dataset_id: str | None, manifest: Manifest | None = None) -> Sampled:
    """What dataset ``data`` says, if it is still ``dataset_id``. Its rows are read only if they are on this machine."""
    try:
        if manifest is None:
            manifest = Manifest.load(data)
        if manifest.dataset_id != dataset_id:
            return Sampled(None, None, f"{data} holds dataset {manifest.dataset_id} now, not the one of this run")
        if Location.of(data).local is None:
            return Sampled(manifest, None, f"{data} is not on this machine, so none of its rows were read")
        return Sampled(manifest, read_rows(data, manifest), None)
    except InputError as error:
        return Sampled(None, None, str(error))
    except UNREADABLE as error:
        return Sampled(manifest, None, f"rows of {data} could not be read ({one_line(error)})")


def read_rows(data: str, manifest: Manifest) -> Rows:
    """Reads whole row groups, MOST_ROWS rows or a few more, of sampled epoch 0. Raises UNREADABLE."""
    centers_V = np.zeros(manifest.vocab_size, np.int64)
    num_contexts = np.zeros(manifest.config.max_contexts + 1, np.int64)
    for batch in _batches(data, manifest):
        centers_V += np.bincount(batch["center"].to_numpy(), minlength=centers_V.size)
        num_contexts += np.bincount(batch["num_contexts"].to_numpy(), minlength=num_contexts.size)
    rows = sum(shard.rows for shard in manifest.select(0))
    return Rows(int(centers_V.sum()), rows, centers_V, num_contexts.tolist())


def _batches(data: str, manifest: Manifest) -> Iterator[pa.RecordBatch]:
    left = MOST_ROWS
    for shard in manifest.select(0):
        with (Location.of(data) / shard.path).open() as source, pq.ParquetFile(source) as file:
            for batch in checked_batches(file, manifest, ["center", "num_contexts"]):
                if left <= 0:
                    return
                yield batch
                left -= manifest.row_group_rows


def read_evaluation(file: Path) -> Evaluation:
    """The tables of what training.evaluate printed. Raises InputError for any other file."""
    try:
        found = read(Location.of(file))
    except (OSError, RecordError) as error:
        raise InputError(f"{file}: cannot be read ({one_line(error)})") from None
    try:
        pairs = [[one["file"], f"{one['spearman']:.4f}", *_known(one, "pairs")] for one in found["pairs"]]
        every = found["analogies"]
        parts = [{"section": every["file"], **every}, *every["sections"]] if every else []
        analogies = [[part["section"], _share(part["accuracy"]), *_known(part, "questions")] for part in parts]
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InputError(f"{file}: expected what python -m training.evaluate prints; name a file of that") from None
    return {"pairs": pairs, "analogies": analogies}


def _known(record: dict[str, Any], name: str) -> list[str]:
    return [f"{record[name]:,}", f"{record['unknown']:,}"]


def _share(accuracy: float | None) -> str:
    return "-" if accuracy is None else f"{accuracy:.2%}"
