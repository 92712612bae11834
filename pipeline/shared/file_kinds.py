"""What a file is, from its first bytes: something that has a name, or a pointer to content elsewhere.

No text and no word2vec file begins so.
"""

import re

GZIP, BZ2, ZSTD, XZ = "gzip data", "bz2 data", "zstd data", "xz data"

_UNPACK = "unpack it"
_KINDS: tuple[tuple[str, bytes, str | None], ...] = (
    (GZIP, rb"\x1f\x8b\x08", None),
    (BZ2, rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", None),
    (ZSTD, rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", None),
    (XZ, rb"\xfd7zXZ\0", None),
    ("lz4 data", rb"\x04\x22\x4d\x18", "decompress it with lz4 -d"),
    ("a zip archive (binary)", rb"PK[\3\5][\4\6]", _UNPACK),
    ("a 7z archive (binary)", rb"7z\xbc\xaf\x27\x1c", _UNPACK),
    ("a rar archive (binary)", rb"Rar!\x1a\x07", _UNPACK),
    ("a tar archive (binary)", rb"(?s).{257}ustar", _UNPACK),
    ("text in UTF-32", rb"\xff\xfe\0\0|\0\0\xfe\xff", "convert it with iconv -f UTF-32 -t UTF-8"),
    ("text in UTF-16", rb"\xff\xfe|\xfe\xff", "convert it with iconv -f UTF-16 -t UTF-8"),
    ("a Parquet file", rb"PAR1[\0-\x1f]", None),
    ("an encrypted Parquet file", rb"PARE[\0-\x1f]", "write it without encryption"),
    ("an Arrow file", rb"ARROW1\0\0", None),
    ("an Arrow stream", rb"(?s)\xff{4}.{3}\0\x10\0\0\0", None),
    ("an Avro file", rb"Obj\x01", None),
    ("an ORC file", rb"ORC[\0-\x08\x0e-\x1f]", None),
    ("an SQLite database", rb"SQLite format 3\0", None),
    ("an HDF5 file", rb"\x89HDF\r\n", None),
    ("a NumPy array", rb"\x93NUMPY", None),
    ("a pickle of Python", rb"\x80[\x02-\x05]", None),
    ("a fastText model", rb"\xba\x16\x4f\x2f", "name the .vec file that fastText wrote beside it"),
    ("a GGUF model", rb"GGUF[\0-\x1f]", None),
    ("a PDF file", rb"%PDF-\d", None),
    (
        "a pointer of Git LFS to a file that is not here",
        rb"version https://git-lfs\.github\.com/spec/",
        "fetch the file with git lfs pull",
    ),
    ("a pointer of git-annex to a file that is not here", rb"/annex/objects/", "fetch the file with git annex get"),
)
"""Names of kinds of files, what they begin with, and what to do, where this does not depend on who asks."""
_PATTERNS = tuple((name, re.compile(pattern), remedy) for name, pattern, remedy in _KINDS)


def kind_of(head: bytes) -> tuple[str, str | None] | None:
    """The name of what begins with ``head``, and what to do with it; None for everything that has no name here."""
    return next(((name, remedy) for name, pattern, remedy in _PATTERNS if pattern.match(head)), None)
