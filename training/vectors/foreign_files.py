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

HEAD_BYTES = 1 << 10

_UNPACK = "unpack it, and name the file inside"
_DOWNLOAD = "download the file itself"
_KINDS = (
    (rb"PK\x03\x04|PK\x05\x06", "a zip archive", _UNPACK),
    (rb"(?s).{257}ustar", "a tar archive", _UNPACK),
    (rb"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (rb"Rar!", "a rar archive", _UNPACK),
    (rb"\x04\x22\x4d\x18", "lz4 data", "decompress it with lz4 -d"),
    (
        rb"version https://git-lfs",
        "a pointer of Git LFS to a file elsewhere",
        "fetch the file with git lfs pull",
    ),
    (rb"/annex/objects/", "a pointer of git-annex to a file elsewhere", "fetch the file with git annex get"),
    (rb"(?i)\s*<(!doctype html|html|head|body)\b", "an HTML page", _DOWNLOAD),
    (rb"(?i)\s*<\?xml\b", "an XML document", _DOWNLOAD),
    (rb'\s*(\{\s*("|\}\s*$)|\[\s*["{\[\]])', "JSON", "write the vectors in word2vec's format"),
    (rb"\xff\xfe|\xfe\xff", "text in UTF-16", "convert it with iconv -f UTF-16 -t UTF-8"),
    (rb"\x80[\x02-\x05]", "a pickle of Python", "load it and write it with gensim's save_word2vec_format"),
    (rb"\xba\x16\x4f\x2f", "a fastText model", "name the .vec file that fastText wrote beside it"),
    (rb"\x93NUMPY", "a NumPy array, which has no words", "name a file with the words"),
    (rb"PAR1", "a Parquet file", "write the vectors in word2vec's format"),
    (rb"ARROW1", "an Arrow file", "write the vectors in word2vec's format"),
    (rb"\x89HDF", "an HDF5 file", "write the vectors in word2vec's format"),
    (rb"SQLite format 3", "an SQLite database", "write the vectors in word2vec's format"),
    (rb"GGUF", "a GGUF model", "name a file of word vectors"),
    (rb"%PDF-", "a PDF file", "name a file of word vectors"),
)
"""What a file begins with, what it then is, and what to do. No word2vec file begins so."""

_OPENERS: dict[bytes, Any] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"\x28\xb5\x2f\xfd": lambda file: pa.input_stream(str(file), compression="zstd"),
}


def refuse_foreign(file: Path, head: bytes) -> None:
    """Raises InputError if a file that begins with ``head`` is of a known kind that has no word vectors."""
    for pattern, kind, remedy in _KINDS:
        if re.match(pattern, head.removeprefix(b"\xef\xbb\xbf")):
            raise InputError(f"{file}: found {kind}, expected word2vec's format, or .safetensors; {remedy}")


@contextmanager
def opened_whole(file: Path) -> Iterator[IO[bytes]]:
    """The file, open; if it is compressed (gzip, bzip2, xz, zstd), a temporary file with what it decompresses to.

    Raises OSError, and InputError for damaged data.
    """
    with file.open("rb") as opened:
        head = opened.read(8)
        opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
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
