"""Sequences of items, from text with one sequence a line, or from a column of Parquet.

S sequences, N items of all of them, end to end.
"""

from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.file_kinds import kind_of
from pipeline.shared.files import os_errors
from training.vectors.foreign_files import HEAD_BYTES, opened_whole

BATCH_ROWS = 4096
"""Rows of Parquet that are in memory as Python's strings at once."""


@dataclass(frozen=True)
class Sequences:
    """Items as rows of a vocabulary, end to end: ``rows_N`` (int32; 0 is an unknown item) and ``lengths_S`` (int64)."""

    rows_N: npt.NDArray[np.int32]
    lengths_S: npt.NDArray[np.int64]


def read_sequences(file: Path, row_of: Mapping[str, int], column: str | None = None) -> Sequences:
    """The sequences of ``file``, in its order; ``row_of`` has the row of each known item.

    Without ``column``, the file is UTF-8 text, which may be compressed (gzip, bzip2, xz, zstd): a sequence a line, its
    items between white space, as prepare reads it. With it, the file is Parquet, and the column holds lists of strings
    or integers, or strings with items between white space. Nulls are no items. Raises InputError.
    """
    rows, lengths = array("i"), array("q")
    with os_errors(f"{file}: cannot be read", "name another file"):
        for items in _lines(file) if column is None else _values(file, column):
            rows.extend(row_of.get(item, 0) for item in items)
            lengths.append(len(items))
    return Sequences(np.array(rows, np.int32), np.array(lengths, np.int64))


def _lines(file: Path) -> Iterator[list[str]]:
    with opened_whole(file) as opened:
        if found := kind_of(opened.read(HEAD_BYTES)):
            remedy = found[1] or "write it as text, or as Parquet and name its --column"
            raise InputError(f"{file}: found {found[0]}, expected UTF-8 text, one sequence a line; {remedy}")
        opened.seek(0)
        for number, line in enumerate(opened, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError:
                raise InputError(
                    f"{file}:{number}: found bytes that are not UTF-8; convert the file to UTF-8"
                ) from None
            yield (text.removeprefix("\ufeff") if number == 1 else text).split()


def _values(file: Path, column: str) -> Iterator[list[str]]:
    try:
        with pq.ParquetFile(file) as parquet:
            fields = parquet.schema_arrow
            if fields.get_field_index(column) < 0:
                raise InputError(f"--column {column}: not in {file}, which has {', '.join(fields.names):.200}")
            _check_type(fields.field(column).type, file, column)
            for batch in parquet.iter_batches(BATCH_ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    items = value.split() if isinstance(value, str) else map(str, filter(_is_item, value or ()))
                    yield list(items)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(
            f"{file}: cannot be read as Parquet ({one_line(error)}); leave --column out for text, or name a whole file"
        ) from None


def _is_item(element: str | int | None) -> bool:
    return element is not None and element != ""


def _check_type(found: pa.DataType, file: Path, column: str) -> None:
    plain = found.value_type if pa.types.is_list(found) or pa.types.is_large_list(found) else found
    if pa.types.is_dictionary(plain):
        plain = plain.value_type
    if pa.types.is_string(plain) or pa.types.is_large_string(plain) or (plain != found and pa.types.is_integer(plain)):
        return
    raise InputError(
        f"--column {column}: found {found} in {file}, expected lists of strings or integers, or strings; "
        "name another column"
    )
