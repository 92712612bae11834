"""Corpora: text, Parquet or JSON lines, from any place that Spark can read, and the built-in demo."""

import glob
import json
import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import os_errors, write
from pipeline.shared.storage import is_uri
from pipeline.text.demo import demo_lines

SNIFF_BYTES = 1 << 16
JSON_SAMPLE_LINES = 1000

_CORRUPT = "__corrupt_line"
_GLOB_CHARACTERS = re.compile(r"[][*?{}\\]")
_ESCAPED = r"\\\g<0>"
_COMPRESSED_OTHERWISE = (".lz4", ".snappy", ".deflate", ".br")


@dataclass(frozen=True)
class Corpus:
    """Files of one format. The dataset does not depend on which file a sequence is in."""

    paths: tuple[str, ...]
    """Absolute paths of files of this machine, and URIs or patterns that Spark reads, such as ``hdfs:///logs/*``."""
    description: str
    format: str = "text"
    column: str | None = None
    """The column of strings, or of arrays of strings or integers. None for text, where each line is a value."""

    def state(self, session: Callable[[], SparkSession]) -> tuple[dict[str, str | int], ...]:
        """Path, size and time of every file: equal states mean an unchanged corpus. Spark lists remote files."""
        found: list[dict[str, str | int]] = []
        for path in self.paths:
            if not is_uri(path):
                stat = Path(path).stat()
                found.append({"path": path, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns})
        remote = [path for path in self.paths if is_uri(path)]
        if remote:
            files = session().read.format("binaryFile").load(remote)
            for row in files.select("path", "length", F.unix_micros("modificationTime").alias("us")).collect():
                found.append({"path": row["path"], "bytes": row["length"], "mtime_ns": row["us"] * 1000})
        if self.column is not None:
            found.append({"format": self.format, "column": self.column})
        return tuple(sorted(found, key=lambda entry: str(entry.get("path", ""))))

    def read(self, spark: SparkSession) -> DataFrame:
        """(value): a line without its end (string or binary), or a sequence (array<string>). A value may be null.

        A string may be invalid UTF-8: Spark passes its bytes on unchanged. Raises InputError if the column is
        missing or has a type that cannot hold sequences.
        """
        paths = [path if is_uri(path) else f"file:{_GLOB_CHARACTERS.sub(_ESCAPED, path)}" for path in self.paths]
        if self.format == "text":
            return spark.read.text(paths).select("value")
        if self.format == "parquet":
            rows = spark.read.parquet(*paths)
            kind = self._kind(rows.schema)
        elif self.format == "json":
            kind = self._kind_of_json(spark.read.text(paths).limit(JSON_SAMPLE_LINES).toArrow()["value"].to_pylist())
            fields = [T.StructField(str(self.column), kind), T.StructField(_CORRUPT, T.StringType())]
            rows = spark.read.schema(T.StructType(fields)).json(paths, columnNameOfCorruptRecord=_CORRUPT)
        else:
            raise AssertionError(f"no reader of {self.format}")
        value = F.col(f"`{str(self.column).replace('`', '``')}`")
        if self.format == "json":  # Spark would return a part of a truncated line
            value = F.when(F.col(_CORRUPT).isNull(), value)
        is_array = isinstance(kind, T.ArrayType)
        return rows.select((value.cast("array<string>") if is_array else value).alias("value"))

    def _kind_of_json(self, lines: list[str]) -> T.DataType:
        """The column's type, from the first lines. Spark would read all lines and treat mixed types as strings."""
        names: set[str] = set()
        kinds: set[T.DataType] = set()
        for line in lines:
            with suppress(ValueError):
                row = json.loads(line)
                names |= row.keys() if isinstance(row, dict) else set()
                value = row.get(self.column) if isinstance(row, dict) else None
                if value is not None and value != []:
                    kinds.add(_json_kind(value))
        if len(kinds) > 1:
            found = " and ".join(sorted(kind.simpleString() for kind in kinds))
            raise InputError(f"--column {self.column}: is {found} in {self.description}, expected one kind")
        fields = [T.StructField(name, T.NullType()) for name in sorted(names - {self.column})]
        if self.column in names:
            fields.append(T.StructField(str(self.column), kinds.pop() if kinds else T.NullType()))
        return self._kind(T.StructType(fields))

    def _kind(self, schema: T.StructType) -> T.DataType:
        """The column's type. Raises InputError if the column is missing or cannot hold sequences."""
        if self.column not in schema.names:
            raise InputError(
                f"--column {self.column}: not in {self.description}; it has {', '.join(schema.names) or 'no columns'}"
            )
        kind = schema[str(self.column)].dataType
        element = kind.elementType if isinstance(kind, T.ArrayType) else None
        if isinstance(kind, T.StringType | T.BinaryType) or isinstance(element, T.StringType | T.IntegralType):
            return kind
        raise InputError(
            f"--column {self.column}: is {kind.simpleString()} in {self.description}, "
            f"expected string, array<string> or an array of integers"
        )


