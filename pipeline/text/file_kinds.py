"""What a file is, from its first bytes: text, something else that has a name, or a pointer to content elsewhere."""

import re
from pathlib import Path

import pyarrow as pa

from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors

HEAD_BYTES = 1 << 16
MAX_ZERO_SHARE = 0.01
"""Text has next to no zero bytes, UTF-16 and most binary formats have many."""

CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd"}
"""Compression that Spark recognises by the end of a file's name, exactly as it is spelled here."""
_OTHER_CODECS = (".lz4", ".snappy", ".deflate", ".br", ".lzma", ".lzo")
"""Hadoop would take some of these for codecs of its own, and others for plain text."""

_UNPACK = "unpack it"
_AS_PARQUET = "write it as Parquet"
_KINDS = (
    ("gzip data", rb"\x1f\x8b\x08", "rename it so that it ends in .gz"),
    ("bz2 data", rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", "rename it so that it ends in .bz2"),
    ("zstd data", rb"\x28\xb5\x2f\xfd", "rename it so that it ends in .zst"),
    ("xz data", rb"\xfd7zXZ\0", "decompress it with xz -d"),
    ("lz4 data", rb"\x04\x22\x4d\x18", "decompress it with lz4 -d"),
    ("a ZIP archive (binary)", rb"PK[\3\5][\4\6]", _UNPACK),
    ("a 7z archive (binary)", rb"7z\xbc\xaf\x27\x1c", _UNPACK),
    ("a tar archive (binary)", rb"(?s).{257}ustar", _UNPACK),
    ("text in UTF-32", rb"\xff\xfe\0\0|\0\0\xfe\xff", "convert it with iconv -f UTF-32 -t UTF-8"),
    ("text in UTF-16", rb"\xff\xfe|\xfe\xff", "convert it with iconv -f UTF-16 -t UTF-8"),
    ("a Parquet file", rb"PAR1[\0-\x1f]", "add --format parquet and --column"),
    ("an encrypted Parquet file", rb"PARE", "write it without encryption"),
    ("an Arrow file", rb"ARROW1\0\0", _AS_PARQUET),
    ("an Arrow stream", rb"\xff{4}.{3}\0\x10\0\0\0", _AS_PARQUET),
    ("an Avro file", rb"Obj\x01", _AS_PARQUET),
    ("an ORC file", rb"ORC[\0-\x08\x0e-\x1f]", _AS_PARQUET),
    ("an SQLite database", rb"SQLite format 3\0", _AS_PARQUET),
    ("an HDF5 file", rb"\x89HDF\r\n", _AS_PARQUET),
    ("a PDF file", rb"%PDF-\d", "extract its text"),
    (
        "a pointer of Git LFS to a file that is not here",
        rb"version https://git-lfs\.github\.com/spec/",
        "fetch the file with git lfs pull",
    ),
    (
        "a pointer of git-annex to a file that is not here",
        rb"/annex/objects/",
        "fetch the file with git annex get",
    ),
)
"""Names of kinds of files, what they begin with, and what to do with one. No text begins so."""
_PATTERNS = tuple((name, re.compile(pattern), remedy) for name, pattern, remedy in _KINDS)
_DVC = re.compile(rb"(?m)^- md5: |^md5: ")


def kind(head: bytes) -> tuple[str, str] | None:
    """The name of what begins with ``head``, if it is one of _KINDS, and what to do with it."""
    return next(((name, remedy) for name, pattern, remedy in _PATTERNS if pattern.match(head)), None)


def check_text(path: Path) -> None:
    """Raises InputError unless ``path`` can be read, and begins like text, or is empty."""
    expected = "expected UTF-8 text, one sentence a line"
    if path.suffix in _OTHER_CODECS:
        raise InputError(f"--input {path}: {path.suffix} is not read; expected plain text, .gz, .bz2 or .zst")
    with os_errors(f"--input {path}: cannot be read", "expected a text file"), path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    codec = CODECS.get(path.suffix)
    if codec and head:
        what, remedy = kind(head) or ("no such data", "rename it")
        if what != f"{codec} data":
            raise InputError(f"--input {path}: cannot be read: by its name it is {codec}, found {what}; {remedy}")
        with (
            os_errors(f"--input {path}: cannot be read", f"expected whole {codec} data"),
            pa.input_stream(str(path), compression=codec) as stream,
        ):
            head = stream.read(HEAD_BYTES)
    if found := kind(head):
        raise InputError(f"--input {path}: found {found[0]}, {expected}; {found[1]}")
    if path.suffix == ".dvc" and _DVC.search(head):
        raise InputError(f"--input {path}: found a pointer of DVC, {expected}; name only the files that it points to")
    if head.count(0) > MAX_ZERO_SHARE * len(head):
        raise InputError(f"--input {path}: binary (a zero byte at offset {head.index(0)}), {expected}")


def check_json(path: Path) -> None:
    """Raises InputError unless ``path`` begins like JSON lines, or is empty."""
    check_text(path)
    with pa.input_stream(str(path), compression=CODECS.get(path.suffix)) as stream:
        head = stream.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        raise InputError(
            f"--input {path}: found a JSON array, expected one JSON object a line; jq -c '.[]' makes lines of an array"
        )
