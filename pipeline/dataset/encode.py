"""Writes a shard as a Parquet file: ordinary Parquet, of this one schema, faster than any general writer.

    center               int32   plain
    contexts_negatives   list    dictionary and one bit-packed run, LZ4; plain, LZ4, where the dictionary would be large
    mask, label          lists   runs of ones and zeros that follow from ``num_contexts``, LZ4
    num_contexts         int16   dictionary and one bit-packed run

Every column chunk is one data page, preceded by a dictionary page if the column has a dictionary; every page has a
checksum. There are no statistics: rows are in random order, so every row group has nearly every word.
benchmarks/encodings.py compares encodings; most of the cost of reading, however, is in the lists' levels, which no
encoding avoids.
Source: parquet-format's README ("File format", "Data Pages", "Checksumming"), Encodings.md, LogicalTypes.md and
parquet.thrift, whose field numbers are used here. N rows, L places in each.
"""

import base64
import zlib
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.dataset import thrift
from pipeline.dataset.packing import dictionary, flags, levels, packed
from pipeline.dataset.thrift import i32, i64

Int32 = npt.NDArray[np.int32]
Int16 = npt.NDArray[np.int16]

MAX_DICTIONARY = 1 << 17  # with more words than this, a row group is smaller, and faster to read, without a dictionary


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", kind, nullable=False))


# Nothing is nullable: that reads a third faster. Plain lists, since petastorm and Spark know no fixed-size lists.
SCHEMA = pa.schema(
    [
        pa.field("center", pa.int32(), nullable=False),
        pa.field("contexts_negatives", _list_of(pa.int32()), nullable=False),
        pa.field("mask", _list_of(pa.int8()), nullable=False),
        pa.field("label", _list_of(pa.int8()), nullable=False),
        pa.field("num_contexts", pa.int16(), nullable=False),
    ]
)

_MAGIC = b"PAR1"
_INT32 = 1  # Type
_REQUIRED, _REPEATED = 0, 2  # FieldRepetitionType
_LIST, _INT_8, _INT_16 = 3, 15, 16  # ConvertedType
_PLAIN, _RLE, _RLE_DICTIONARY = 0, 3, 8  # Encoding
_UNCOMPRESSED, _LZ4_RAW = 0, 7  # CompressionCodec
_DATA_PAGE, _DICTIONARY_PAGE = 0, 2  # PageType


class Writable(Protocol):
    def write(self, data: bytes, /) -> object: ...


class ExampleWriter:
    """Writes row groups of examples to anything with ``write``; the bytes are a function of the rows and pyarrow's LZ4.

    Raises whatever ``write`` raises. Needs memory for one encoded row group.
    """

    def __init__(self, where: Writable, negatives: int):
        self._where, self._negatives = where, negatives
        self._position = 0
        self._num_rows = 0
        self._row_groups: list[bytes] = []
        self._write(_MAGIC)

    def write_row_group(self, center_N: Int32, contexts_negatives_NL: Int32, num_contexts_N: Int16) -> None:
        """Writes a row group of at least one row; the places after the n·(1+K) real targets must hold 0."""
        num_rows, length = contexts_negatives_NL.shape
        num_contexts = num_contexts_N.astype(np.int32)
        num_real = num_contexts * np.int32(1 + self._negatives)
        assert 0 <= num_real.min() <= num_real.max() <= length
        start = self._position
        columns, plain_size = [], 0
        for chunk in (
            _plain("center", center_N),
            _ids("contexts_negatives", contexts_negatives_NL, num_real),
            _flags("mask", num_real, length),
            _flags("label", num_contexts, length),
            _counts("num_contexts", num_contexts),
        ):
            columns.append(thrift.struct(i64(2, 0), thrift.nested(3, *chunk.metadata(self._position))))
            plain_size += chunk.plain_size
            self._write(chunk.content)
        sizes = i64(2, plain_size), i64(3, num_rows), i64(5, start), i64(6, self._position - start)
        self._row_groups.append(thrift.struct(thrift.structs(1, columns), *sizes))
        self._num_rows += num_rows

    def close(self) -> None:
        """Writes the footer, which makes the file readable; ``where`` stays open."""
        arrow_schema = base64.b64encode(SCHEMA.serialize().to_pybytes())  # so that pyarrow reads exactly SCHEMA
        footer = thrift.struct(
            i32(1, 2),
            thrift.structs(2, _schema_elements()),
            i64(3, self._num_rows),
            thrift.structs(4, self._row_groups),
            thrift.structs(5, [thrift.struct(thrift.text(1, "ARROW:schema"), thrift.text(2, arrow_schema))]),
            thrift.text(6, "shardvec version 1"),
        )
        self._write(footer + len(footer).to_bytes(4, "little") + _MAGIC)

    def _write(self, data: bytes) -> None:
        self._where.write(data)
        self._position += len(data)


