"""Columns of Parquet files: their types in each of them, from their footers, and Spark's types to read them with.

Spark takes one file's types for all of them. Here, each file's columns are read as their own file has them, so the
words do not depend on which file comes first, and nothing is said about other columns.
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.errors import PySparkException
from pyspark.sql import types as T
from pyspark.sql.pandas.types import from_arrow_type

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.file_kinds import kind_of

CODECS = ("UNCOMPRESSED", "SNAPPY", "GZIP", "ZSTD", "LZ4", "LZ4_RAW")
"""Compression that Spark reads without further packages."""
MAX_COLUMNS = 20
"""The most names in a message."""
MAX_DIGITS = 38
"""Of Spark's decimals."""
_TEXTS = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
_LISTS = ("list", "large_list", "fixed_size_list", "list_view", "large_list_view")
"""Arrow's types that are one in Parquet, by the names that they print."""


class Stored(NamedTuple):
    """A column as a file has it: its name there, and Spark's type to read it with; NullType if it has no values."""

    name: str
    type: T.DataType


def sequence_type(found: pa.DataType) -> T.DataType | None:
    """Spark's type for text, or for arrays of text or integers; None for other types."""
    plain = _plain(found)
    if pa.types.is_null(plain):
        return T.NullType()
    if str(plain) in _TEXTS:
        return T.StringType()
    if str(plain).partition("<")[0] in _LISTS:
        element = _plain(plain.value_type)
        if pa.types.is_null(element):
            return T.ArrayType(T.NullType())
        if str(element) in _TEXTS:
            return T.ArrayType(T.StringType())
        if (integer := _integer(element)) is not None:
            return T.ArrayType(integer)
    return None


def word_type(found: pa.DataType) -> T.DataType | None:
    """Spark's type for text or an integer; None for other types."""
    plain = _plain(found)
    if pa.types.is_null(plain):
        return T.NullType()
    return T.StringType() if str(plain) in _TEXTS else _integer(plain)


def key_type(found: pa.DataType) -> T.DataType | None:
    """Spark's type for text, an integer or a date; None for other types."""
    return T.DateType() if pa.types.is_date32(_plain(found)) else word_type(found)


def time_type(found: pa.DataType) -> T.DataType | None:
    """Spark's type for a timestamp of microseconds at most, a date, or an integer of 64 bits; None for other types."""
    plain = _plain(found)
    if pa.types.is_timestamp(plain):
        return None if plain.unit == "ns" else T.TimestampType() if plain.tz else T.TimestampNTZType()
    kind = key_type(plain)
    return None if isinstance(kind, T.StringType | T.DecimalType) else kind


Find = Callable[[pa.Schema], list[int]]
"""Where in a file's schema a column of a table is; nowhere if the file is older than the column."""
Finder = Callable[[str], Find]
"""From the name of a table's column to where files have it."""


class Wanted(NamedTuple):
    """A column to find in files."""

    name: str
    flag: str = "--column"
    type_of: Callable[[pa.DataType], T.DataType | None] = sequence_type
    expected: str = "string, array<string> or an array of integers"
    find: Find | None = None
    """None: the file has to have a column of this name."""


def column_type(source: Any, name: str, column: str) -> T.DataType:
    """As ``stored_columns``, of one column of strings or of arrays of strings or integers."""
    return stored_columns(source, name, [Wanted(column)])[0].type


def stored_columns(source: Any, name: str, wanted: Iterable[Wanted]) -> tuple[Stored, ...]:
    """The ``wanted`` columns of the Parquet file ``source``, a path or an open file.

    Raises InputError, which names the file ``name``, if one is missing, is there twice, or is of another type.
    """
    try:
        with pq.ParquetFile(source) as file:
            return tuple(_stored(file, name, column) for column in wanted)
    except (OSError, pa.ArrowException) as error:
        raise InputError(_not_parquet(source, name, error)) from None


def _stored(file: pq.ParquetFile, name: str, wanted: Wanted) -> Stored:
    fields, column = file.schema_arrow, wanted.name
    where = wanted.find(fields) if wanted.find else fields.get_all_field_indices(column)
    if not where and wanted.find:
        return Stored(column, T.NullType())
    if not where:
        raise InputError(f"{wanted.flag} {column}: not in {name}; it has {listed(fields.names)}")
    if len(where) > 1:
        raise InputError(f"{wanted.flag} {column}: {name} has {len(where)} columns of this name; rename one")
    field = fields.field(where[0])
    _check_codec(file, name, field.name)
    found = pa.timestamp("us", "UTC") if _is_int96(file, field.name) else field.type
    kind = wanted.type_of(found)
    if kind is None:
        raise InputError(f"{wanted.flag} {column}: is {_shown_type(found)} in {name}, expected {wanted.expected}")
    return Stored(field.name, kind)


def listed(columns: list[str]) -> str:
    """The names of columns, for a message."""
    return (", ".join(columns[:MAX_COLUMNS]) + (", ..." if columns[MAX_COLUMNS:] else "")) or "no columns"


def _is_int96(file: pq.ParquetFile, column: str) -> bool:
    """Whether a column has Spark's old timestamps, which pyarrow shows as nanoseconds."""
    columns = map(file.schema.column, range(file.metadata.num_columns))
    return any(leaf.path == column and leaf.physical_type == "INT96" for leaf in columns)


def _shown_type(found: pa.DataType) -> str:
    if pa.types.is_timestamp(found) and found.unit == "ns":
        return "a timestamp in nanoseconds, which Spark does not read,"
    try:
        return str(from_arrow_type(found).simpleString())
    except PySparkException:
        return str(found)


def _not_parquet(source: Any, name: str, error: Exception) -> str:
    """The message about a file that pyarrow cannot read as Parquet: its kind, if it is another one."""
    with pa.input_stream(source, compression=None) if isinstance(source, str) else source as file:
        file.seek(0)
        head = file.read(1 << 10)
    if head.startswith(b"PAR1"):
        return f"--input {name}: not a whole Parquet file ({one_line(error)}); give a whole copy"
    what, remedy = kind_of(head) or ("no Parquet" if head else "an empty file", None)
    return f"--input {name}: found {what}, expected a Parquet file; {remedy or 'name only those'}, as in '*.parquet'"


def _check_codec(file: pq.ParquetFile, name: str, column: str) -> None:
    leaves = [
        number
        for number in range(file.metadata.num_columns)
        if f"{file.metadata.schema.column(number).path}.".startswith(f"{column}.")
    ]
    for group in map(file.metadata.row_group, range(file.metadata.num_row_groups)):
        for chunk in map(group.column, leaves):
            if chunk.compression not in CODECS:
                raise InputError(
                    f"--input {name}: compressed with {chunk.compression.lower()}, which Spark does not read; write it "
                    f"with zstd or snappy"
                )


def _plain(found: pa.DataType) -> pa.DataType:
    """The type of the values, without dictionaries and extensions, which Parquet does not have."""
    if isinstance(found, pa.BaseExtensionType):
        return _plain(found.storage_type)
    return _plain(found.value_type) if pa.types.is_dictionary(found) else found


def _integer(found: pa.DataType) -> T.DataType | None:
    """Spark's type for an integer; None for another type. Decimals without places are integers."""
    if pa.types.is_decimal(found):
        return T.DecimalType(found.precision, 0) if found.scale == 0 and found.precision <= MAX_DIGITS else None
    if not pa.types.is_integer(found):
        return None
    if found.bit_width == 64:
        return T.DecimalType(20, 0) if pa.types.is_unsigned_integer(found) else T.LongType()
    return T.LongType() if found == pa.uint32() else T.IntegerType()
