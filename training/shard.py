"""Decodes rows of a shard's row group, in any order: the trainer's columns, as pipeline/parquet.py lays them out.

The shards are ordinary Parquet and pyarrow reads them, but half of its time goes into the lists' levels, which say that
every list is as long as the last, and its rows must then be put in order. Here a row's bits are found by
multiplication. R rows wanted, L = max_len targets a row.
Source: parquet-format's README, Encodings.md and parquet.thrift; thrift-compact-protocol.md.
"""

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.compiled import compiled

Int32 = npt.NDArray[np.int32]

_DATA_PAGE, _DICTIONARY_PAGE = 0, 2  # PageType
_PLAIN, _RLE_DICTIONARY = 0, 8  # Encoding
_CODECS = {"UNCOMPRESSED": None, "LZ4": "lz4_raw"}  # pyarrow's names: of the metadata, of the codec


class ShardError(ValueError):
    """A row group that is damaged, or not as the pipeline lays it out."""


def read_rows(
    path: Path, row_group: int, num_rows: int, max_len: int, rows_R: npt.NDArray[np.int64]
) -> tuple[Int32, Int32, npt.NDArray[np.int16]]:
    """The chosen rows: center (R,), contexts_negatives (R, L), num_contexts (R,). Every page's checksum is verified.

    Raises ShardError, OSError or pa.ArrowException when the row group is not what is expected.
    """
    with path.open("rb") as file:
        metadata = pq.ParquetFile(file).metadata
        if row_group >= metadata.num_row_groups:
            raise ShardError(f"it has {metadata.num_row_groups} row groups, not number {row_group}")
        group = metadata.row_group(row_group)
        if group.num_rows != num_rows:
            raise ShardError(f"row group {row_group} has {group.num_rows} rows, the manifest implies {num_rows}")
        center = _Column.read(file, group, "center", num_rows)
        targets = _Column.read(file, group, "contexts_negatives.list.element", num_rows * max_len)
        num_contexts = _Column.read(file, group, "num_contexts", num_rows)
    return (
        center.take(rows_R, 1).reshape(-1),
        targets.take(rows_R, max_len),
        num_contexts.take(rows_R, 1).reshape(-1).astype(np.int16),
    )


@dataclass(frozen=True)
class _Column:
    """A column chunk in memory: plain ``values``, or ``bits`` bits a value in ``words`` that index into ``values``."""

    values: Int32
    bits: int
    words: npt.NDArray[np.uint64]

    @classmethod
    def read(cls, file: BinaryIO, group: pq.RowGroupMetaData, name: str, num_values: int) -> "_Column":
        chunks = {chunk.path_in_schema: chunk for chunk in map(group.column, range(group.num_columns))}
        if name not in chunks:
            raise ShardError(f"no column {name} among {', '.join(chunks)}")
        metadata = chunks[name]
        file.seek(metadata.dictionary_page_offset if metadata.has_dictionary_page else metadata.data_page_offset)
        chunk = file.read(metadata.total_compressed_size)
        try:
            return cls._decode(chunk, _CODECS[metadata.compression], "." in name, num_values)
        except (LookupError, TypeError, OverflowError, ValueError) as error:
            reason = error if isinstance(error, ShardError) else f"a page header says what cannot be ({error!r})"
            raise ShardError(f"{name}: {reason}") from None

    @classmethod
    def _decode(cls, chunk: bytes, codec: str | None, nested: bool, num_values: int) -> "_Column":
        header, body, end = _page(chunk, 0, codec)
        values, bits, start = np.zeros(0, dtype="<i4"), 0, 0
        if header[1] == _DICTIONARY_PAGE:
            values = np.frombuffer(body, dtype="<i4")
            header, body, end = _page(chunk, end, codec)
        if header[1] != _DATA_PAGE or header[5][1] != num_values or end != len(chunk):
            raise ShardError(f"one data page of {num_values} values expected")
        if nested:
            for _ in ("repetition", "definition"):
                start += 4 + int.from_bytes(body[start : start + 4], "little")
        if header[5][2] == _PLAIN:
            return cls(np.frombuffer(body, "<i4", num_values, start), 0, np.zeros(0, dtype=np.uint64))

        bits = body[start]
        num_groups = -(-num_values // 8)
        run, start = _varint(body, start + 1)
        if header[5][2] != _RLE_DICTIONARY or run != num_groups << 1 | 1 or len(body) != start + num_groups * bits:
            raise ShardError(f"one bit-packed run of {num_values} values expected")
        if not 1 <= bits <= 30 or values.size > 1 << bits:
            raise ShardError(f"{values.size} values in the dictionary, {bits} bits a value")
        padded = np.zeros(1 << bits, dtype=np.int32)  # so that no index can leave it
        padded[: values.size] = values
        words = np.zeros(num_groups * bits // 8 + 2, dtype="<u8")
        words.view(np.uint8)[: num_groups * bits] = np.frombuffer(body, np.uint8, offset=start)
        return cls(padded, bits, words)

    def take(self, rows_R: npt.NDArray[np.int64], length: int) -> Int32:
        """(R, length): the rows of ``length`` values each."""
        if not self.bits:
            return np.asarray(self.values.reshape(-1, length)[rows_R])
        found = np.empty((rows_R.size, length), dtype=np.int32)
        _unpack(self.words, self.bits, self.values, rows_R, found)
        return found


@compiled
def _unpack(
    words: npt.NDArray[np.uint64], bits: int, values: Int32, rows_R: npt.NDArray[np.int64], found_RL: Int32
) -> None:
    """Without branches, so that the processor works on many values at once. Unsigned, since numba wraps signed ones."""
    mask = np.uint64((1 << bits) - 1)
    width, length = np.uint64(bits), np.uint64(found_RL.shape[1])
    for index in range(rows_R.size):
        start = np.uint64(rows_R[index]) * length * width
        row = found_RL[index]
        for place in range(row.size):
            at, used = start >> np.uint64(6), start & np.uint64(63)
            after = words[at + np.uint64(1)] << np.uint64(1) << (np.uint64(63) - used)
            row[place] = values[(words[at] >> used | after) & mask]
            start += width


def _page(chunk: bytes, start: int, codec: str | None) -> tuple[dict[int, Any], memoryview, int]:
    """PageHeader as {field id: value}, the page's body, verified and uncompressed, and where the page ends."""
    header, start = _struct(chunk, start)
    stored = chunk[start : start + header[3]]
    if zlib.crc32(stored) != header[4] % (1 << 32):
        raise ShardError("the CRC of a page does not fit")
    body = memoryview(pa.decompress(stored, header[2], codec) if codec else stored).cast("B")  # pyarrow's is signed
    return header, body, start + header[3]


def _struct(data: bytes, at: int) -> tuple[dict[int, Any], int]:
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


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        shift += 7
        at += 1
        if data[at - 1] < 0x80:
            return value, at
