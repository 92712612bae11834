"""A shard's row groups for the trainer: read as they are stored, with rows unpacked in any order.

The shards are ordinary Parquet, which encode.py writes and pyarrow can read. But pyarrow spends half of its time on the
lists' levels, which only say that all lists have the same length, and its rows would still have to be reordered. Here
the position of a row's bits is computed by a multiplication. A row is copied three times: from the file, by the
decompression, and by unpacking.

Nothing in a file is believed: machine code uses the ids as indices. So the bytes must be those that encode.py would
write for some rows, and each center and real target must be a word's id; sizes are bounded before memory is taken.
R rows to unpack, N rows of the row group, L = max_len targets a row, V words with <unk>.
Source: parquet-format's README, Encodings.md and parquet.thrift; thrift-compact-protocol.md.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.packing import levels
from pipeline.dataset.unpacking import (
    MAX_BITS,
    NO_WORD,
    PLAIN_BITS,
    Column,
    Columns,
    Int32,
    Places,
    Rows,
    unpack_rows,
)

_COLUMNS = {"center": None, "contexts_negatives.list.element": "lz4_raw", "num_contexts": None}
"""Each column's codec, by pyarrow's name. The footer is not asked: an unknown codec there makes pyarrow abort."""
_TYPE = "INT32"
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2  # PageType
_PLAIN, _RLE_DICTIONARY = 0, 8  # Encoding
_LZ4_RATIO = 255
"""LZ4 saves no more: each byte of a match's length stands for at most 255 bytes."""
_HEADER_DEPTH = 3
"""Levels of structs in a page header, with the statistics of a data page."""
_VARINT_BITS = 70
"""Of the ten bytes that 64 bits need."""

Read = Callable[[int, int], bytes]
"""Reads from a file: (offset, number of bytes) -> bytes."""


class ShardError(ValueError):
    """A row group that is damaged, or that the pipeline did not write."""


UNREADABLE = (OSError, pa.ArrowException, UnicodeDecodeError, ShardError)
"""What reading a shard raises: pyarrow its own errors, and UnicodeDecodeError for names in a damaged footer."""


@dataclass(frozen=True)
class Layout:
    """The layout of every row: L targets, ``targets_a_context`` for each context with its negatives; V words."""

    max_len: int
    targets_a_context: int
    vocab_size: int

    @classmethod
    def of(cls, manifest: Manifest) -> "Layout":
        return cls(manifest.max_len, 1 + manifest.config.negatives, manifest.vocab_size)

    def most_bytes(self, num_rows: int) -> int:
        """More than any part of so many rows takes, stored or not: all five columns, plain, and their levels."""
        return 4096 + num_rows * (5 * self.max_len + 64)


@dataclass(frozen=True)
class RowGroup:
    """A row group in memory: about as many bytes per row as it has targets."""

    layout: Layout
    columns: Columns

    @classmethod
    def read(cls, read: Read, metadata: pq.FileMetaData, row_group: int, num_rows: int, layout: Layout) -> "RowGroup":
        """Reads a row group; verifies every page's checksum, all centers, and that the targets fit into ``max_len``.

        ``metadata`` is the file's. Calls ``read`` once, for the ``stored_range``. Raises ShardError, OSError or
        pa.ArrowException if the row group is damaged or not as expected.
        """
        chunks = _chunks(metadata, row_group)
        found = metadata.row_group(row_group).num_rows
        if found != num_rows:
            raise ShardError(f"row group {row_group} has {found} rows, the manifest implies {num_rows}")
        begin, end = _range(chunks)
        if end - begin > layout.most_bytes(num_rows):
            raise ShardError(f"its footer says that row group {row_group} has {end - begin:,} bytes, expected fewer")
        stored = memoryview(read(begin, end - begin))
        decoders: tuple[_Decoder, ...] = _center, _targets, _num_contexts
        columns = (
            _column(decode, stored, begin, chunk, num_rows, layout)
            for decode, chunk in zip(decoders, chunks, strict=True)
        )
        return cls(layout, Columns(*columns))

    def unpack(self, rows_R: Int32, places: Places, out: Rows) -> None:
        """Writes rows of this row group to ``places`` of ``out``. Row numbers are not checked.

        Raises ShardError if a target is not the id of a word; then ``out`` must not be used.
        """
        if not unpack_rows(rows_R, self.layout.targets_a_context, self.layout.vocab_size, self.columns, places, out):
            raise ShardError(
                f"found <unk> or an id beyond the vocabulary among the targets, or an index beyond its dictionary; "
                f"expected ids from 1 to {self.layout.vocab_size - 1}"
            )

    def rows(self, rows_R: Int32) -> Rows:
        """Rows in new arrays: center (R,), contexts_negatives (R, L), num_contexts (R,)."""
        found = Rows.zeros(rows_R.size, self.layout.max_len)
        self.unpack(rows_R, Places.all(), found)
        return found


