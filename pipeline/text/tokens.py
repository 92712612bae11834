"""The one tokeniser. Counting and sampling both call it, so that they cannot disagree.

``whitespace`` splits on Unicode white space, exactly as Python's ``str.split()``. ``words`` keeps runs of Unicode
letters, marks, numbers and underscores, with apostrophes inside them ("don't"; U+2019 counts as one and becomes "'");
all else separates. Lower-casing, if asked for, is Unicode's, one code point at a time. An array is a sequence as it is.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.vocab import UNKNOWN
from pipeline.pipeline_config import PipelineConfig

CHUNK_BYTES = 2 << 20
"""Text that is split at once: what it takes in between stays in the processor's cache, and off the worker's memory."""

CHUNK_TOKENS = CHUNK_BYTES // 4

MAX_WORD_BYTES = 4096
"""A longer token is no word but a slip (a file without white space, say) and becomes <unk>, in its place."""


_NO_WORD = r"[^\p{L}\p{M}\p{N}_']+"
_ASCII_SPACE = re.compile(rb"[\t-\r\x1c-\x20]")


@dataclass(frozen=True)
class Tokenized:
    """Sequences end to end: ``words`` (sum of ``lengths``) and ``lengths``, each >= 1; and what was met on the way."""

    words: pa.StringArray
    lengths: npt.NDArray[np.int64]
    num_lines: int = 0
    num_nulls: int = 0
    """Rows without a value, and null or empty elements of arrays."""
    num_invalid_utf8: int = 0
    num_too_short: int = 0
    """Sequences with fewer than two tokens, blank lines among them: counted as words, but of no use as examples."""
    num_long_tokens: int = 0


def tokenized(column: pa.Array, config: PipelineConfig) -> Iterator[Tokenized]:
    """The sequences of lines (string or binary) or of token lists (list of strings), cut as ``config`` says.

    Comes in chunks of a few MB, however many or long the lines are. Bytes that are not UTF-8 are decoded with U+FFFD
    in their place, and their lines counted; nulls are skipped and counted.
    """
    values = column.drop_null()
    num_nulls = len(column) - len(values)
    if num_nulls:
        yield Tokenized(_no_words(), np.zeros(0, np.int64), num_lines=num_nulls, num_nulls=num_nulls)
    if pa.types.is_list(values.type):
        yield from _from_lists(values, config)
    else:
        yield from _from_lines(values.cast(pa.binary()), config)  # no copy; a string may be no UTF-8


def _from_lines(lines: pa.BinaryArray, config: PipelineConfig) -> Iterator[Tokenized]:
    _, offsets_buffer, data = lines.buffers()
    offsets = np.frombuffer(offsets_buffer, np.int32)[lines.offset : lines.offset + len(lines) + 1].astype(np.int64)
    row = 0
    while row < len(lines):
        stop = int(np.searchsorted(offsets, offsets[row] + CHUNK_BYTES, side="right")) - 1
        if stop > row:
            yield _of_chunk(lines[row:stop], config)
        else:
            stop = row + 1
            yield from _of_long_line(memoryview(data)[offsets[row] : offsets[stop]], config)
        row = stop


def _of_chunk(lines: pa.BinaryArray, config: PipelineConfig) -> Tokenized:
    text, num_invalid = _decode(lines)
    words, raw_lengths = _split(text, config)
    words, num_long = _without_long(words)
    lengths = _cut(raw_lengths, config.max_sentence_length)
    return Tokenized(
        words=words,
        lengths=lengths[lengths > 0],
        num_lines=len(lines),
        num_invalid_utf8=num_invalid,
        num_too_short=int((lengths < 2).sum()),
        num_long_tokens=num_long,
    )


def _of_long_line(line: memoryview, config: PipelineConfig) -> Iterator[Tokenized]:
    """A line of any length, cut at white space; what does not fill a sequence yet goes on with the next stretch."""
    carry = _no_words()
    num_invalid, num_tokens, start = 0, 0, 0
    while start < len(line):
        found = _ASCII_SPACE.search(line, min(start + CHUNK_BYTES, len(line)))
        stop = found.start() if found else len(line)
        text, invalid = _decode(pa.array([line[start:stop].tobytes()], pa.binary()))
        words, _ = _split(text, config)
        words, num_long = _without_long(words)
        num_invalid |= invalid
        num_tokens += len(words)
        words = pa.concat_arrays([carry, words])
        whole = len(words) - (len(words) % config.max_sentence_length if stop < len(line) else 0)
        yield Tokenized(
            words=words[:whole],
            lengths=_cut(np.array([whole]), config.max_sentence_length) if whole else np.zeros(0, np.int64),
            num_too_short=int(whole % config.max_sentence_length == 1),
            num_long_tokens=num_long,
        )
        carry, start = words[whole:], stop
    yield Tokenized(
        _no_words(),
        np.zeros(0, np.int64),
        num_lines=1,
        num_invalid_utf8=num_invalid,
        num_too_short=int(num_tokens == 0),
    )


def _from_lists(lists: pa.ListArray, config: PipelineConfig) -> Iterator[Tokenized]:
    words = lists.flatten()
    raw_lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    if config.lowercase:
        words = pc.utf8_lower(words)
    there = pc.fill_null(pc.greater(pc.binary_length(words), 0), False).to_numpy(zero_copy_only=False)
    num_nulls = int(there.size - there.sum())
    if num_nulls:
        raw_lengths = num_set(there, raw_lengths)
        words = words.filter(pa.array(there))
    words, num_long = _without_long(words)
    lengths = _cut(raw_lengths, config.max_sentence_length)
    yield Tokenized(
        _no_words(),
        np.zeros(0, np.int64),
        num_lines=len(lists),
        num_nulls=num_nulls,
        num_too_short=int((lengths < 2).sum()),
        num_long_tokens=num_long,
    )
    lengths = lengths[lengths > 0]
    for rows, tokens in stretches(lengths, CHUNK_TOKENS):
        yield Tokenized(words[tokens], lengths[rows])


def _decode(lines: pa.BinaryArray) -> tuple[pa.StringArray, int]:
    """Text of UTF-8 lines without a copy, as is usual; else line by line, with the number of lines mended."""
    try:
        return lines.cast(pa.string()), 0
    except pa.ArrowInvalid:
        raw = lines.to_pylist()
        text = [line.decode("utf-8", errors="replace") for line in raw]
        num_invalid = sum(line != mended.encode() for line, mended in zip(raw, text, strict=True))
        return pa.array(text, pa.string()), num_invalid


def _split(text: pa.StringArray, config: PipelineConfig) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """Words end to end, and how many of them each line has (0 for a blank one)."""
    if config.lowercase:
        text = pc.utf8_lower(text)
    if config.tokenizer == "words":
        text = pc.replace_substring(text, "\u2019", "'")
        text = pc.replace_substring_regex(text, _NO_WORD, " ")
    lists = pc.utf8_split_whitespace(pc.utf8_trim_whitespace(text))
    lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    words = lists.flatten()
    if config.tokenizer == "words":
        words = pc.utf8_trim(words, "'")
    empty = pc.equal(pc.binary_length(words), 0).to_numpy(zero_copy_only=False)
    if empty.any():  # Arrow splits "" into one empty word, and nothing may be left of a word of apostrophes
        lengths = lengths - num_set(empty, lengths)
        words = words.filter(pa.array(~empty))
    return words, lengths


def _without_long(words: pa.StringArray) -> tuple[pa.StringArray, int]:
    is_long = pc.greater(pc.binary_length(words), MAX_WORD_BYTES)
    num_long = pc.sum(is_long).as_py() or 0
    return (pc.if_else(is_long, UNKNOWN, words), num_long) if num_long else (words, 0)


def _cut(lengths: npt.NDArray[np.int64], max_length: int) -> npt.NDArray[np.int64]:
    """Lengths of the pieces: each ``max_length`` but the last of a line. A blank line stays one piece of 0."""
    if lengths.size == 0 or lengths.max() <= max_length:
        return lengths
    num_pieces = np.maximum(1, -(-lengths // max_length))
    pieces = np.full(num_pieces.sum(), max_length, dtype=np.int64)
    last = np.cumsum(num_pieces) - 1
    pieces[last] = lengths - (num_pieces - 1) * max_length
    return pieces


def num_set(flags: npt.NDArray[np.bool_], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """How many flags, one a token, are set in each of the sequences that lie end to end; int64, as ``lengths``."""
    running = np.concatenate([[0], np.cumsum(flags)])
    ends = np.cumsum(lengths)
    return np.asarray(running[ends] - running[ends - lengths])


def stretches(lengths: npt.NDArray[np.int64], max_tokens: int) -> Iterator[tuple[slice, slice]]:
    """Sequences that lie end to end, cut between them: which sequences, and which tokens, of each stretch.

    A stretch has ``max_tokens`` tokens at most, or one sequence.
    """
    ends = np.cumsum(lengths)
    row, token = 0, 0
    while row < lengths.size:
        stop = max(row + 1, int(np.searchsorted(ends, token + max_tokens, side="right")))
        yield slice(row, stop), slice(token, int(ends[stop - 1]))
        row, token = stop, int(ends[stop - 1])


def _no_words() -> pa.StringArray:
    return pa.array([], pa.string())
