"""The tokeniser. Counting and sampling share it, so they cannot disagree.

``whitespace`` splits on Unicode white space, exactly as Python's ``str.split()``. ``words`` keeps runs of Unicode
letters, marks, numbers and underscores, with apostrophes inside them ("don't"; U+2019 becomes "'"); everything else
separates words. Lower-casing is Unicode's, one code point at a time. An array is a sequence and is not tokenised.

Before that, bytes that are not UTF-8 and zero bytes become U+FFFD, and a byte order mark at the beginning of a line,
where a file begins that was appended to others, is dropped.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.vocab import UNKNOWN
from pipeline.pipeline_config import PipelineConfig

CHUNK_BYTES = 2 << 20
"""Bytes of text to split at once: few enough for the processor's cache, and for a worker with little memory."""

CHUNK_TOKENS = CHUNK_BYTES // 4

MAX_WORD_BYTES = 4096
"""A longer token is probably an error, such as a file without white space; it becomes <unk>."""


_NO_WORD = r"[^\p{L}\p{M}\p{N}_']+"
_ASCII_SPACE = re.compile(rb"[\t-\r\x1c-\x20]")
_REPLACEMENT = "\ufffd"
_BYTE_ORDER_MARK = "\ufeff"


@dataclass(frozen=True)
class Tokenized:
    """Sequences end to end: ``words`` (sum of ``lengths``) and ``lengths``, each >= 1; and counts for the manifest."""

    words: pa.StringArray = field(default_factory=lambda: pa.array([], pa.string()))
    lengths: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    num_lines: int = 0
    num_nulls: int = 0
    """Rows without a value, and null or empty elements of arrays."""
    num_invalid_utf8: int = 0
    """Rows with bytes that are not UTF-8, or with zero bytes."""
    num_cut: int = 0
    """Rows of more than max_sentence_length tokens."""
    num_too_short: int = 0
    """Sequences with fewer than two tokens, including blank lines. Their words are counted, but give no example."""
    num_long_tokens: int = 0


def tokenized(column: pa.Array, config: PipelineConfig) -> Iterator[Tokenized]:
    """The sequences of lines or of token lists (both string or binary), cut at max_sentence_length.

    Yields chunks of a few MB, however many or long the lines are. Bytes that are no text become U+FFFD, and their
    lines are counted; nulls are skipped and counted.
    """
    values = column.drop_null()
    num_nulls = len(column) - len(values)
    if num_nulls:
        yield Tokenized(num_lines=num_nulls, num_nulls=num_nulls)
    if pa.types.is_list(values.type):
        yield from _from_lists(values, config)
    else:
        yield from _from_lines(values.cast(pa.binary()), config)  # no copy; a string may be invalid UTF-8


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
    text, mended = _decode(lines)
    if pc.any(pc.starts_with(text, _BYTE_ORDER_MARK)).as_py():
        text = pc.utf8_ltrim(text, _BYTE_ORDER_MARK)
    words, raw_lengths = _split(text, config)
    words, num_long = _without_long(words)
    lengths = _cut(raw_lengths, config.max_sentence_length)
    return Tokenized(
        words=words,
        lengths=lengths[lengths > 0],
        num_lines=len(lines),
        num_invalid_utf8=int(mended.sum()),
        num_cut=int((raw_lengths > config.max_sentence_length).sum()),
        num_too_short=int((lengths < 2).sum()),
        num_long_tokens=num_long,
    )


def _of_long_line(line: memoryview, config: PipelineConfig) -> Iterator[Tokenized]:
    """Splits a line of any length, a stretch at a time. Tokens that do not fill a sequence move to the next stretch."""
    carry = pa.array([], pa.string())
    is_mended, num_tokens, start = False, 0, 0
    while bytes(line[start : start + 3]) == _BYTE_ORDER_MARK.encode():
        start += 3
    while start < len(line):
        found = _ASCII_SPACE.search(line, min(start + CHUNK_BYTES, len(line)))
        stop = found.start() if found else len(line)
        text, mended = _decode(pa.array([line[start:stop].tobytes()], pa.binary()))
        words, _ = _split(text, config)
        words, num_long = _without_long(words)
        is_mended |= bool(mended.any())
        num_tokens += len(words)
        words = pa.concat_arrays([carry, words])
        complete = len(words) - (len(words) % config.max_sentence_length if stop < len(line) else 0)
        yield Tokenized(
            words=words[:complete],
            lengths=_cut(np.array([complete]), config.max_sentence_length) if complete else np.zeros(0, np.int64),
            num_too_short=int(complete % config.max_sentence_length == 1),
            num_long_tokens=num_long,
        )
        carry, start = words[complete:], stop
    yield Tokenized(
        num_lines=1,
        num_invalid_utf8=int(is_mended),
        num_cut=int(num_tokens > config.max_sentence_length),
        num_too_short=int(num_tokens == 0),
    )