def stored_range(metadata: pq.FileMetaData, row_group: int) -> tuple[int, int]:
    """The offsets in the file at which our columns begin and end. Raises ShardError."""
    return _range(_chunks(metadata, row_group))


def _chunks(metadata: pq.FileMetaData, row_group: int) -> list[pq.ColumnChunkMetaData]:
    """Our columns, in the order of ``Columns``."""
    if row_group >= metadata.num_row_groups:
        raise ShardError(f"it has {metadata.num_row_groups} row groups, not number {row_group}")
    group = metadata.row_group(row_group)
    if group.num_columns != metadata.num_columns:  # of others, pyarrow 14 ends the process
        raise ShardError(f"row group {row_group} has {group.num_columns} columns, the schema {metadata.num_columns}")
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


class _Pages(NamedTuple):
    """A column chunk's values of the dictionary page, if there is one, and its data page."""

    values: Int32 | None
    num_values: int
    encoding: int
    body: memoryview


_Decoder = Callable[[_Pages, int, Layout], Any]
"""Makes a column of ``Columns`` from its pages, N and the layout."""


def _column(
    decode: _Decoder, stored: memoryview, begin: int, chunk: pq.ColumnChunkMetaData, num_rows: int, layout: Layout
) -> Any:
    """The column of ``chunk``. ``stored`` is the file's bytes from offset ``begin`` on."""
    first = _begin(chunk) - begin
    content = stored[first : first + chunk.total_compressed_size]
    try:
        if chunk.physical_type != _TYPE:
            raise ShardError(f"found {chunk.physical_type}, expected {_TYPE}")
        return decode(_pages(content, _COLUMNS[chunk.path_in_schema], layout.most_bytes(num_rows)), num_rows, layout)
    except (LookupError, TypeError, OverflowError, ValueError) as error:
        reason = error if isinstance(error, ShardError) else f"invalid page header ({error!r})"
        raise ShardError(f"{chunk.path_in_schema}: {reason}") from None


def _center(pages: _Pages, num_rows: int, layout: Layout) -> Int32:
    """The ids of the center words, (N,)."""
    if pages.num_values != num_rows or pages.encoding != _PLAIN or len(pages.body) != 4 * num_rows:
        raise ShardError(f"one data page of {num_rows} plain values expected")
    center_N: Int32 = np.frombuffer(pages.body, "<i4")
    check_ids(center_N, layout)
    return center_N


