"""Checks of files that should hold text or JSON lines, from their names and first bytes."""

import re
from pathlib import Path

import pyarrow as pa

from pipeline.shared.errors import InputError
from pipeline.shared.file_kinds import BZ2, GZIP, XZ, ZSTD, kind_of
from pipeline.shared.files import os_errors

HEAD_BYTES = 1 << 16
MAX_ZERO_SHARE = 0.01
"""Text has next to no zero bytes, UTF-16 and most binary formats have many."""

CODECS = {".gz": GZIP, ".bz2": BZ2, ".zst": ZSTD}
"""Compression that Spark recognises by the end of a file's name, exactly as it is spelled here."""
_OTHER_CODECS = (".lz4", ".snappy", ".deflate", ".br", ".lzma", ".lzo")
"""Hadoop would take some of these for codecs of its own, and others for plain text."""

_REMEDIES = {
    **{data: f"rename it so that it ends in {end}" for end, data in CODECS.items()},
    XZ: "decompress it with xz -d",
    "a Parquet file": "add --format parquet and --column",
    "a PDF file": "extract its text",
}
_DVC = re.compile(rb"(?m)^- md5: |^md5: ")


def check_text(path: Path) -> None:
    """Raises InputError unless ``path`` can be read, and begins like text, or is empty."""
    expected = "expected UTF-8 text, one sentence a line"
    if path.suffix in _OTHER_CODECS:
        raise InputError(f"--input {path}: {path.suffix} is not read; expected plain text, .gz, .bz2 or .zst")
    with os_errors(f"--input {path}: cannot be read", "expected a text file"), path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    codec = CODECS.get(path.suffix)
    if codec and head:
        what, remedy = _kind_of(head) or ("no such data", "rename it")
        if what != codec:
            raise InputError(f"--input {path}: cannot be read: by its name it is {codec}, found {what}; {remedy}")
        with os_errors(f"--input {path}: cannot be read", f"expected whole {codec}"), _opened(path) as stream:
            head = stream.read(HEAD_BYTES)
    if found := _kind_of(head):
        raise InputError(f"--input {path}: found {found[0]}, {expected}; {found[1]}")
    if path.suffix == ".dvc" and _DVC.search(head):
        raise InputError(f"--input {path}: found a pointer of DVC, {expected}; name only the files that it points to")
    if head.count(0) > MAX_ZERO_SHARE * len(head):
        raise InputError(f"--input {path}: binary (a zero byte at offset {head.index(0)}), {expected}")


def check_json(path: Path) -> None:
    """Raises InputError unless ``path`` begins like JSON lines, or is empty."""
    check_text(path)
    with _opened(path) as stream:
        head = stream.read(HEAD_BYTES).removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith(b"["):
        raise InputError(
            f"--input {path}: found a JSON array, expected one JSON object a line; jq -c '.[]' makes lines of an array"
        )


def _kind_of(head: bytes) -> tuple[str, str] | None:
    found = kind_of(head)
    return found and (found[0], found[1] or _REMEDIES.get(found[0], "write it as Parquet"))


def _opened(path: Path) -> pa.NativeFile:
    """The file, decompressed as its name says."""
    codec = CODECS.get(path.suffix)
    return pa.input_stream(str(path), compression=codec and codec.removesuffix(" data"))
