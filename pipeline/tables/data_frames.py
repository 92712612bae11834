"""DataFrameCorpus: a column of any Spark DataFrame as a corpus."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipeline.shared.errors import InputError
from pipeline.text.corpus import State, Values, as_they_are
from pipeline.text.parquet_column import listed


@dataclass(frozen=True)
class DataFrameCorpus:
    """A column of strings, or of arrays of strings or integers. Spark computes the DataFrame twice.

    It must hold the same rows both times: cache or write what is drawn at random, or what others write to meanwhile.
    """

    frame: DataFrame
    column: str
    description: str = "a DataFrame"
    """What messages and the manifest call it."""
    has_exact_names = False  # the DataFrame was made by the rules of its session

    def state(self, session: Callable[[], SparkSession]) -> State:
        """Its name and its column. A DataFrame has no version, so equal states do not mean equal rows."""
        return ({"data_frame": self.description, "column": self.column},)

    def identities(self) -> State:
        return ()

    def read(self, spark: SparkSession) -> DataFrame:
        """(value): string or array<string>. Raises InputError if the column is missing or of another type."""
        return sequences_of(self.frame, self.column, self.description)

    def values(self, rows: DataFrame) -> Values:
        return as_they_are

    def remarks(self) -> list[str]:
        return []


class Pick(NamedTuple):
    """A column of a DataFrame: the flag that names it, its name, and what its type must be."""

    flag: str
    column: str
    is_expected: Callable[[T.DataType], bool]
    expected: str


def is_integer(kind: T.DataType) -> bool:
    return isinstance(kind, T.IntegralType) or (isinstance(kind, T.DecimalType) and kind.scale == 0)


def is_word(kind: T.DataType) -> bool:
    """Whether a value of a type is one word: text, or an integer. A column without values has any type."""
    return is_integer(kind) or isinstance(kind, T.StringType | T.BinaryType | T.NullType)


def is_sequence(kind: T.DataType) -> bool:
    if isinstance(kind, T.ArrayType):
        return is_word(kind.elementType)
    return isinstance(kind, T.StringType | T.BinaryType | T.NullType)


def sequences_of(frame: DataFrame, column: str, description: str) -> DataFrame:
    """(value): a column of strings, or of arrays of strings or integers, as string or array<string>."""
    expected = "string, array<string> or an array of integers"
    rows = picked(frame, {"value": Pick("--column", column, is_sequence, expected)}, description)
    is_array = isinstance(rows.schema["value"].dataType, T.ArrayType)
    return rows.select(F.col("value").cast("array<string>" if is_array else "string").alias("value"))


def picked(frame: DataFrame, picks: dict[str, Pick], description: str) -> DataFrame:
    """The picked columns by new names. Raises InputError if one is missing, is there twice, or has another type."""
    names = frame.columns
    places = {name: _place(names, pick, description) for name, pick in picks.items()}
    for name, (flag, column, is_expected, expected) in picks.items():
        kind = frame.schema.fields[places[name]].dataType
        if not is_expected(kind):
            raise InputError(f"{flag} {column}: is {kind.simpleString()} in {description}, expected {expected}")
    numbered = frame.toDF(*map(str, range(len(names))))  # names may have dots, or differ in upper and lower case alone
    return numbered.select(*(F.col(str(place)).alias(name) for name, place in places.items()))


def _place(names: list[str], pick: Pick, description: str) -> int:
    found = [place for place, name in enumerate(names) if name == pick.column]
    if not found:
        raise InputError(f"{pick.flag} {pick.column}: not in {description}; it has {listed(names)}")
    if len(found) > 1:
        raise InputError(f"{pick.flag} {pick.column}: {description} has {len(found)} columns of this name; rename one")
    return found[0]
