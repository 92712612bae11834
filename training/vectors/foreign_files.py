"""Files that people give for word vectors: compressed ones, which are decompressed, and others, which are named."""

import bz2
import gzip
import lzma
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO, Any

import pyarrow as pa

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.file_kinds import BZ2, GZIP, XZ, ZSTD, kind_of

HEAD_BYTES = 1 << 10

_DOWNLOAD = "download the file itself"
_TEXTS = (
    (rb"(?i)\s*<(!doctype html|html|head|body)\b", "an HTML page", _DOWNLOAD),
    (rb"(?i)\s*<\?xml\b", "an XML document", _DOWNLOAD),
    (rb'\s*(\{\s*("|\}\s*$)|\[\s*["{\[\]])', "JSON", None),
)
"""What texts begin with that are no word2vec files, what they are, and what to do."""

_OPENERS: dict[str, Any] = {
    GZIP: gzip.open,
    BZ2: bz2.open,
    XZ: lzma.open,
    ZSTD: lambda file: pa.input_stream(str(file), compression="zstd"),
}


def refuse_foreign(file: Path, head: bytes) -> None:
    """Raises InputError if a file that begins with ``head`` is of a known kind that has no word vectors."""
    text = head.removeprefix(b"\xef\xbb\xbf")
    found = kind_of(head) or next(((kind, remedy) for mark, kind, remedy in _TEXTS if re.match(mark, text)), None)
    if found:
        remedy = found[1] or "write the vectors in word2vec's format"
        raise InputError(f"{file}: found {found[0]}, expected word2vec's format, or .safetensors; {remedy}")


@contextmanager
def opened_whole(file: Path) -> Iterator[IO[bytes]]:
    """The file, open; if it is compressed (gzip, bzip2, xz, zstd), a temporary file with what it decompresses to.

    Raises OSError, and InputError for damaged data.
    """
    with file.open("rb") as opened:
        found = kind_of(opened.read(HEAD_BYTES))
        opener = _OPENERS.get(found[0]) if found else None
        opened.seek(0)
        if opener is None:
            yield opened
            return
    with NamedTemporaryFile(prefix="shardvec-") as whole:
        try:
            with opener(file) as source:
                shutil.copyfileobj(source, whole, 1 << 20)
            whole.flush()
        except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
            raise InputError(f"{file}: cannot be decompressed ({one_line(error)}); get the whole file") from None
        whole.seek(0)
        yield whole