def _targets(pages: _Pages, num_rows: int, layout: Layout) -> Column:
    """The targets, L to a row, of which those that are real are checked when they are unpacked."""
    num_values = num_rows * layout.max_len
    before = _levels(num_rows, layout.max_len)
    if pages.num_values != num_values:
        raise ShardError(f"one data page of {num_values} values expected")
    if bytes(pages.body[: len(before)]) != before:
        raise ShardError(f"its levels are not those of lists of {layout.max_len} values")
    if pages.encoding == _PLAIN:
        if len(pages.body) != len(before) + 4 * num_values:
            raise ShardError(f"{num_values} plain values expected")
        return _words(pages.body, len(before), num_values * PLAIN_BITS // 8), PLAIN_BITS, np.zeros(0, dtype=np.int32)
    words, bits, values = _indices(pages, len(before), num_values)
    if values[0] != 0:
        raise ShardError("a dictionary that begins with 0, for padding, expected")
    check_ids(values[1:], layout)
    padded = _padded(values, bits)
    padded[0] = NO_WORD  # padding is not unpacked
    return words, bits, padded


def _num_contexts(pages: _Pages, num_rows: int, layout: Layout) -> Column:
    """The number of contexts of each row. Their indices are checked when they are unpacked."""
    if pages.num_values != num_rows:
        raise ShardError(f"one data page of {num_rows} values expected")
    words, bits, values = _indices(pages, 0, num_rows)
    if not 0 <= values.min() <= values.max() <= layout.max_len // layout.targets_a_context:
        raise ShardError(f"found values that do not fit into {layout.max_len} targets a row")
    return words, bits, _padded(values, bits)


def check_ids(ids: Int32, layout: Layout) -> None:
    """Raises ShardError unless all ids are those of words, 1 to V - 1."""
    if ids.size and not 1 <= ids.min() <= ids.max() < layout.vocab_size:
        raise ShardError(
            f"found ids from {ids.min()} to {ids.max()}, expected 1 to {layout.vocab_size - 1}, the vocabulary's"
        )


_levels = lru_cache(maxsize=2)(levels)  # of whole row groups, and of a shard's last one


def _indices(pages: _Pages, start: int, num_values: int) -> Column:
    """The bit-packed indices that begin at byte ``start`` of the page, and the dictionary."""
    values, body, num_groups = pages.values, pages.body, -(-num_values // 8)
    if values is None or not values.size or pages.encoding != _RLE_DICTIONARY:
        raise ShardError("a dictionary, and indices into it, expected")
    bits = max(1, (values.size - 1).bit_length())
    run, first = _varint(body, start + 1)
    if run != num_groups << 1 | 1 or len(body) != first + num_groups * bits:
        raise ShardError(f"one bit-packed run of {num_values} values expected")
    if body[start] != bits or bits > MAX_BITS:
        raise ShardError(f"{values.size} values in the dictionary, {body[start]} bits a value")
    return _words(body, first, num_groups * bits), bits, values


def _padded(values: Int32, bits: int) -> Int32:
    """A dictionary in which no index is outside. Those beyond the values give ``NO_WORD``."""
    padded = np.full(1 << bits, NO_WORD, np.int32)
    padded[: values.size] = values
    return padded


def _pages(chunk: memoryview, codec: str | None, most_bytes: int) -> _Pages:
    """The pages of a column chunk, verified. None has more than ``most_bytes``."""
    values = None
    header, body, end = _page(chunk, 0, codec, most_bytes)
    if header[1] == _DICTIONARY_PAGE:
        values = np.frombuffer(body, "<i4")
        if header[7] != {1: values.size, 2: _PLAIN}:
            raise ShardError(f"{values.size} plain values in the dictionary expected")
        header, body, end = _page(chunk, end, codec, most_bytes)
    if header[1] != _DATA_PAGE or end != len(chunk):
        raise ShardError("one data page expected")
    return _Pages(values, header[5][1], header[5][2], body)


def _words(body: memoryview, start: int, num_bytes: int) -> npt.NDArray[np.uint64]:
    """The 64-bit words that begin at every byte except the last seven. Fewer than 8 bytes are padded to one word."""
    if num_bytes < 8:
        body, start, num_bytes = memoryview(bytes(body[start : start + num_bytes]).ljust(8, b"\0")), 0, 8
    return np.ndarray((num_bytes - 7,), "<u8", body, start, strides=(1,))


def _page(chunk: memoryview, start: int, codec: str | None, most_bytes: int) -> tuple[dict[int, Any], memoryview, int]:
    """The PageHeader as {field id: value}, the page's verified and decompressed body, and the page's end."""
    header, start = _struct(chunk, start)
    size, stored_size = header[2], header[3]
    least, most = (0, min(most_bytes, _LZ4_RATIO * stored_size)) if codec else (stored_size, stored_size)
    if not 0 <= stored_size <= len(chunk) - start or not least <= size <= most:
        raise ShardError(f"a page header says that {stored_size} stored bytes are {size}")
    stored = chunk[start : start + stored_size]
    if zlib.crc32(stored) != header[4] % (1 << 32):
        raise ShardError("a page does not match its CRC")
    # Uncompressed bytes are copied: otherwise a few bytes would keep all of ``chunk`` in memory.
    body = pa.decompress(stored, size, codec) if codec else bytes(stored)
    return header, memoryview(body).cast("B"), start + stored_size  # pyarrow's bytes are signed


def _struct(data: memoryview, at: int, depth: int = 1) -> tuple[dict[int, Any], int]:
    """A struct of integers and structs in Thrift's compact protocol, as page headers are, and its end."""
    if depth > _HEADER_DEPTH:
        raise ShardError(f"a page header of more than {_HEADER_DEPTH} levels")
    fields: dict[int, Any] = {}
    number = 0
    while data[at]:
        number, kind = number + (data[at] >> 4), data[at] & 0xF
        if kind == 12:
            fields[number], at = _struct(data, at + 1, depth + 1)
        elif kind in (5, 6) and data[at] >> 4:
            zigzag, at = _varint(data, at + 1)
            fields[number] = zigzag >> 1 ^ -(zigzag & 1)
        else:
            raise ShardError(f"a page header with a field of type {kind}")
    return fields, at + 1


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, _VARINT_BITS, 7):
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ShardError("a number of more than 64 bits")
