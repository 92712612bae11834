"""TableCorpus: a version of a table whose log names its files. The files never change, so the version is its state."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from pipeline.shared.errors import InputError
from pipeline.shared.storage import is_uri
from pipeline.text.corpus import FileCorpus, State, Values, as_they_are
from pipeline.text.parquet_column import listed
from pipeline.text.remote_files import pattern_of


@dataclass(frozen=True)
class TableCorpus:
    """The Parquet files that are alive in one version of a table."""

    files: FileCorpus
    version: dict[str, str | int]
    """The table's id; the version that changed its rows last, whatever compacted its files since; and its rows, if the
    log counts them."""
    has_exact_names = True

    @property
    def description(self) -> str:
        return self.files.description

    def state(self, session: Callable[[], SparkSession]) -> State:
        """What the log says. Nobody asks the files."""
        return ({**self.version, "column": str(self.files.column)},)

    def identities(self) -> State:
        return ()

    def read(self, spark: SparkSession) -> DataFrame:
        """(value): as FileCorpus reads Parquet; null where a file is older than the column."""
        return self.files.read(spark)

    def events(self, spark: SparkSession, item: str, group_by: str, order_by: str) -> DataFrame:
        """(item, group, time): as FileCorpus reads events; null where a file is older than a column."""
        return self.files.events(spark, item, group_by, order_by)

    def values(self, rows: DataFrame) -> Values:
        return as_they_are

    def remarks(self) -> list[str]:
        return []


def check_columns(columns: dict[str, str], names: Iterable[str], description: str) -> None:
    """Raises InputError unless a table has the ``columns``, by flag."""
    names = list(names)
    for flag, column in columns.items():
        if column not in names:
            raise InputError(f"{flag} {column}: not in {description}; it has {listed(names)}")


def live_files(paths: list[str], description: str, as_of: int | None) -> tuple[str, ...]:
    """The files of a version, as FileCorpus names them. Raises InputError if there are none, or if a local one is gone.

    Java says so of others.
    """
    if not paths:
        raise InputError(f"--input {description}: the table has no rows, expected some")
    gone = [path for path in paths if not is_uri(path) and not Path(path).is_file()]
    if gone:
        where = f"--input {description}" if as_of is None else f"--as-of {as_of}"
        raise InputError(
            f"{where}: {len(gone)} of the version's {len(paths)} files are gone ({gone[0]}), expected all; a vacuum "
            f"removes the files of old versions, so name a newer one"
        )
    return tuple(sorted(pattern_of(path) if is_uri(path) else path for path in paths))
