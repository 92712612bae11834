"""Corpora: text, Parquet or JSON lines, from any place that Spark can read, and the built-in demo."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors, write
from pipeline.shared.storage import is_uri, local_path
from pipeline.text import json_lines
from pipeline.text.demo import demo_lines
from pipeline.text.local_files import local_files, without_repeats
from pipeline.text.parquet_column import Finder, Stored, Wanted, stored_columns
from pipeline.text.parquet_files import event_columns, for_spark, read_events, read_sequences
from pipeline.text.remote_files import RemoteFiles
from pipeline.text.text_files import check_json, check_text

_CASE_SENSITIVE = "spark.sql.caseSensitive"
State = tuple[dict[str, str | int], ...]
Values = Callable[[pa.Array], pa.Array]
"""From a batch's first column to values: lines (string or binary), or sequences (lists of string or binary)."""


class Corpus(Protocol):
    """What prepare reads: sequences that Spark can read twice. The dataset does not depend on their order."""

    @property
    def description(self) -> str:
        """What messages call it."""

    @property
    def has_exact_names(self) -> bool:
        """Whether upper and lower case tell its columns apart, as in files; in Spark's catalog they do not."""

    def state(self, session: Callable[[], SparkSession]) -> State:
        """What the manifest keeps of it. Equal states mean an unchanged corpus, unless the corpus has no versions."""

    def identities(self) -> State:
        """What else must stay the same while prepare runs, and means nothing later."""

    def read(self, spark: SparkSession) -> DataFrame:
        """(value): what ``values`` takes, one row for each sequence. A value may be null."""

    def values(self, rows: DataFrame) -> Values:
        """What makes values of the ``rows`` that ``read`` gave, in Spark's Python workers."""

    def remarks(self) -> list[str]:
        """What the user should know of its rows. Called after they were read once."""


