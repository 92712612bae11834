"""A shard's row groups for the trainer: read as they are stored, with rows unpacked in any order.

The shards are ordinary Parquet, which encode.py writes and pyarrow can read. But pyarrow spends half of its time on the
lists' levels, which only say that all lists have the same length, and its rows would still have to be reordered. Here
the position of a row's bits is computed by a multiplication. A row is copied three times: from the file, by the
decompression, and by unpacking.
R rows to unpack, L = max_len targets a row.
Source: parquet-format's README, Encodings.md and parquet.thrift; thrift-compact-protocol.md.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.unpacking import MAX_BITS, PLAIN_BITS, Column, Columns, Int32, Places, Rows, unpack_rows

_COLUMNS = "center", "contexts_negatives.list.element", "num_contexts"
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2  # PageType
_PLAIN, _RLE_DICTIONARY = 0, 8  # Encoding
_CODECS = {"UNCOMPRESSED": None, "LZ4": "lz4_raw"}  # pyarrow's names: of the metadata, of the codec


Read = Callable[[int, int], bytes]
"""Reads from a file: (offset, number of bytes) -> bytes."""


class ShardError(ValueError):
    """A row group that is damaged, or that the pipeline did not write."""


@dataclass(frozen=True)
class Layout:
    """The layout of every row: L targets, ``targets_a_context`` for each context with its negatives."""

    max_len: int
    targets_a_context: int


@dataclass(frozen=True)
class RowGroup:
    """A row group in memory: about as many bytes per row as it has targets."""

    layout: Layout
    columns: Columns

    @classmethod
    def read(cls, read: Read, metadata: pq.FileMetaData, row_group: int, num_rows: int, layout: Layout) -> "RowGroup":
        """Reads a row group; verifies every page's checksum, and that every row's targets fit into ``max_len``.

        ``metadata`` is the file's. Calls ``read`` once, for the ``stored_range``. Raises ShardError, OSError or
        pa.ArrowException if the row group is damaged or not as expected.
        """
        chunks = _chunks(metadata, row_group)
        found = metadata.row_group(row_group).num_rows
        if found != num_rows:
            raise ShardError(f"row group {row_group} has {found} rows, the manifest implies {num_rows}")
        begin, end = _range(chunks)
        stored = memoryview(read(begin, end - begin))
        sizes = num_rows, num_rows * layout.max_len, num_rows
        columns = Columns(*(_column(stored, begin, chunk, size) for chunk, size in zip(chunks, sizes, strict=True)))
        counts = columns.num_contexts[2]
        if not counts.size or not 0 <= counts.min() <= counts.max() <= layout.max_len // layout.targets_a_context:
            raise ShardError(f"num_contexts: found values that do not fit into {layout.max_len} targets a row")
        return cls(layout, columns)

    def unpack(self, rows_R: Int32, places: Places, out: Rows) -> None:
        """Writes rows of this row group to ``places`` of ``out``. Row numbers are not checked."""
        unpack_rows(rows_R, self.layout.targets_a_context, self.columns, places, out)

    def rows(self, rows_R: Int32) -> Rows:
        """Rows in new arrays: center (R,), contexts_negatives (R, L), num_contexts (R,)."""
        found = Rows.zeros(rows_R.size, self.layout.max_len)
        self.unpack(rows_R, Places(first=0, share=1, stride=1, offset=0), found)
        return found


def stored_range(metadata: pq.FileMetaData, row_group: int) -> tuple[int, int]:
    """The offsets in the file at which our columns begin and end. Raises ShardError."""
    return _range(_chunks(metadata, row_group))


def _chunks(metadata: pq.FileMetaData, row_group: int) -> list[pq.ColumnChunkMetaData]:
    """Our columns, in the order of ``Columns``."""
    if row_group >= metadata.num_row_groups:
        raise ShardError(f"it has {metadata.num_row_groups} row groups, not number {row_group}")
    group = metadata.row_group(row_group)
    found = {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}
    for name in _COLUMNS:
        if name not in found:
            raise ShardError(f"no column {name} among {', '.join(found)}")
    return [found[name] for name in _COLUMNS]


def _range(chunks: Sequence[pq.ColumnChunkMetaData]) -> tuple[int, int]:
    begin, end = min(map(_begin, chunks)), max(_begin(chunk) + chunk.total_compressed_size for chunk in chunks)
    if not 0 <= begin < end:
        raise ShardError(f"its footer places it at bytes {begin} to {end}")
    return begin, end


def _begin(chunk: pq.ColumnChunkMetaData) -> int:
    return chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset  # type: ignore[no-any-return]


def _column(stored: memoryview, begin: int, chunk: pq.ColumnChunkMetaData, num_values: int) -> Column:
    """The column of ``chunk``. ``stored`` is the file's bytes from offset ``begin`` on."""
    name, first = chunk.path_in_schema, _begin(chunk) - begin
    content = stored[first : first + chunk.total_compressed_size]
    try:
        return _decoded(content, _CODECS[chunk.compression], "." in name, num_values)
    except (LookupError, TypeError, OverflowError, ValueError) as error:
        reason = error if isinstance(error, ShardError) else f"invalid page header ({error!r})"
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
    padded = np.zeros(1 << bits, dtype=np.int32)  # so that no index is outside
    padded[: values.size] = values
    return _words(body, start, num_groups * bits), bits, padded


def _words(body: memoryview, start: int, num_bytes: int) -> npt.NDArray[np.uint64]:
    """The 64-bit words that begin at every byte except the last seven. Fewer than 8 bytes are padded to one word."""
    if num_bytes < 8:
        body, start, num_bytes = memoryview(bytes(body[start : start + num_bytes]).ljust(8, b"\0")), 0, 8
    return np.ndarray((num_bytes - 7,), "<u8", body, start, strides=(1,))


def _page(chunk: memoryview, start: int, codec: str | None) -> tuple[dict[int, Any], memoryview, int]:
    """The PageHeader as {field id: value}, the page's verified and decompressed body, and the page's end."""
    header, start = _struct(chunk, start)
    stored = chunk[start : start + header[3]]
    if zlib.crc32(stored) != header[4] % (1 << 32):
        raise ShardError("a page does not match its CRC")
    # Uncompressed bytes are copied: otherwise a few bytes would keep all of ``chunk`` in memory.
    body = pa.decompress(stored, header[2], codec) if codec else bytes(stored)
    return header, memoryview(body).cast("B"), start + header[3]  # pyarrow's bytes are signed


def _struct(data: memoryview, at: int) -> tuple[dict[int, Any], int]:
    """A struct of integers and structs in Thrift's compact protocol, as page headers are, and its end."""
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
