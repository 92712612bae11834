"""Files of a corpus that Spark reaches: listed and opened through its Java, with its packages and credentials."""

import io
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import pyarrow as pa
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from pipeline.shared.errors import InputError
from pipeline.text.local_files import TABLES, table_refused

OPEN_AT_ONCE = 16

T = TypeVar("T")


class RemoteFile(NamedTuple):
    """A file as Java lists it."""

    name: str
    bytes: int
    mtime_ms: int


class RemoteFiles:
    """The files that URIs and patterns name, as folders and patterns of this machine have it, each once.

    Spark's own listing goes into folders ``key=value`` and adds their keys as columns.
    """

    def __init__(self, spark: SparkSession, uris: list[str]):
        self._spark, self._uris = spark, uris

    @cached_property
    def _java(self) -> Any:
        if is_connect(self._spark):
            raise InputError(
                f"--input {self._uris[0]}: found a session of Spark Connect, which lists no files, expected files of "
                f"this machine; read it as a DataFrame, and prepare a DataFrameCorpus"
            )
        return self._spark.sparkContext._jvm

    @cached_property
    def files(self) -> list[RemoteFile]:
        """In order of their names. Raises InputError if there are none."""
        found = {file.name: file for uri in self._uris for file in self._files_of(uri)}
        return [found[name] for name in sorted(found)]

    def patterns(self) -> list[str]:
        """For each file, the pattern that matches only it."""
        return [pattern_of(file.name) for file in self.files]

    def check_no_table(self, given: str) -> None:
        """Raises InputError if a file is in the folder of a table that has a log of its files."""
        folders = set()
        for uri in (*self._uris, *(file.name for file in self.files)):
            folder = self._path(uri)
            while folder is not None:
                folders.add(folder.toString())
                folder = folder.getParent()
        for name in sorted(folders):
            for kind, log_of_files in TABLES.items():
                pattern = self._path(f"{name.rstrip('/')}/{log_of_files}")
                with suppress(Py4JJavaError):  # a folder above that may not be listed
                    if self._filesystem(pattern).globStatus(pattern):
                        raise table_refused(given, kind, name)

    def map(self, function: Callable[[str, pa.NativeFile], T]) -> dict[str, T]:
        """``function(name, file)`` of every file, by the pattern that matches only it. Opens several at once."""

        def of_one(file: RemoteFile) -> T:
            opened = _JavaFile(self._java, self._filesystem(self._path(file.name)), file)
            with pa.PythonFile(opened, mode="r") as source:
                return function(file.name, source)

        with ThreadPoolExecutor(OPEN_AT_ONCE) as pool:
            return dict(zip(self.patterns(), pool.map(of_one, self.files), strict=True))

    def _files_of(self, uri: str) -> Iterator[RemoteFile]:
        if "**" in uri:
            raise InputError(f"--input {uri}: found **, expected only * in a URI; ** is for paths of this machine")
        path = self._path(uri)
        filesystem = self._filesystem(path)
        is_found = False
        for match in filesystem.globStatus(path) or ():
            inside = filesystem.listStatus(match.getPath()) if match.isDirectory() else (match,)
            for status in inside:
                if not status.isDirectory() and status.getPath().getName()[0] not in "._":
                    is_found = True
                    name = status.getPath().toString()
                    yield RemoteFile(name, int(status.getLen()), int(status.getModificationTime()))
        if not is_found:
            raise InputError(f"--input {uri}: not found, expected a file, or a folder or pattern of files")

    def _path(self, name: str) -> Any:
        return self._java.org.apache.hadoop.fs.Path(name)

    def _filesystem(self, path: Any) -> Any:
        return path.getFileSystem(self._spark._jsparkSession.sessionState().newHadoopConf())


def is_connect(spark: SparkSession) -> bool:
    """Whether a session is one of Spark Connect, whose Spark runs elsewhere: it has no Java here."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def pattern_of(name: str) -> str:
    """The pattern that matches only ``name``."""
    return re.sub(r"[][*?{}\\]", r"\\\g<0>", name)


class _JavaFile(io.RawIOBase):
    """A file that Hadoop opens, for reading a few parts of it. Each read is a request."""

    def __init__(self, java: Any, filesystem: Any, file: RemoteFile):
        self._java, self._stream = java, filesystem.open(java.org.apache.hadoop.fs.Path(file.name))
        self._size, self._position = file.bytes, 0

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._position)
        size = left if size < 0 else min(size, left)
        self._stream.seek(self._position)
        self._position += size
        return bytes(self._java.org.apache.commons.io.IOUtils.toByteArray(self._stream, size))

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()
