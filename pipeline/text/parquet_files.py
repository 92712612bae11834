"""Reads Parquet files with Spark, each by the names and types that it has: sequences, or events."""

from functools import reduce

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipeline.shared.errors import InputError
from pipeline.shared.storage import is_uri
from pipeline.text.parquet_column import Finder, Stored, Wanted, key_type, time_type, word_type
from pipeline.text.remote_files import pattern_of

NO_ELEMENTS = T.ArrayType(T.NullType())
EVENT = ("item", "group", "time")
"""The columns of events."""

ByTypes = dict[tuple[Stored, ...], list[str]]
"""Files, as Spark names them, by what they have stored of the wanted columns."""


def for_spark(path: str) -> str:
    """A path as Spark takes it; a URI or a pattern as it is."""
    return path if is_uri(path) else f"file:{pattern_of(path)}"


def read_sequences(spark: SparkSession, files: ByTypes, description: str, column: str) -> DataFrame:
    """(value): a column of strings or of arrays of strings or integers, as string or array<string>.

    Raises InputError if some files have strings, and others arrays.
    """
    by_type = {stored: paths for (stored,), paths in files.items()}
    one_of = {
        isinstance(stored.type, T.ArrayType): paths[0].removeprefix("file:")
        for stored, paths in by_type.items()
        if stored.type not in (T.NullType(), NO_ELEMENTS)
    }
    if len(one_of) == 2:
        raise InputError(
            f"--input {description}: --column {column} is string in {one_of[False]} and an array in "
            f"{one_of[True]}, expected one of the two in all files"
        )
    wanted = "string" if False in one_of else "array<string>"
    return reduce(DataFrame.unionAll, [_sequences(spark, stored, by_type[stored], wanted) for stored in by_type])


def _sequences(spark: SparkSession, stored: Stored, paths: list[str], wanted: str) -> DataFrame:
    value = F.col("value")
    if stored.type == T.NullType() or (stored.type == NO_ELEMENTS and wanted == "string"):
        value = F.lit(None)
    return _as_stored(spark, (stored,), paths).toDF("value").select(value.cast(wanted).alias("value"))


def event_columns(item: str, group_by: str, order_by: str, find: Finder | None = None) -> list[Wanted]:
    """What is wanted of files for ``read_events``."""
    return [
        Wanted(column, flag, type_of, expected, find(column) if find else None)
        for column, flag, type_of, expected in (
            (item, "--column", word_type, "a string or an integer, one item a row"),
            (group_by, "--group-by", key_type, "a string, an integer or a date"),
            (order_by, "--order-by", time_type, "a timestamp, a date or a signed integer"),
        )
    ]


def read_events(spark: SparkSession, files: ByTypes) -> DataFrame:
    """(item string, group string, time): one row an event; integers are their digits, except as times.

    Raises InputError if the times of some files are of another kind than those of others.
    """
    times: dict[T.DataType, str] = {}
    for (*_, (_, kind)), paths in files.items():
        if kind != T.NullType():
            times.setdefault(_time(kind), paths[0].removeprefix("file:"))
    if len(times) > 1:
        each = " and ".join(f"{kind.simpleString()} in {path}" for kind, path in times.items())
        raise InputError(f"--order-by {next(iter(files))[-1].name}: is {each}, expected one type in all files")
    time = next(iter(times), T.LongType())
    types = dict(zip(EVENT, (T.StringType(), T.StringType(), time), strict=True))
    return reduce(DataFrame.unionAll, [_events(spark, stored, paths, types) for stored, paths in files.items()])


def _time(kind: T.DataType) -> T.DataType:
    return T.LongType() if kind == T.IntegerType() else kind


def _events(
    spark: SparkSession, stored: tuple[Stored, ...], paths: list[str], types: dict[str, T.DataType]
) -> DataFrame:
    columns = [
        (F.lit(None) if kind == T.NullType() else F.col(name)).cast(types[name]).alias(name)
        for name, (_, kind) in zip(EVENT, stored, strict=True)
    ]
    return _as_stored(spark, stored, paths).toDF(*EVENT).select(*columns)


def _as_stored(spark: SparkSession, stored: tuple[Stored, ...], paths: list[str]) -> DataFrame:
    """The columns of files, read as they are stored there."""
    no_values = {T.NullType(): T.IntegerType(), NO_ELEMENTS: T.ArrayType(T.IntegerType())}
    fields = [T.StructField(name, no_values.get(kind, kind)) for name, kind in stored]
    return spark.read.schema(T.StructType(fields)).parquet(*paths)
