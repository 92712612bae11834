"""Reads word2vec's text and binary formats, as gensim, word2vec.c and fastText write them.

Both begin with a line of V and D. In text, a line with D numbers follows for each word; in binary, the word, a blank
and D float32, with or without a line end. A byte order mark is skipped. A file may be compressed with gzip, bzip2, xz
or zstd. export_formats.py writes both formats; benchmarks/word2vec_files.py compares the reading speed with gensim's.

word2vec.c cuts a long word after so many bytes, which may be inside a letter: such a word is not UTF-8.

V words, D dimensions.
"""

import mmap
import re
from collections import Counter
from pathlib import Path
from typing import IO, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.shared.errors import InputError, tell
from pipeline.shared.files import os_errors
from training.vectors import foreign_files

Float32 = npt.NDArray[np.float32]

HEADER_BYTES = 64
"""The first line is at most this long."""

MAX_DIM = 1 << 14
"""More dimensions than word vectors have. Text is read column by column, and a column takes kilobytes."""

HEAD_BYTES = 1 << 16
"""How many bytes are read to tell text from binary."""

OF_NUMBERS = b"0123456789+-.eEinfatyINFATY \t\r"
OF_BINARY = bytes({*range(32)} - set(b"\t\n\v\f\r"))
"""Bytes that do not occur in text."""


def read(file: Path, strict: bool = False) -> tuple[list[str], Float32]:
    """The words and their vectors (V + 1, D); row 0, which is not in the file, is <unk> and zero.

    In a word that is not UTF-8, U+FFFD replaces what is none. A line on stderr counts such words; ``strict`` refuses
    them. Memory depends on the file's size, not on what its first line claims. Raises InputError.
    """
    with os_errors(f"{file}: cannot be read", "name another file"), foreign_files.opened_whole(file) as opened:
        raw, center_VD = _read(file, opened)
    return ["<unk>", *_decoded(file, raw, strict)], center_VD


def _read(file: Path, opened: IO[bytes]) -> tuple[list[bytes], Float32]:
    """The words as bytes, and the vectors. Errors name ``file``."""
    foreign_files.refuse_foreign(file, opened.read(foreign_files.HEAD_BYTES))
    opened.seek(0)
    line = opened.readline(HEADER_BYTES)
    found = re.fullmatch(rb"(?:\xef\xbb\xbf)?([1-9][0-9]*) +([1-9][0-9]*) *\r?\n", line)
    if not found:
        raise InputError(
            f"{file}:1: found {line.decode(errors='replace').rstrip()!r:.40} as the first line, expected how many "
            "words and dimensions there are, as in '70000 100', or a .safetensors file; put that line before the "
            "others, or name another file"
        )
    num_words, dim = int(found[1]), int(found[2])
    if dim > MAX_DIM:
        raise InputError(f"{file}:1: found {dim:,} dimensions, expected {MAX_DIM:,} or fewer; name another file")
    with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        if _is_text(content[len(line) : len(line) + HEAD_BYTES]):
            return _read_text(file, opened.name, content, len(line), num_words, dim)
        return _read_binary(file, content, len(line), num_words, dim)


def _decoded(file: Path, raw: list[bytes], strict: bool) -> list[str]:
    """The words, which stay different: of those that U+FFFD makes equal, all but the first keep their bytes as \\xNN.

    Raises InputError for a word that is there twice, and, if ``strict``, for one that is not UTF-8.
    """
    words = [word.decode(errors="replace") for word in raw]
    cut = {row: None for row, word in enumerate(words) if "\ufffd" in word and word.encode() != raw[row]}
    known = {word for row, word in enumerate(words) if row not in cut}
    num_equal = 0
    for row in cut:
        if words[row] in known:
            words[row] = raw[row].decode(errors="backslashreplace")
            num_equal += 1
        known.add(words[row])
    if len(known) < len(words) or len({raw[row] for row in cut}) < len(cut):
        counts = Counter(raw) if len({*raw}) < len(raw) else Counter(map(str.encode, words))
        twice = next(word for word, count in counts.items() if count > 1).decode(errors="replace")
        found = f"the word {twice!r:.40} twice"
        raise InputError(f"{file}: found {found}, expected different ones; leave one out")
    if cut:
        row = min(cut)
        found = f"bytes that are not UTF-8 in {len(cut):,} of {len(words):,} words"
        where = f"the first is word {row + 1:,}, {words[row]!r:.60}"
        if strict:
            raise InputError(f"{file}: found {found} ({where}), expected UTF-8; write it again, or leave --strict out")
        if len(b"".join(raw[row] for row in cut).translate(None, OF_BINARY)) < sum(len(raw[row]) for row in cut):
            raise InputError(f"{file}: found {found} ({where}), and control characters; write it again")
        equal = f"; {num_equal:,} of them, which would then equal another, keep theirs as \\xNN" if num_equal else ""
        tell(f"warning: {file}: found {found} ({where}); U+FFFD replaces them{equal}; --strict refuses such a file")
    return words


