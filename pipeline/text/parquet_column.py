"""A column of Parquet files: its type in each of them, from their footers, and Spark's type to read it with.

Spark takes one file's types for all of them. Here, each file's column is read as its own file has it, so the words do
not depend on which file comes first, and nothing is said about other columns.
"""

from typing import Any

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


def column_type(source: Any, name: str, column: str) -> T.DataType:
    """Spark's type for ``column`` in the Parquet file ``source``, a path or an open file; NullType if it has no values.

    Raises InputError, which names the file ``name``, unless it holds strings or arrays of strings or integers.
    """
    try:
        with pq.ParquetFile(source) as file:
            fields = file.schema_arrow
            where = fields.get_all_field_indices(column)
            if not where:
                names = ", ".join(fields.names[:MAX_COLUMNS]) + (", ..." if fields.names[MAX_COLUMNS:] else "")
                raise InputError(f"--column {column}: not in {name}; it has {names or 'no columns'}")
            if len(where) > 1:
                raise InputError(f"--column {column}: {name} has {len(where)} columns of this name; rename one")
            _check_codec(file, name, column)
            return _spark_type(fields.field(where[0]).type, name, column)
    except (OSError, pa.ArrowException) as error:
        raise InputError(_not_parquet(source, name, error)) from None


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


def _spark_type(found: pa.DataType, name: str, column: str) -> T.DataType:
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
    try:
        shown = from_arrow_type(found).simpleString()
    except PySparkException:
        shown = str(found)
    raise InputError(f"--column {column}: is {shown} in {name}, expected string, array<string> or an array of integers")


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
