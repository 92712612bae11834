"""Shards: one Parquet file of examples, its row groups full whatever the sizes of the pieces that come."""

import hashlib
import os
import tempfile
import uuid
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.dataset.encode import ExampleWriter
from pipeline.dataset.manifest_file import ShardInfo
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Examples
from pipeline.shared.storage import Location

ROW_GROUP_ROWS = 16_384


def versions() -> dict[str, str]:
    """The libraries that decide the bytes."""
    return {"numpy": np.__version__, "pyarrow": pa.__version__}


class ShardFile:
    """One shard in the making: row groups of exactly ``ROW_GROUP_ROWS`` rows, the last one apart.

    Written beside its final name and renamed by ``close``; a shard without rows leaves no file.
    """

    def __init__(self, generation: Location, split: str, epoch: int, number: int, attempt: str, config: PipelineConfig):
        self.split, self.epoch = split, epoch
        self.name = f"{split}/epoch={epoch}/shard-{number:05d}.parquet"
        self._generation = generation
        self.num_rows = 0
        self.num_pairs = 0
        self._negatives = config.negatives
        self._final = generation / self.name
        self._beside = _beside(self._final, attempt)
        self._pending: list[list[npt.NDArray[Any]]] = []
        self._num_pending = 0
        self._file: _HashingFile | None = None
        self._writer: ExampleWriter | None = None

    def append(self, examples: Examples) -> None:
        """Takes rows; writes those that fill row groups."""
        self.num_rows += examples.center_N.size
        self.num_pairs += int(examples.num_contexts_N.sum())
        columns = examples.center_N, examples.contexts_negatives_NL, examples.num_contexts_N
        start, size = 0, examples.center_N.size
        while start < size:
            stop = min(start + ROW_GROUP_ROWS - self._num_pending, size)
            rows = [column[start:stop] for column in columns]
            self._num_pending += stop - start
            start = stop
            if self._num_pending == ROW_GROUP_ROWS:
                self._pending.append(rows)
                self._write_row_group()
            else:  # copied, so as not to hold what the rest is a view of
                self._pending.append([column.copy() for column in rows])

    def close(self) -> ShardInfo | None:
        """Writes the rest, makes the file whole and gives it its name; None when there were no rows."""
        if self._pending:
            self._write_row_group()
        if self._writer is None or self._file is None:
            return None
        self._writer.close()
        size, sha256 = self._file.finish()
        if self._final.local is None:
            self._final.put(self._beside)
            self.discard()
        else:
            self._beside.replace(self._final.local)
        path = f"{self._generation.path.rpartition('/')[2]}/{self.name}"
        return ShardInfo(path, self.split, self.epoch, self.num_rows, size, sha256)

    def discard(self) -> None:
        """Removes what an attempt that failed has left; harmless after ``close``."""
        self._beside.unlink(missing_ok=True)

    def _make_folder(self) -> None:
        """Inside a generation that is there: one that the driver has removed is not made again by a task left over."""
        folder = self._beside.parent
        if self._final.local is None:
            folder.mkdir(parents=True, exist_ok=True)
            return
        for missing in (folder.parent, folder):
            missing.mkdir(exist_ok=True)

    def _write_row_group(self) -> None:
        if self._writer is None:
            self._make_folder()
            self._file = _HashingFile(self._beside)
            self._writer = ExampleWriter(self._file, self._negatives)
        pieces = self._pending
        columns = pieces[0] if len(pieces) == 1 else [np.concatenate(column) for column in zip(*pieces, strict=True)]
        self._writer.write_row_group(*columns)
        self._pending, self._num_pending = [], 0


def _beside(final: Location, attempt: str) -> Path:
    """Where an attempt writes: next to its final name; what goes to an object store, in this machine's own folder."""
    name = f".{final.path.rpartition('/')[2]}.{attempt}"
    if final.local is not None:
        return final.local.with_name(name)
    return Path(tempfile.gettempdir(), "shardvec", f"{name}.{uuid.uuid4().hex}")


class _HashingFile:
    """A file open for writing that knows its size and SHA-256 when it is finished."""

    def __init__(self, path: Path):
        self._file: IO[bytes] = path.open("wb")
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        return self._file.write(data)

    def finish(self) -> tuple[int, str]:
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return size, self._sha256.hexdigest()