@dataclass(frozen=True)
class _Chunk:
    """A column's pages in one row group: a dictionary page of ``dictionary_size`` bytes, or none, and a data page."""

    path: tuple[str, ...]
    codec: int
    num_values: int
    content: bytes
    dictionary_size: int
    plain_size: int

    def metadata(self, start: int) -> list[thrift.Field]:
        """ColumnMetaData of a chunk that begins at byte ``start``."""
        fields = [
            i32(1, _INT32),
            thrift.integers(2, [_PLAIN, _RLE, _RLE_DICTIONARY]),
            thrift.texts(3, self.path),
            i32(4, self.codec),
            i64(5, self.num_values),
            i64(6, self.plain_size),
            i64(7, len(self.content)),
            i64(9, start + self.dictionary_size),
        ]
        return [*fields, i64(11, start)] if self.dictionary_size else fields


def _chunk(
    path: tuple[str, ...], codec: int, num_values: int, values: bytes | memoryview, ids: Int32 | None = None
) -> _Chunk:
    """A chunk of one data page, whose values are indices into ``ids``, or plain if there are no ``ids``."""
    dictionary_page, dictionary_extra = b"", 0
    if ids is not None:
        header = thrift.nested(7, i32(1, ids.size), i32(2, _PLAIN))
        dictionary_page, dictionary_extra = _page(
            _DICTIONARY_PAGE, header, ids.astype("<i4", copy=False).tobytes(), codec
        )
    encoding = _PLAIN if ids is None else _RLE_DICTIONARY
    header = thrift.nested(5, i32(1, num_values), i32(2, encoding), i32(3, _RLE), i32(4, _RLE))
    data_page, data_extra = _page(_DATA_PAGE, header, values, codec)
    content = dictionary_page + data_page
    plain_size = len(content) + dictionary_extra + data_extra
    return _Chunk(path, codec, num_values, content, len(dictionary_page), plain_size)


def _page(kind: int, kind_header: thrift.Field, body: bytes | memoryview, codec: int) -> tuple[bytes, int]:
    """The page, header and body, and how many bytes compression saved."""
    stored = pa.compress(body, codec="lz4_raw", asbytes=True) if codec == _LZ4_RAW else body
    crc = zlib.crc32(stored)
    signed_crc = crc - (1 << 32) if crc >> 31 else crc
    header = thrift.struct(i32(1, kind), i32(2, len(body)), i32(3, len(stored)), i32(4, signed_crc), kind_header)
    return header + stored, len(body) - len(stored)


def _plain(name: str, values_N: Int32) -> _Chunk:
    return _chunk((name,), _UNCOMPRESSED, values_N.size, values_N.astype("<i4", copy=False).tobytes())


def _ids(name: str, ids_NL: Int32, num_real_N: Int32) -> _Chunk:
    path = name, "list", "element"
    ids, place_V = dictionary(ids_NL, num_real_N)
    if ids.size > MAX_DICTIONARY:
        plain = levels(*ids_NL.shape) + ids_NL.astype("<i4", copy=False).tobytes()
        return _chunk(path, _LZ4_RAW, ids_NL.size, plain)
    body = packed(levels(*ids_NL.shape), ids_NL, num_real_N, place_V, ids.size)
    return _chunk(path, _LZ4_RAW, ids_NL.size, body, ids)


def _flags(name: str, num_ones_N: Int32, length: int) -> _Chunk:
    body = levels(num_ones_N.size, length) + flags(num_ones_N, length)
    return _chunk((name, "list", "element"), _LZ4_RAW, num_ones_N.size * length, body, np.arange(2, dtype=np.int32))


def _counts(name: str, counts_N: Int32) -> _Chunk:
    counts = np.arange(counts_N.max() + 1, dtype=np.int32)
    body = packed(b"", counts_N[:, None], np.ones_like(counts_N), counts, counts.size)
    return _chunk((name,), _UNCOMPRESSED, counts_N.size, body, counts)


def _schema_elements() -> list[bytes]:
    """SCHEMA as SchemaElements, depth first; lists have three levels, as LogicalTypes.md demands."""
    elements = [thrift.struct(thrift.text(4, "schema"), i32(5, len(SCHEMA)))]
    for field in SCHEMA:
        value = field
        if pa.types.is_list(field.type):
            logical_list = thrift.nested(10, thrift.nested(3))
            elements += [
                thrift.struct(i32(3, _REQUIRED), thrift.text(4, field.name), i32(5, 1), i32(6, _LIST), logical_list),
                thrift.struct(i32(3, _REPEATED), thrift.text(4, "list"), i32(5, 1)),
            ]
            value = field.type.value_field
        elements.append(thrift.struct(i32(1, _INT32), i32(3, _REQUIRED), thrift.text(4, value.name), *_width(value)))
    return elements


def _width(field: pa.Field) -> list[thrift.Field]:
    """Converted and logical type of integers of fewer than 32 bits; others need only their Parquet type."""
    bits = field.type.bit_width
    if bits == 32:
        return []
    signed_integer = thrift.nested(10, thrift.byte(1, bits), thrift.true(2))
    return [i32(6, {8: _INT_8, 16: _INT_16}[bits]), thrift.nested(10, signed_integer)]
