"""Corpora of text as other people have them."""

import bz2
import gzip
import io
import lzma
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
from corpora.kinds import File, Input, Read, Refused

BOM = b"\xef\xbb\xbf"
FILLING = b"c d\n" * 20_000
"""80 kB, more than what is looked at of a file's beginning."""
FILLED = ("c d",) * 20_000


def zstandard(content: bytes) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return bytes(sink.getvalue())


def archive(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("x.txt", content)
    return buffer.getvalue()


def tape(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        entry = tarfile.TarInfo("x.txt")
        entry.size = len(content)
        file.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def link_to(name: str) -> File:
    return lambda path: path.symlink_to(name)


def hard_link_to(name: str) -> File:
    return lambda path: path.hardlink_to(path.with_name(name))


def unix_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # the path of a socket has 107 bytes at most
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(before)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
DVC = b"outs:\n- md5: a304afb96060aad90176268345e10355\n  size: 14\n  path: x.txt\n"

TEXTS: dict[str, Input] = {
    "no line end at the end": Read({"x": b"a b\nc d"}, expected=("a b", "c d")),
    "all line ends": Read({"x": b"a b\r\nc d\re f\n\n"}, expected=("a b", "c d", "e f"), counts={"too_short": 1}),
    "separators of Unicode end no line": Read({"x": "a\u2028b\x85c\x0bd\x0ce\n".encode()}, expected=("a b c d e",)),
    "byte order mark": Read({"x": BOM + b"a b\n"}, expected=("a b",)),
    "byte order marks of joined files": Read(
        {"x": b"a b\n" + BOM + b"c d\n" + BOM + BOM + b"e"}, expected=("a b", "c d", "e"), counts={"too_short": 1}
    ),
    "byte order mark alone": Read({"x": BOM + b"\na b"}, expected=("a b",), counts={"too_short": 1}),
    "byte order mark inside a line": Read({"x": "a\ufeffb c".encode()}, expected=("a\ufeffb c",)),
    "latin-1": Read({"x": b"caf\xe9 b\n"}, expected=("caf\ufffd b",), counts={"invalid_utf8_lines": 1}),
    "half a character": Read(
        {"x": b"a\xed\xa0\x80 b\n"}, expected=("a\ufffd\ufffd\ufffd b",), counts={"invalid_utf8_lines": 1}
    ),
    "zero byte near the beginning": Read(
        {"x": b"a\0b c\n" + FILLING}, expected=("a\ufffdb c", *FILLED), counts={"invalid_utf8_lines": 1}
    ),
    "zero byte far from it": Read(
        {"x": FILLING + b"a\0b c\n"}, expected=("a\ufffdb c", *FILLED), counts={"invalid_utf8_lines": 1}
    ),
    "cut": Read(
        {"x": b"a b c d e\n"},
        config={"max_sentence_length": 2},
        expected=("a b", "c d", "e"),
        counts={"cut": 1, "too_short": 1},
    ),
    "two gzips in one": Read({"x.gz": gzip.compress(b"a b\n") + gzip.compress(b"c d\n")}, expected=("a b", "c d")),
    "two bz2s in one": Read({"x.bz2": bz2.compress(b"a b\n") + bz2.compress(b"c d\n")}, expected=("a b", "c d")),
    "two zstds in one": Read({"x.zst": zstandard(b"a b\n") + zstandard(b"c d\n")}, expected=("a b", "c d")),
    "empty gzip beside text": Read({"a.gz": gzip.compress(b""), "b": b"a b\n"}, expected=("a b",)),
    "an empty file beside text, by name": Read({"a": b"", "b": b"a b\n"}, ("a", "b"), expected=("a b",)),
    "an empty file beside text, in a folder": Read({"a": b"", "b": b"a b\n"}, expected=("a b",)),
    "hidden files": Read({".a": b"x y", "_b": b"x y", "c": b"a b"}, expected=("a b",)),
    "hidden files and a pattern": Read(
        {"out/_SUCCESS": b"", "out/.x.crc": b"\0", "out/part-0": b"a b"}, ("out/*",), expected=("a b",)
    ),
    "folders below": Read({"a/x": b"a b", "b/y": b"c d"}, ("*",), expected=("a b", "c d")),
    "folders at any depth": Read(
        {"a/b/c/x.txt": b"a b", "x.txt": b"c d", "a/_tmp/y.txt": b"x y"}, ("**/*.txt",), expected=("a b", "c d")
    ),
    "all folders": Read({"a/b/x": b"a b", "c": b"c d", "_t/z": b"x y"}, ("**",), expected=("a b", "c d")),
    "an empty folder that a pattern matches": Read(
        {"a/x": b"a b", "b": lambda path: path.mkdir()}, ("*",), expected=("a b",)
    ),
    "a name with a no-break space": Read({"x\u00a0y\u2003z.txt": b"a b"}, expected=("a b",)),
    "a name as a percent-encoded URI": Read({"a b%20#?c": b"a b"}, ("file://{}/a%20b%2520%23%3Fc",), expected=("a b",)),
    "a URI with one slash": Read({"x": b"a b"}, ("file:{}/x",), expected=("a b",)),
    "a URI of this host": Read({"x": b"a b"}, ("FILE://localhost{}/x",), expected=("a b",)),
    "a file named twice": Read({"x": b"a b", "y": b"c d"}, ("x", "x", "*"), expected=("a b", "c d")),
    "a file named by a link too": Read({"x": b"a b", "y": link_to("x")}, expected=("a b",)),
    "a file with two names": Read({"x": b"a b", "y": hard_link_to("x")}, expected=("a b",)),
    "a link to a folder": Read({"f/x": b"a b", "y": link_to("f")}, ("y",), expected=("a b",)),
    "the folder above a link": Read(
        {"other/below/y": b"x y", "other/x": b"a b", "a/x": b"x y", "a/link": link_to("../other/below")},
        ("a/link/../x",),
        expected=("a b",),
    ),
    "links in circles": Read({"x": b"a b", "1": link_to("."), "2": link_to(".")}, ("**/x",), expected=("a b",)),
    "metadata that is no table's": Read({"metadata/x.metadata.json": b"{}", "t/x": b"a b"}, ("t",), expected=("a b",)),
    "zstd of several threads": Read(
        {"x.zst": b"\x50\x2a\x4d\x18\x04\0\0\0\1\2\3\4" + zstandard(b"a b\n")}, expected=("a b",)
    ),
    "what reads like a kind of file": Read({"x": b"PK zip\nBZh9 ORC\n"}, expected=("PK zip", "BZh9 ORC")),
    # Refused
    "UTF-16": Refused({"x": "a b\n".encode("utf-16")}, words=("UTF-16", "iconv")),
    "UTF-32": Refused({"x": "a b\n".encode("utf-32")}, words=("UTF-32", "iconv")),
    "UTF-16 without a mark": Refused({"x": "a b\n".encode("utf-16-le")}, words=("binary",)),
    "UTF-16 in gzip": Refused({"x.gz": gzip.compress("a b\n".encode("utf-16"))}, words=("UTF-16", "iconv")),
    "gzip by no name": Refused({"x": gzip.compress(b"a b\n")}, words=("gzip", ".gz")),
    "gzip in capitals": Refused({"x.GZ": gzip.compress(b"a b\n")}, words=("gzip", ".gz")),
    "gzip in gzip": Refused({"x.gz": gzip.compress(gzip.compress(b"a b\n"))}, words=("gzip",)),
    "xz": Refused({"x.xz": lzma.compress(b"a b\n")}, words=("xz", "xz -d")),
    "xz by the name of gzip": Refused({"x.gz": lzma.compress(b"a b\n")}, words=("xz", "gzip")),
    "text by the name of zstd": Refused({"x.zst": b"a b\n"}, words=("zstd", "cannot be read")),
    "bz2 by no name": Refused({"x": bz2.compress(b"a b\n")}, words=("bz2",)),
    "zstd by no name": Refused({"x.zstd": zstandard(b"a b\n")}, words=("zstd", ".zst")),
    "zip": Refused({"x.zip": archive(b"a b\n")}, words=("zip archive", "unpack")),
    "tar": Refused({"x.tar.gz": tape(b"a b\n")}, words=("tar archive",)),
    "Parquet": Refused({"x": b"PAR1\x15\x04" + bytes(50)}, words=("Parquet", "--format parquet")),
    "pointer of Git LFS": Refused({"a": b"a b\n", "x": LFS}, words=("Git LFS", "git lfs pull")),
    "pointer of DVC": Refused({"x.txt": b"a b", "x.txt.dvc": DVC}, words=("DVC",)),
    "pointer of git-annex": Refused({"x": b"/annex/objects/SHA256E-s3--9f.txt\n"}, words=("git-annex",)),
    "dangling link": Refused(
        {"a": b"a b", "x": link_to("../.git/annex/objects/9f")}, words=("link", "annex/objects/9f", "not there")
    ),
    "dangling link that a pattern matches": Refused(
        {"a": b"a b", "x": link_to("nowhere")}, ("*",), words=("link", "nowhere")
    ),
    "links in a circle": Refused({"x": link_to("y"), "y": link_to("x")}, ("x",), words=("cannot be read",)),
    "pipe": Refused({"a": b"a b", "x": os.mkfifo}, ("*",), words=("pipe", "write it to a file")),
    "pipe in a folder": Refused({"a": b"a b", "x": os.mkfifo}, words=("pipe",)),
    "socket": Refused({"a": b"a b", "x": unix_socket}, words=("socket",)),
    "empty": Refused({"a": b"", "b": b""}, ("a", "b"), words=("empty",)),
    "nothing but hidden files": Refused({"out/_SUCCESS": b""}, ("out/*",), words=("not found",)),
    "a host in a file URI": Refused({"x": b"a b"}, ("file://elsewhere{}/x",), words=("elsewhere",)),
    "a query in a file URI": Refused({"x": b"a b"}, ("file://{}/x?y=1",), words=("?", "%3F")),
    "a fragment in a file URI": Refused({"x": b"a b"}, ("file://{}/x#y",), words=("#", "%23")),
    "a web address": Refused({}, ("https://example.com/x.txt",), words=("https", "download")),
    "a Delta table": Refused({"t/_delta_log/0.json": b"{}", "t/x.parquet": b""}, ("t",), words=("Delta",)),
    "output of a stream": Refused(
        {"t/_spark_metadata/0": b"v1", "t/part-0": b"a b"}, ("t/*",), words=("Spark stream",)
    ),
}