def corpus(given: Iterable[str], format: str = "text", column: str | None = None) -> Corpus:
    """The corpus in the files, folders, patterns and URIs ``given``. Local files are found and checked at once.

    As in Spark, a folder means the files directly inside it whose names begin with neither . nor _ .
    """
    if (column is None) != (format == "text"):
        expected = "no column: its lines are the sequences" if format == "text" else "the name of a column"
        raise InputError(f"--column: found {column}, for --format {format} expected {expected}")
    paths: list[str] = []
    for name in given:
        if is_uri(name) and not name.startswith("file:"):
            paths.append(name)
        else:
            paths += map(str, _local_files(name, format))
    return Corpus(tuple(paths), ", ".join(map(str, given)), format, column)


def text(given: Path) -> Corpus:
    """The corpus in the text file ``given``, or in all files of the folder ``given``."""
    return corpus([str(given)])


def demo(cache: Path) -> Corpus:
    """The generated demo corpus. Writes it to ``cache`` unless ``cache`` has the same text already."""
    content = "".join(f"{line}\n" for line in demo_lines()).encode()
    if not cache.is_file() or cache.read_bytes() != content:
        write_copy(cache, content)
    return Corpus((str(cache.absolute()),), f"the built-in demo corpus, {cache}")


def write_copy(path: Path, content: bytes) -> None:
    """Writes a generated or downloaded text atomically. Raises InputError when ``path`` cannot be written."""
    with os_errors(f"{path}: cannot be written", "name a copy of the text with --input"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, content)


def _json_kind(value: object) -> T.DataType:
    if isinstance(value, list):
        kinds = {_json_kind(element) for element in value if element is not None} or {T.StringType()}
        element = T.StringType() if kinds <= {T.StringType(), T.LongType()} else T.DoubleType()
        return T.ArrayType(element)
    if isinstance(value, str):
        return T.StringType()
    return T.LongType() if isinstance(value, int) and not isinstance(value, bool) else T.DoubleType()


def _local_files(given: str, format: str) -> list[Path]:
    """The local files that match a path or pattern. Raises InputError if Spark cannot read one of them."""
    path = Path(re.sub("^file:/+", "/", given))
    what = "a text file or a folder of them" if format == "text" else f"a {format} file or a folder of them"
    paths: list[Path] = []
    with os_errors(f"--input {given}: cannot be read", f"expected {what}"):
        matches = sorted(map(Path, glob.glob(str(path)))) if not path.exists() else []
        for match in matches or [path]:
            if match.is_dir():
                inside = sorted(file for file in match.iterdir() if file.is_file() and file.name[0] not in "._")
                if not inside:
                    raise InputError(
                        f"--input {match}: a folder without files, expected files right inside it; "
                        f"a pattern such as '{match}/*' names the folders inside"
                    )
                paths += inside
            elif match.is_file():
                paths.append(match)
            else:
                raise InputError(f"--input {given}: not found, expected {what}")
        for path in paths:
            _check_name(path)
            _CHECKS[format](path)
        if not any(path.stat().st_size for path in paths):
            raise InputError(f"--input {given}: empty, expected text, one sentence a line")
    return [path.absolute() for path in paths]


def _check_name(path: Path) -> None:
    """Raises InputError for a name that Spark skips or cannot pass to Java."""
    if path.name[0] in "._" or path.name.endswith("._COPYING_") or ":" in str(path.absolute()):
        raise InputError(
            f"--input {path}: Spark reads no name that begins with . or _, ends with _COPYING_ or has a ':'"
        )
    if not str(path).isprintable():
        raise InputError(f"--input {str(path)!r}: its name is not UTF-8 or has control characters; rename the file")


def _check_text(path: Path) -> None:
    """Raises InputError for a file that cannot be read or is binary: it has a zero byte near its beginning."""
    if path.suffix in _COMPRESSED_OTHERWISE:
        raise InputError(f"--input {path}: {path.suffix} is not read; expected plain text, .gz, .bz2 or .zst")
    with (
        os_errors(f"--input {path}: cannot be read", "expected a text file"),
        pa.input_stream(str(path), compression="detect") as file,
    ):
        head = file.read(SNIFF_BYTES)
    if b"\0" in head:
        offset = head.index(b"\0")
        raise InputError(
            f"--input {path}: binary (a zero byte at offset {offset}), expected UTF-8 text, a sentence a line"
        )


def _check_parquet(path: Path) -> None:
    try:
        pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"--input {path}: not a whole Parquet file ({one_line(error)}); give a whole copy") from None


_CHECKS = {"text": _check_text, "json": _check_text, "parquet": _check_parquet}
