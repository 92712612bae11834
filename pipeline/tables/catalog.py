"""CatalogTable: a table or view of Spark's catalog, which may be Hive's, Unity's, Iceberg's or Delta's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from pyspark.errors import AnalysisException, ParseException
from pyspark.logger import PySparkLogger
from pyspark.sql import DataFrame, SparkSession

from pipeline.shared.errors import InputError, one_line
from pipeline.tables.data_frames import sequences_of
from pipeline.tables.sessions import event_rows
from pipeline.text.corpus import State, Values, as_they_are
from pipeline.text.remote_files import RemoteFiles, pattern_of


@dataclass(frozen=True)
class CatalogTable:
    """The rows of a table where ``where`` holds, as Spark's catalog has it now."""

    table: str
    """Its name in SQL, such as ``main.shop.baskets``."""
    column: str
    where: str | None = None
    has_exact_names = False

    @property
    def description(self) -> str:
        return f"the table {self.table}"

    def state(self, session: Callable[[], SparkSession]) -> State:
        """Path, size and time of the files that Spark would read; of an Iceberg table, its snapshot.

        Raises InputError if Spark names neither: then nobody could tell whether the table has changed.
        """
        spark = session()
        about: dict[str, str | int] = {"table": self.table, "column": self.column, "where": self.where or ""}
        names = self._frame(spark).inputFiles()
        if not names:
            return ({**about, "version": self._snapshot(spark)},)
        found = [about]
        for name, size, mtime_ms in RemoteFiles(spark, [pattern_of(unquote(name)) for name in names]).files:
            found.append({"path": name, "bytes": size, "mtime_ns": mtime_ms * 1_000_000})
        return tuple(found)

    def identities(self) -> State:
        return ()

    def read(self, spark: SparkSession) -> DataFrame:
        return sequences_of(self._frame(spark), self.column, self.description)

    def events(self, spark: SparkSession, item: str, group_by: str, order_by: str) -> DataFrame:
        return event_rows(self._frame(spark), item, group_by, order_by, self.description)

    def values(self, rows: DataFrame) -> Values:
        return as_they_are

    def remarks(self) -> list[str]:
        return []

    def _frame(self, spark: SparkSession) -> DataFrame:
        expected = "a table or view of Spark's catalog, as in catalog.schema.table"
        with _one_line(f"--table {self.table}", expected):
            frame = spark.table(self.table)
        with _one_line(f"--where {self.where}", f"a condition in SQL on {', '.join(frame.columns[:20])}"):
            return frame.where(self.where) if self.where else frame

    def _snapshot(self, spark: SparkSession) -> int:
        """The number of an Iceberg table's snapshot, from the metadata table that its catalog has beside it."""
        try:
            with _quiet():
                history = spark.sql(f"SELECT * FROM {self.table}.history ORDER BY made_current_at DESC LIMIT 1")
                return int(history.collect()[0]["snapshot_id"])
        except (AnalysisException, ParseException, IndexError):
            raise InputError(
                f"--table {self.table}: Spark names no files and no snapshot of it, expected one of them, to tell "
                f"whether it changes; write its rows as Parquet, or call prepare with a DataFrameCorpus"
            ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Lets Spark print no exception that it also raises."""
    loggers = [PySparkLogger.getLogger(f"{kind}QueryContextLogger") for kind in ("SQL", "DataFrame")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, was in zip(loggers, before, strict=True):
            logger.disabled = was


@contextmanager
def _one_line(found: str, expected: str) -> Iterator[None]:
    """Raises Spark's objection as an InputError."""
    try:
        with _quiet():
            yield
    except (AnalysisException, ParseException) as error:
        line = one_line(str(error).strip().partition("\n")[0])
        raise InputError(f"{found}: {line}; expected {expected}") from None