def _is_text(head: bytes) -> bool:
    """Whether the file is text, possibly damaged, and not binary; ``head`` is what follows the first line."""
    numbers = head.partition(b"\n")[0].partition(b" ")[2]
    if numbers and not numbers.translate(None, OF_NUMBERS):
        return True
    if len(head.translate(None, OF_BINARY)) < len(head):
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.end >= len(head) - 3  # a character that the end of ``head`` cuts
    return True


# Text


def _read_text(
    file: Path, path: str, content: mmap.mmap, begin: int, num_words: int, dim: int
) -> tuple[list[bytes], Float32]:
    from pyarrow import csv

    end = content.find(b"\n", begin)
    first = content[begin : end if end >= 0 else len(content)].rstrip(b"\r")
    num_fields = first.count(b" ") + 1
    if num_fields - first.endswith(b" ") != dim + 1:  # before D columns are made; word2vec.c ends lines with a blank
        _refuse_text(file, content, begin, num_words, dim)
    names = [str(number) for number in range(num_fields)]
    types = {"0": pa.binary(), **dict.fromkeys(names[1:], pa.float32())}
    try:
        table = csv.read_csv(
            pa.OSFile(str(path)),
            csv.ReadOptions(skip_rows=1, column_names=names, block_size=max(1 << 22, 4 * len(first))),
            csv.ParseOptions(delimiter=" ", quote_char=False, escape_char=False),
            csv.ConvertOptions(column_types=types, include_columns=names[: dim + 1], null_values=[]),
        )
    except pa.ArrowException as error:
        _refuse_text(file, content, begin, num_words, dim, str(error))
    center_VD = np.zeros((len(table) + 1, dim), np.float32)
    for column in range(dim):
        center_VD[1:, column] = table[column + 1].to_numpy()
    if len(table) != num_words or not np.isfinite(center_VD).all():
        _refuse_text(file, content, begin, num_words, dim)
    return table[0].to_pylist(), center_VD


def _refuse_text(file: Path, content: mmap.mmap, begin: int, num_words: int, dim: int, otherwise: str = "") -> NoReturn:
    """Raises InputError for the first malformed line, with its number."""
    content.seek(begin)
    count = 0
    for number, line in enumerate(iter(content.readline, b""), start=2):
        fields = line.rstrip(b"\r\n").removesuffix(b" ").split(b" ")
        if fields == [b""]:
            continue
        count += 1
        where = f"{file}:{number}"
        word = fields[0].decode(errors="replace")
        if len(fields) != dim + 1:
            raise InputError(
                f"{where}: found {len(fields) - 1} numbers for {word!r:.40}, expected {dim}, as the first line says, "
                "with a blank before each; fix the line"
            )
        for field in fields[1:]:
            try:
                value = pa.scalar(field.decode(errors="replace")).cast(pa.float32()).as_py()
            except pa.ArrowInvalid:
                value = None
            if value is None or not np.isfinite(value):
                raise InputError(
                    f"{where}: found {field.decode(errors='replace')!r:.40} as a number of {word!r:.40}, expected a "
                    "finite one such as 0.25; fix the line"
                )
    if count != num_words:
        raise InputError(
            f"{file}: found {count:,} words, expected {num_words:,}, as the first line says; get the whole file, or "
            "fix that line"
        )
    raise InputError(f"{file}: cannot be read ({otherwise}); write it again")


# Binary


def _read_binary(file: Path, content: mmap.mmap, begin: int, num_words: int, dim: int) -> tuple[list[bytes], Float32]:
    num_bytes = 4 * dim
    least = num_words * (num_bytes + 2)  # a word has a letter and a blank
    if len(content) - begin < least:
        raise InputError(
            f"{file}: found {len(content) - begin:,} bytes after the first line, expected {least:,} or more for "
            f"{num_words:,} words of {dim:,} dimensions; get the whole file"
        )
    center_VD = np.zeros((num_words + 1, dim), np.float32)
    words = []
    at = begin
    for number in range(1, num_words + 1):
        while content[at : at + 1] == b"\n":
            at += 1
        blank = content.find(b" ", at)
        if blank < 0 or blank + 1 + num_bytes > len(content):
            raise InputError(
                f"{file}: found its end in word {number:,}, expected {num_words:,} words of {dim:,} dimensions; get "
                "the whole file"
            )
        words.append(content[at:blank])
        center_VD[number] = np.frombuffer(content[blank + 1 : blank + 1 + num_bytes], "<f4")
        at = blank + 1 + num_bytes
    if left := len(content[at:].strip()):
        raise InputError(
            f"{file}: found {left:,} bytes after its {num_words:,} words of {dim:,} dimensions, expected none; "
            "fix the first line, or write it again"
        )
    bad_V = ~np.isfinite(center_VD).all(axis=1)
    if bad_V.any():
        number = int(bad_V.argmax())
        word = words[number - 1].decode(errors="replace")
        raise InputError(
            f"{file}: found a value that is not finite in word {number:,}, {word!r:.40}, expected float32; write it "
            "again"
        )
    return words, center_VD
