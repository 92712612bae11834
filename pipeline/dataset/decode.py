"""A shard's row groups, for the trainer: read as they are stored, and their rows unpacked in any order.

The shards are ordinary Parquet, laid out by encode.py, and pyarrow reads them, but half of its time goes into
the lists' levels, which say that every list is as long as the last, and its rows must then be put in order. Here a
row's bits are found by multiplication. A row is copied from the file, decompressed, and unpacked to where it is used.
R rows wanted, L = max_len targets a row.
Source: parquet-format's README, Encodings.md and parquet.thrift; thrift-compact-protocol.md.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.unpacking import MAX_BITS, PLAIN_BITS, Column, Int16, Int32, unpack_rows

_CENTER, _TARGETS, _NUM_CONTEXTS = "center", "contexts_negatives.list.element", "num_contexts"  # the columns we read
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2  # PageType
_PLAIN, _RLE_DICTIONARY = 0, 8  # Encoding
_CODECS = {"UNCOMPRESSED": None, "LZ4": "lz4_raw"}  # pyarrow's names: of the metadata, of the codec


Read = Callable[[int, int], bytes | memoryview]
"""Bytes of a file: from this offset on, so many."""


class ShardError(ValueError):
    """A row group that is damaged, or not as the pipeline lays it out."""


@dataclass(frozen=True)
class Layout:
    """What the manifest says of every row: L targets, ``targets_a_context`` for a context and its negatives."""

    max_len: int
    targets_a_context: int


@dataclass(frozen=True)
class RowGroup:
    """A row group in memory, about as many bytes a row as targets: three columns of bits."""

    layout: Layout
    center: Column
    targets: Column
    num_contexts: Column

    @classmethod
    def read(cls, path: Path, metadata: pq.FileMetaData, row_group: int, num_rows: int, layout: Layout) -> "RowGroup":
        """``decode`` of a file's row group."""
        with path.open("rb", buffering=0) as file:

            def read(offset: int, num_bytes: int) -> bytes:
                file.seek(offset)
                return file.read(num_bytes)

            return cls.decode(read, metadata, row_group, num_rows, layout)

    @classmethod
    def decode(cls, read: Read, metadata: pq.FileMetaData, row_group: int, num_rows: int, layout: Layout) -> "RowGroup":
        """Verifies every page's checksum, and that no row has more targets than there are places.

        ``metadata`` is the file's, ``read`` gives at least what lies in ``stored_range``. Raises ShardError, OSError or
        pa.ArrowException when the row group is not what is expected.
        """
        chunks = _chunks(metadata, row_group)
        found = metadata.row_group(row_group).num_rows
        if found != num_rows:
            raise ShardError(f"row group {row_group} has {found} rows, the manifest implies {num_rows}")
        center = _column(read, chunks, _CENTER, num_rows)
        targets = _column(read, chunks, _TARGETS, num_rows * layout.max_len)
        num_contexts = _column(read, chunks, _NUM_CONTEXTS, num_rows)
        values = num_contexts[2]
        if not values.size or not 0 <= values.min() <= values.max() <= layout.max_len // layout.targets_a_context:
            raise ShardError(f"num_contexts: values that do not fit into {layout.max_len} targets a row")
        return cls(layout, center, targets, num_contexts)

    def unpack(
        self, rows_R: Int32, place: int, share: int, stride: int, center_N: Int32, targets_NL: Int32, counts_N: Int16
    ) -> None:
        """``unpack_rows`` of rows of this row group, whose numbers are not checked."""
        columns = self.center, self.targets, self.num_contexts
        targets_a_context = self.layout.targets_a_context
        unpack_rows(rows_R, targets_a_context, *columns, place, share, stride, center_N, targets_NL, counts_N)

    def rows(self, rows_R: Int32) -> tuple[Int32, Int32, Int16]:
        """Rows on their own: center (R,), contexts_negatives (R, L), num_contexts (R,)."""
        found = np.zeros(rows_R.size, np.int32), np.zeros((rows_R.size, self.layout.max_len), np.int32)
        num_contexts = np.zeros(rows_R.size, np.int16)
        self.unpack(rows_R, 0, 1, 1, *found, num_contexts)
        return *found, num_contexts


def stored_range(metadata: pq.FileMetaData, row_group: int) -> tuple[int, int]:
    """Where in the file the columns that we read begin and end. Raises ShardError."""
    chunks = _chunks(metadata, row_group)
    ranges = [_range(chunks, name) for name in (_CENTER, _TARGETS, _NUM_CONTEXTS)]
    return min(begin for begin, _ in ranges), max(end for _, end in ranges)


