"""Shards: Parquet files of examples in row groups of equal size."""

import hashlib
from contextlib import AbstractContextManager, ExitStack
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.dataset.encode import ExampleWriter
from pipeline.dataset.manifest_file import ShardInfo, Split
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Examples
from pipeline.shared.files import fsync
from pipeline.shared.storage import Location

ROW_GROUP_ROWS = 16_384


def versions() -> dict[str, str]:
    """The versions of the libraries that the bytes of a shard depend on."""
    return {"numpy": np.__version__, "pyarrow": pa.__version__}


class ShardFile:
    """Writes one shard in row groups of exactly ``ROW_GROUP_ROWS`` rows; the last row group may be smaller.

    The file appears, whole and durably, when the ``with`` block ends without an error. No rows, no file.
    """

    def __init__(self, generation: Location, split: Split, epoch: int, number: int, config: PipelineConfig):
        self.split, self.epoch = split, epoch
        self.name = f"{split}/epoch={epoch}/shard-{number:05d}.parquet"
        self._generation = generation
        self.num_rows = 0
        self.num_pairs = 0
        self._negatives = config.negatives
        self._pending: list[list[npt.NDArray[Any]]] = []
        self._num_pending = 0
        self._open_files = ExitStack()
        self._file: _HashingFile | None = None
        self._writer: ExampleWriter | None = None

    def __enter__(self) -> "ShardFile":
        return self

    def __exit__(self, *error: Any) -> None:
        self._open_files.__exit__(*error)

    def append(self, examples: Examples) -> None:
        """Adds rows, and writes every full row group."""
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
            else:  # copied, since a view would keep the whole piece in memory
                self._pending.append([column.copy() for column in rows])

    def finish(self) -> ShardInfo | None:
        """Writes the last row group and the footer. Returns None if the shard has no rows."""
        if self._pending:
            self._write_row_group()
        if self._writer is None or self._file is None:
            return None
        self._writer.close()
        path = f"{self._generation.path.rpartition('/')[2]}/{self.name}"
        return ShardInfo(path, self.split, self.epoch, self.num_rows, self._file.size, self._file.sha256.hexdigest())

    def _write_row_group(self) -> None:
        if self._writer is None:
            self._file = _HashingFile(self._open_files.enter_context(self._open()))
            self._writer = ExampleWriter(self._file, self._negatives)
        pieces = self._pending
        columns = pieces[0] if len(pieces) == 1 else [np.concatenate(column) for column in zip(*pieces, strict=True)]
        self._writer.write_row_group(*columns)
        self._pending, self._num_pending = [], 0

    def _open(self) -> AbstractContextManager[IO[bytes]]:
        """Creates the missing folders of the shard, but never the generation: a task may outlive its job's clean-up."""
        final = self._generation / self.name
        if final.local is not None:
            for folder in (final.local.parent.parent, final.local.parent):
                folder.mkdir(exist_ok=True)
                fsync(folder.parent)
        return final.atomic_write()


class _HashingFile:
    """A file open for writing, with the size and the SHA-256 of its content."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self.size, self.sha256 = 0, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.size += len(data)
        self.sha256.update(data)
        return self._file.write(data)
