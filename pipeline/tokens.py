"""The one tokeniser. Counting and sampling both call it, so that they cannot disagree.

A line of text is split on Unicode white space, exactly as Python's ``str.split()``; nothing is lower-cased or removed.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Tokenized:
    """The sequences of one batch of lines, end to end: ``words`` (sum of ``lengths``) and ``lengths``, each >= 1."""

    words: pa.StringArray
    lengths: npt.NDArray[np.int64]
    num_lines: int
    num_invalid_utf8: int
    num_too_short: int
    """Sequences with fewer than two tokens, blank lines among them: counted as words, but of no use as examples."""


def tokenize(lines: pa.BinaryArray, max_length: int) -> Tokenized:
    """Splits lines (raw bytes, no nulls) into words, cuts sequences after ``max_length`` tokens, drops empty ones.

    Bytes that are not UTF-8 are decoded with U+FFFD in their place, and their lines counted.
    """
    text, num_invalid = _decode(lines)
    words, raw_lengths = _split(text)
    lengths = _cut(raw_lengths, max_length)
    return Tokenized(
        words=words,
        lengths=lengths[lengths > 0],
        num_lines=len(lines),
        num_invalid_utf8=num_invalid,
        num_too_short=int((lengths < 2).sum()),
    )


def _decode(lines: pa.BinaryArray) -> tuple[pa.StringArray, int]:
    """Text of UTF-8 lines without a copy, as is usual; else line by line, with the number of lines mended."""
    try:
        return lines.cast(pa.string()), 0
    except pa.ArrowInvalid:
        raw = lines.to_pylist()
        text = [line.decode("utf-8", errors="replace") for line in raw]
        num_invalid = sum(line != mended.encode() for line, mended in zip(raw, text, strict=True))
        return pa.array(text, pa.string()), num_invalid


def _split(text: pa.StringArray) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """Words end to end, and how many of them each line has (0 for a blank one)."""
    trimmed = pc.utf8_trim_whitespace(text)
    lists = pc.utf8_split_whitespace(trimmed)
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    words = lists.flatten()
    blank = pc.equal(pc.binary_length(trimmed), 0).to_numpy(zero_copy_only=False)
    if blank.any():  # Arrow splits "" into one empty word
        words = words.filter(pc.not_equal(pc.binary_length(words), 0))
        lengths[blank] = 0
    return words, lengths


def _cut(lengths: npt.NDArray[np.int64], max_length: int) -> npt.NDArray[np.int64]:
    """Lengths of the pieces: each ``max_length`` but the last of a line. A blank line stays one piece of 0."""
    if lengths.size == 0 or lengths.max() <= max_length:
        return lengths
    num_pieces = np.maximum(1, -(-lengths // max_length))
    pieces = np.full(num_pieces.sum(), max_length, dtype=np.int64)
    last = np.cumsum(num_pieces) - 1
    pieces[last] = lengths - (num_pieces - 1) * max_length
    return pieces