@dataclass(frozen=True)
class FileCorpus:
    """Files of one format. The dataset does not depend on which file a sequence is in."""

    paths: tuple[str, ...]
    """Absolute paths of files of this machine, and URIs or patterns that Spark reads, such as ``hdfs:///logs/*``."""
    description: str
    format: str = "text"
    column: str | None = None
    """The column of strings, or of arrays of strings or integers. None for text, where each line is a value."""
    find: Finder | None = None
    """For the files that a table's log names: where a file has a column of the table. None for other files."""
    has_exact_names = True

    def state(self, session: Callable[[], SparkSession]) -> State:
        """Path, size and time of every file: equal states mean an unchanged corpus. Java lists remote files."""
        found: list[dict[str, str | int]] = []
        for path in self._local_paths:
            with os_errors(f"--input {path}: cannot be read", "expected a file"):
                stat = Path(path).stat()
            found.append({"path": path, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
        if any(map(is_uri, self.paths)):
            for name, size, mtime_ms in self._remote(session()).files:
                found.append({"path": name, "bytes": size, "mtime_ns": mtime_ms * 1_000_000})
        if self.column is not None:
            found.append({"format": self.format, "column": self.column})
        return tuple(sorted(found, key=lambda entry: str(entry.get("path", ""))))

    def identities(self) -> State:
        """What tells whether a file of this machine was replaced by one of equal size and time, or changed so."""
        stats = [(path, Path(path).stat()) for path in self._local_paths]
        return tuple({"path": path, "inode": stat.st_ino, "ctime_ns": stat.st_ctime_ns} for path, stat in stats)

    def read(self, spark: SparkSession) -> DataFrame:
        """(value): a line without its end, of text or of JSON, or a value of a Parquet column. It may be null.

        A string may be invalid UTF-8: Spark passes its bytes on unchanged. Raises InputError for a Parquet column that
        cannot hold sequences.
        """
        if self.format == "parquet":
            column = str(self.column)
            wanted = Wanted(column, find=self.find(column) if self.find else None)
            return read_sequences(spark, self._by_types(spark, [wanted]), self.description, column)
        remote = self._checked_remote(spark)
        return spark.read.text([*map(for_spark, self._local_paths), *remote.patterns()]).select("value")

    def values(self, rows: DataFrame) -> Values:
        """What makes values of the ``rows`` that ``read`` gave, batch by batch, in Spark's Python workers.

        JSON is parsed there, after a first pass has found the one kind of values that the corpus has. Raises InputError
        if the column is missing or has no such kind.
        """
        if self.format != "json":
            return as_they_are
        column = str(self.column)

        def kinds(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            counts: Counter[str] = Counter()
            for batch in batches:
                counts += json_lines.found(batch.column(0), column)
            yield pa.RecordBatch.from_arrays(
                [pa.array(counts, pa.string()), pa.array(counts.values(), pa.int64())], ["name", "count"]
            )

        counted = rows.mapInArrow(kinds, "name string, count bigint").groupBy("name").agg(F.sum("count").alias("count"))
        found = Counter({row["name"]: row["count"] for row in counted.collect()})
        return partial(
            json_lines.values, column=column, kind=json_lines.kind_of_corpus(found, column, self.description)
        )

    def remarks(self) -> list[str]:
        return []

    def events(self, spark: SparkSession, item: str, group_by: str, order_by: str) -> DataFrame:
        """(item, group, time) of Parquet files: three of their columns, one row an event. See ``read_events``."""
        return read_events(spark, self._by_types(spark, event_columns(item, group_by, order_by, self.find)))

    @property
    def _local_paths(self) -> list[str]:
        return [path for path in self.paths if not is_uri(path)]

    def _remote(self, spark: SparkSession) -> RemoteFiles:
        return RemoteFiles(spark, [path for path in self.paths if is_uri(path)])

    def _checked_remote(self, spark: SparkSession) -> RemoteFiles:
        remote = self._remote(spark)
        if self.find is None:
            remote.check_no_table(self.description)
        return remote

    def _by_types(self, spark: SparkSession, wanted: list[Wanted]) -> dict[tuple[Stored, ...], list[str]]:
        """The files, as Spark names them, that have the ``wanted`` columns by the same names and types."""
        found: dict[tuple[Stored, ...], list[str]] = {}
        for path in self._local_paths:
            found.setdefault(stored_columns(path, path, wanted), []).append(for_spark(path))
        remote = self._checked_remote(spark)
        for path, stored in remote.map(lambda name, file: stored_columns(file, name, wanted)).items():
            found.setdefault(stored, []).append(path)
        return found


@contextmanager
def exact_names(spark: SparkSession) -> Iterator[None]:
    """Lets Spark tell columns apart whose names differ only in upper and lower case, within a ``with`` block."""
    before = str(spark.conf.get(_CASE_SENSITIVE))
    spark.conf.set(_CASE_SENSITIVE, "true")
    try:
        yield
    finally:
        spark.conf.set(_CASE_SENSITIVE, before)


def as_they_are(values: pa.Array) -> pa.Array:
    """The values of corpora whose rows are values already."""
    return values


def corpus(
    given: Iterable[str], format: str = "text", column: str | None = None, wanted: Iterable[Wanted] = ()
) -> FileCorpus:
    """The corpus in the files, folders, patterns and URIs ``given``. Local files are found and checked at once.

    As in Spark, a folder means the files directly inside it whose names begin with neither . nor _ . Parquet files are
    checked for the ``wanted`` columns: by default for a ``column`` of sequences.
    """
    if (column is None) != (format == "text"):
        expected = "no column: its lines are the sequences" if format == "text" else "the name of a column"
        raise InputError(f"--column: found {column}, for --format {format} expected {expected}")
    given = list(given)
    what = f"a {format} file or a folder of them"
    files: list[Path] = []
    remote: list[str] = []
    for name in given:
        path = _local_path(name)
        if path is None:
            scheme, colon, rest = name.partition(":")
            remote.append(scheme.lower() + colon + rest)  # Java knows each by its name in lower case
        else:
            files += local_files(name, path, what)
    files = without_repeats(files)
    columns = tuple(wanted) or (Wanted(str(column)),)
    check: Callable[[Path], object] = {
        "text": check_text,
        "json": check_json,
        "parquet": lambda path: stored_columns(str(path), str(path), columns),
    }[format]
    for file in files:
        check(file)
    description = ", ".join(map(str, given))
    if files and not remote and not any(file.stat().st_size for file in files):
        raise InputError(f"--input {description}: empty, expected {what}")
    return FileCorpus((*map(str, files), *remote), description, format, column)


def _local_path(given: str) -> Path | None:
    try:
        return local_path(given)
    except InputError as error:
        raise InputError(f"--input {error}") from None


def text(given: Path) -> FileCorpus:
    """The corpus in the text file ``given``, or in all files of the folder ``given``."""
    return corpus([str(given)])


def demo(cache: Path) -> FileCorpus:
    """The generated demo corpus. Writes it to ``cache`` unless ``cache`` has the same text already."""
    content = "".join(f"{line}\n" for line in demo_lines()).encode()
    if not cache.is_file() or cache.read_bytes() != content:
        write_copy(cache, content)
    return FileCorpus((str(cache.absolute()),), f"the built-in demo corpus, {cache}")


def write_copy(path: Path, content: bytes) -> None:
    """Writes a generated or downloaded text atomically. Raises InputError when ``path`` cannot be written."""
    with os_errors(f"{path}: cannot be written", "name a copy of the text with --input"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)
