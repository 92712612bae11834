"""Files of a corpus that Spark reaches: listed and opened through its Java, with its packages and credentials."""

import io
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pyarrow as pa
from pyspark.sql import SparkSession

from pipeline.text.local_files import TABLES, table_refused

OPEN_AT_ONCE = 16

T = TypeVar("T")


class RemoteFiles:
    """The files that URIs and patterns name, as Spark lists them."""

    def __init__(self, spark: SparkSession, uris: list[str]):
        self._spark, self._uris = spark, uris
        self._java: Any = spark.sparkContext._jvm

    def check_no_table(self, given: str) -> None:
        """Raises InputError if a file is in the folder of a table that has a log of its files."""
        folders = set()
        for uri in self._uris:
            folder = self._path(uri)
            while folder is not None:
                folders.add(folder.toString())
                folder = folder.getParent()
        for name in sorted(folders):
            for kind, log_of_files in TABLES.items():
                pattern = self._path(f"{name.rstrip('/')}/{log_of_files}")
                if self._filesystem(pattern).globStatus(pattern):
                    raise table_refused(given, kind, name)

    def map(self, function: Callable[[str, pa.NativeFile], T]) -> dict[str, T]:
        """``function(name, file)`` of every file, by a pattern that names only this file. Opens several at once."""
        if not self._uris:
            return {}
        listed = self._spark.read.schema("listed string").parquet(*self._uris).inputFiles()
        names = [self._java.org.apache.hadoop.fs.Path(self._java.java.net.URI(uri)).toString() for uri in listed]

        def of_one(name: str) -> T:
            with pa.PythonFile(_JavaFile(self._java, self._filesystem(self._path(name)), name), mode="r") as file:
                return function(name, file)

        with ThreadPoolExecutor(OPEN_AT_ONCE) as pool:
            return {pattern_of(name): found for name, found in zip(names, pool.map(of_one, names), strict=True)}

    def _path(self, name: str) -> Any:
        return self._java.org.apache.hadoop.fs.Path(name)

    def _filesystem(self, path: Any) -> Any:
        return path.getFileSystem(self._spark._jsparkSession.sessionState().newHadoopConf())


def pattern_of(name: str) -> str:
    """The pattern that matches only ``name``."""
    return re.sub(r"[][*?{}\\]", r"\\\g<0>", name)


class _JavaFile(io.RawIOBase):
    """A file that Hadoop opens, for reading a few parts of it. Each read is a request."""

    def __init__(self, java: Any, filesystem: Any, name: str):
        path = java.org.apache.hadoop.fs.Path(name)
        self._java, self._stream = java, filesystem.open(path)
        self._size, self._position = int(filesystem.getFileStatus(path).getLen()), 0

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