def _chunks(metadata: pq.FileMetaData, row_group: int) -> dict[str, pq.ColumnChunkMetaData]:
    if row_group >= metadata.num_row_groups:
        raise ShardError(f"it has {metadata.num_row_groups} row groups, not number {row_group}")
    group = metadata.row_group(row_group)
    return {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}


def _range(chunks: dict[str, pq.ColumnChunkMetaData], name: str) -> tuple[int, int]:
    if name not in chunks:
        raise ShardError(f"no column {name} among {', '.join(chunks)}")
    chunk = chunks[name]
    begin = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    return begin, begin + chunk.total_compressed_size


def _column(read: Read, chunks: dict[str, pq.ColumnChunkMetaData], name: str, num_values: int) -> Column:
    begin, end = _range(chunks, name)
    metadata = chunks[name]
    chunk = memoryview(read(begin, end - begin))
    try:
        return _decoded(chunk, _CODECS[metadata.compression], "." in name, num_values)
    except (LookupError, TypeError, OverflowError, ValueError) as error:
        reason = error if isinstance(error, ShardError) else f"a page header says what cannot be ({error!r})"
        raise ShardError(f"{name}: {reason}") from None


def _decoded(chunk: memoryview, codec: str | None, nested: bool, num_values: int) -> Column:
    header, body, end = _page(chunk, 0, codec)
    values, start = np.zeros(0, dtype="<i4"), 0
    if header[1] == _DICTIONARY_PAGE:
        values = np.frombuffer(body, dtype="<i4")
        header, body, end = _page(chunk, end, codec)
    if header[1] != _DATA_PAGE or header[5][1] != num_values or end != len(chunk):
        raise ShardError(f"one data page of {num_values} values expected")
    if nested:
        for _ in ("repetition", "definition"):
            start += 4 + int.from_bytes(body[start : start + 4], "little")
    if header[5][2] == _PLAIN:
        return _words(body, start, num_values * PLAIN_BITS // 8), PLAIN_BITS, np.zeros(0, dtype=np.int32)

    bits = body[start]
    num_groups = -(-num_values // 8)
    run, start = _varint(body, start + 1)
    if header[5][2] != _RLE_DICTIONARY or run != num_groups << 1 | 1 or len(body) != start + num_groups * bits:
        raise ShardError(f"one bit-packed run of {num_values} values expected")
    if not 1 <= bits <= MAX_BITS or values.size > 1 << bits:
        raise ShardError(f"{values.size} values in the dictionary, {bits} bits a value")
    padded = np.zeros(1 << bits, dtype=np.int32)  # so that no index can leave it
    padded[: values.size] = values
    return _words(body, start, num_groups * bits), bits, padded


def _words(body: memoryview, start: int, num_bytes: int) -> npt.NDArray[np.uint64]:
    """The 64-bit words that begin at each of the bytes but the last seven; a few bytes are filled up to one word."""
    if num_bytes < 8:
        body, start, num_bytes = memoryview(bytes(body[start : start + num_bytes]).ljust(8, b"\0")), 0, 8
    return np.ndarray((num_bytes - 7,), "<u8", body, start, strides=(1,))


def _page(chunk: memoryview, start: int, codec: str | None) -> tuple[dict[int, Any], memoryview, int]:
    """PageHeader as {field id: value}, the page's body, verified and uncompressed, and where the page ends."""
    header, start = _struct(chunk, start)
    stored = chunk[start : start + header[3]]
    if zlib.crc32(stored) != header[4] % (1 << 32):
        raise ShardError("the CRC of a page does not fit")
    body = memoryview(pa.decompress(stored, header[2], codec) if codec else stored).cast("B")  # pyarrow's is signed
    return header, body, start + header[3]


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct of integers and structs in Thrift's compact protocol, which is what page headers are."""
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        number, kind = number + (data[at] >> 4), data[at] & 0xF
        if kind == 12:
            fields[number], at = _struct(data, at + 1)
        elif kind in (5, 6) and data[at] >> 4:
            zigzag, at = _varint(data, at + 1)
            fields[number] = zigzag >> 1 ^ -(zigzag & 1)
        else:
            raise ShardError(f"a page header with a field of type {kind}")
    return fields, at + 1


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at