def _from_lists(lists: pa.ListArray, config: PipelineConfig) -> Iterator[Tokenized]:
    words, mended = _decode(lists.flatten().cast(pa.binary()))
    raw_lengths = pc.list_value_length(lists).to_numpy(zero_copy_only=False).astype(np.int64)
    num_invalid = int(np.count_nonzero(num_set(mended, raw_lengths))) if mended.any() else 0
    if config.lowercase:
        words = pc.utf8_lower(words)
    is_word = pc.fill_null(pc.greater(pc.binary_length(words), 0), False).to_numpy(zero_copy_only=False)
    num_nulls = int(is_word.size - is_word.sum())
    if num_nulls:
        raw_lengths = num_set(is_word, raw_lengths)
        words = words.filter(pa.array(is_word))
    words, num_long = _without_long(words)
    lengths = _cut(raw_lengths, config.max_sentence_length)
    yield Tokenized(
        num_lines=len(lists),
        num_nulls=num_nulls,
        num_invalid_utf8=num_invalid,
        num_cut=int((raw_lengths > config.max_sentence_length).sum()),
        num_too_short=int((lengths < 2).sum()),
        num_long_tokens=num_long,
    )
    lengths = lengths[lengths > 0]
    for rows, tokens in stretches(lengths, CHUNK_TOKENS):
        yield Tokenized(words[tokens], lengths[rows])


def _decode(values: pa.BinaryArray) -> tuple[pa.StringArray, npt.NDArray[np.bool_]]:
    """The text of the values, and which of them had to be mended. Copies nothing if all are valid."""
    mended = np.zeros(len(values), dtype=bool)
    try:
        text = values.cast(pa.string())
    except pa.ArrowInvalid:
        raw = values.to_pylist()
        decoded = [value and value.decode("utf-8", errors="replace") for value in raw]
        mended |= [value != (found and found.encode()) for value, found in zip(raw, decoded, strict=True)]
        text = pa.array([None if found is None else found or "" for found in decoded], pa.string())
    if _has_zero_bytes(values):
        mended |= pc.fill_null(pc.match_substring(text, "\0"), False).to_numpy(zero_copy_only=False)
        text = pc.replace_substring(text, "\0", _REPLACEMENT)
    return text, mended


def _has_zero_bytes(values: pa.BinaryArray) -> bool:
    _, offsets_buffer, data = values.buffers()
    if data is None or len(values) == 0:
        return False
    offsets = np.frombuffer(offsets_buffer, np.int32)[values.offset : values.offset + len(values) + 1]
    return int(np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]].min(initial=1)) == 0


def _split(text: pa.StringArray, config: PipelineConfig) -> tuple[pa.StringArray, npt.NDArray[np.int64]]:
    """The words of all lines end to end, and the number of words in each line (0 for a blank line)."""
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
    if empty.any():  # Arrow splits "" into one empty word; a word of apostrophes alone is empty now
        lengths = lengths - num_set(empty, lengths)
        words = words.filter(pa.array(~empty))
    return words, lengths


def _without_long(words: pa.StringArray) -> tuple[pa.StringArray, int]:
    is_long = pc.greater(pc.binary_length(words), MAX_WORD_BYTES)
    num_long = pc.sum(is_long).as_py() or 0
    return (pc.if_else(is_long, UNKNOWN, words), num_long) if num_long else (words, 0)


def _cut(lengths: npt.NDArray[np.int64], max_length: int) -> npt.NDArray[np.int64]:
    """Lengths of the pieces: ``max_length``, except for the last piece of a line. A blank line is one piece of 0."""
    if lengths.size == 0 or lengths.max() <= max_length:
        return lengths
    num_pieces = np.maximum(1, -(-lengths // max_length))
    pieces = np.full(num_pieces.sum(), max_length, dtype=np.int64)
    last = np.cumsum(num_pieces) - 1
    pieces[last] = lengths - (num_pieces - 1) * max_length
    return pieces


def num_set(flags: npt.NDArray[np.bool_], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of flags (one per token) that are set in each sequence; sequences lie end to end. int64."""
    running = np.concatenate([[0], np.cumsum(flags)])
    ends = np.cumsum(lengths)
    return np.asarray(running[ends] - running[ends - lengths])


def stretches(lengths: npt.NDArray[np.int64], max_tokens: int) -> Iterator[tuple[slice, slice]]:
    """Stretches of whole sequences that lie end to end: (slice of the sequences, slice of the tokens).

    A stretch has at most ``max_tokens`` tokens, or one sequence.
    """
    ends = np.cumsum(lengths)
    row, token = 0, 0
    while row < lengths.size:
        stop = max(row + 1, int(np.searchsorted(ends, token + max_tokens, side="right")))
        yield slice(row, stop), slice(token, int(ends[stop - 1]))
        row, token = stop, int(ends[stop - 1])
