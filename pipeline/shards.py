"""Shards: the Arrow schema of an example, and one Parquet file of them."""

import hashlib
import os
import tempfile
import uuid
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import PipelineConfig
from pipeline.manifest import ShardInfo
from pipeline.sampling import Examples
from pipeline.storage import Location

ROW_GROUP_ROWS = 16_384


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


# Not null throughout: it reads a third faster. Plain lists, since petastorm and Spark know no fixed-size ones.
SCHEMA = pa.schema(
    [
        pa.field("center", pa.int32(), nullable=False),
        pa.field("contexts_negatives", _list_of(pa.int32()), nullable=False),
        pa.field("mask", _list_of(pa.int8()), nullable=False),
        pa.field("label", _list_of(pa.int8()), nullable=False),
        pa.field("num_contexts", pa.int16(), nullable=False),
    ]
)


def versions() -> dict[str, str]:
    """The libraries that decide the bytes."""
    return {"numpy": np.__version__, "pyarrow": pa.__version__}


def to_table(examples: Examples, negatives: int) -> pa.Table:
    """The examples as they are stored, with ``mask`` and ``label`` written out for readers that know nothing of us."""
    place_L = np.arange(examples.contexts_negatives_NL.shape[1])
    num_contexts_N1 = examples.num_contexts_N[:, None].astype(np.int64)
    columns = [
        pa.array(examples.center_N),
        _list_column(examples.contexts_negatives_NL, pa.int32()),
        _list_column((place_L < num_contexts_N1 * (1 + negatives)).astype(np.int8), pa.int8()),
        _list_column((place_L < num_contexts_N1).astype(np.int8), pa.int8()),
        pa.array(examples.num_contexts_N),
    ]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _list_column(values_NL: npt.NDArray[np.generic], kind: pa.DataType) -> pa.ListArray:
    num_rows, width = values_NL.shape
    offsets = pa.array(np.arange(num_rows + 1, dtype=np.int32) * np.int32(width))
    return pa.ListArray.from_arrays(offsets, pa.array(values_NL.reshape(-1), kind), type=_list_of(kind))


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
        final = generation / self.name
        folder = (
            Path(tempfile.gettempdir(), "shardvec", uuid.uuid4().hex) if final.local is None else final.local.parent
        )
        self._beside = folder / f".{Path(self.name).name}.{attempt}"
        self._pending: list[Examples] = []
        self._file: _HashingFile | None = None
        self._writer: pq.ParquetWriter | None = None

    def append(self, examples: Examples) -> None:
        """Takes rows; writes those that fill row groups."""
        self.num_rows += examples.center_N.size
        self.num_pairs += int(examples.num_contexts_N.sum())
        self._pending.append(examples)
        num_pending = sum(piece.center_N.size for piece in self._pending)
        if num_pending >= ROW_GROUP_ROWS:
            self._write(num_pending - num_pending % ROW_GROUP_ROWS)

    def close(self) -> ShardInfo | None:
        """Writes the rest, makes the file whole and gives it its name; None when there were no rows."""
        self._write(sum(piece.center_N.size for piece in self._pending))
        if self._writer is None or self._file is None:
            return None
        self._writer.close()
        size, sha256 = self._file.finish()
        final = self._generation / self.name
        if final.local is None:
            final.put(self._beside)
        else:
            self._beside.replace(final.local)
        path = f"{self._generation.path.rpartition('/')[2]}/{self.name}"
        return ShardInfo(path, self.split, self.epoch, self.num_rows, size, sha256)

    def discard(self) -> None:
        """Removes what an attempt that failed has left; harmless after ``close``."""
        self._beside.unlink(missing_ok=True)

    def _write(self, num_rows: int) -> None:
        if num_rows == 0:
            return
        center, rows, num_contexts = (
            np.concatenate([getattr(piece, name) for piece in self._pending])
            for name in ("center_N", "contexts_negatives_NL", "num_contexts_N")
        )
        full = Examples(center[:num_rows], rows[:num_rows], num_contexts[:num_rows], 0)
        self._pending = [Examples(center[num_rows:], rows[num_rows:].copy(), num_contexts[num_rows:], 0)]
        if self._writer is None:
            self._beside.parent.mkdir(parents=True, exist_ok=True)
            self._file = _HashingFile(self._beside)
            self._writer = open_writer(self._file)
        self._writer.write_table(to_table(full, self._negatives), row_group_size=ROW_GROUP_ROWS)


def open_writer(where: "_HashingFile | Path") -> pq.ParquetWriter:
    """The one encoding of a shard: dictionaries and LZ4, chosen for reading (benchmarks/encodings.py).

    Zstandard would save a tenth of the size and cost a fifth of the reading speed; plain values read no faster, since
    most of the time goes into the lists' levels. Everything down to pyarrow 14 reads it.
    """
    return pq.ParquetWriter(where, SCHEMA, compression="lz4", write_page_checksum=True)


class _HashingFile:
    """A file open for writing that knows its size and SHA-256 when it is finished; what ParquetWriter needs of one."""

    def __init__(self, path: Path):
        self._file: IO[bytes] = path.open("wb")
        self._sha256 = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def close(self) -> None:
        self._file.close()

    def finish(self) -> tuple[int, str]:
        self._file.flush()
        os.fsync(self._file.fileno())
        size = self._file.tell()
        self._file.close()
        return size, self._sha256.hexdigest()
