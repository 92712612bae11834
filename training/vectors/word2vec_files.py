"""Reads word2vec's text and binary formats, as gensim, word2vec.c and fastText write them.

Both begin with a line of V and D. In text, a line with D numbers follows for each word; in binary, the word, a blank
and D float32, with or without a line end. export_formats.py writes both formats; benchmarks/word2vec_files.py compares
the reading speed with gensim's.

V words, D dimensions.
"""

import mmap
import re
from collections import Counter
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors

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


def read(file: Path) -> tuple[list[str], Float32]:
    """The words and their vectors (V + 1, D); row 0, which is not in the file, is <unk> and zero.

    Memory depends on the file's size, not on what its first line claims. Raises InputError.
    """
    with os_errors(f"{file}: cannot be read", "name another file"), file.open("rb") as opened:
        line = opened.readline(HEADER_BYTES)
        found = re.fullmatch(rb"([1-9][0-9]*) +([1-9][0-9]*) *\r?\n", line)
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
                words, center_VD = _read_text(file, content, len(line), num_words, dim)
            else:
                words, center_VD = _read_binary(file, content, len(line), num_words, dim)
    if len(set(words)) < len(words):
        first = next(word for word, count in Counter(words).items() if count > 1)
        raise InputError(f"{file}: found the word {first!r:.40} twice, expected different ones; leave one out")
    return ["<unk>", *words], center_VD


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


def _read_text(file: Path, content: mmap.mmap, begin: int, num_words: int, dim: int) -> tuple[list[str], Float32]:
    from pyarrow import csv

    end = content.find(b"\n", begin)
    first = content[begin : end if end >= 0 else len(content)].rstrip(b"\r")
    num_fields = first.count(b" ") + 1
    if num_fields - first.endswith(b" ") != dim + 1:  # before D columns are made; word2vec.c ends lines with a blank
        _refuse_text(file, content, begin, num_words, dim)
    names = [str(number) for number in range(num_fields)]
    types = {"0": pa.string(), **dict.fromkeys(names[1:], pa.float32())}
    try:
        table = csv.read_csv(
            pa.OSFile(str(file)),
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
        try:
            word = fields[0].decode()
        except UnicodeDecodeError:
            raise InputError(f"{where}: found bytes that are not UTF-8; convert the file to UTF-8") from None
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


def _read_binary(file: Path, content: mmap.mmap, begin: int, num_words: int, dim: int) -> tuple[list[str], Float32]:
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
        try:
            words.append(content[at:blank].decode())
        except UnicodeDecodeError:
            raise InputError(
                f"{file}: found bytes that are not UTF-8 as word {number:,}, expected a word and {dim:,} float32; "
                "write it again"
            ) from None
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
        raise InputError(
            f"{file}: found a value that is not finite in word {number:,}, {words[number - 1]!r:.40}, expected "
            "float32; write it again"
        )
    return words, center_VD
