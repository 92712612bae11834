"""Laws of pipeline.tokens and pipeline.vocab."""

from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pytest

from pipeline.tokens import tokenize
from pipeline.vocab import Vocab, encode

LINES = [
    "",
    "   ",
    "one",
    "a b c",
    " leading and  double\tand\u00a0other\u3000space ",
    "\u00e9t\u00e9 \u4f60\u597d na\u00efve \u200bzero",
    "<unk> a b",
    "w " * 3000,
    "x y z x y z x",
]


def batch(lines: list[str]) -> pa.BinaryArray:
    return pa.array([line.encode() for line in lines], pa.binary())


def pieces_of(words: list[str], lengths: list[int]) -> list[list[str]]:
    ends = np.cumsum(lengths)
    return [words[end - length : end] for end, length in zip(ends, lengths, strict=True)]


@pytest.mark.parametrize("max_length", [2, 3, 1000])
@pytest.mark.parametrize("lines", [LINES, LINES[::-1], LINES[:2], []], ids=["all", "reversed", "blank", "none"])
def test_tokenize_is_str_split_then_cut(lines: list[str], max_length: int) -> None:
    found = tokenize(batch(lines), max_length)
    expected = oracles.sequences(lines, max_length)
    assert pieces_of(found.words.to_pylist(), found.lengths.tolist()) == expected
    assert found.num_lines == len(lines)
    blank = sum(not line.split() for line in lines)
    assert found.num_too_short == blank + sum(len(piece) < 2 for piece in expected)


def test_a_slice_of_an_array_is_tokenized_like_a_whole_one() -> None:
    found = tokenize(batch(LINES).slice(3, 4), 1000)
    assert pieces_of(found.words.to_pylist(), found.lengths.tolist()) == oracles.sequences(LINES[3:7], 1000)


def test_invalid_utf8_is_replaced_and_counted() -> None:
    found = tokenize(pa.array([b"good line", b"caf\xe9 au lait", b"\xff\xfe"], pa.binary()), 1000)
    assert found.words.to_pylist() == ["good", "line", "caf\ufffd", "au", "lait", "\ufffd\ufffd"]
    assert found.num_invalid_utf8 == 2


@pytest.mark.parametrize("max_vocab", [None, 3])
def test_word_ids_go_by_falling_count_then_spelling(max_vocab: int | None) -> None:
    lines = ["b b a a c c c", "<unk> <unk> \u00e9 \u00e9 z z rare", "Z Z"]
    words = [word for line in lines for word in line.split()]
    counts = tokenize(batch(lines), 1000).words.value_counts()
    frequent = counts.filter(pa.array(counts.field(1).to_numpy() >= 2))
    vocab = Vocab.from_counts(frequent.field(0), frequent.field(1), len(words), max_vocab)
    expected = oracles.vocabulary([line.split() for line in lines], 2, max_vocab)
    assert list(zip(vocab.words.to_pylist(), vocab.counts_V.tolist(), strict=True)) == expected


def test_a_vocab_reads_as_it_was_written(tmp_path: Path) -> None:
    vocab = Vocab(pa.array(["<unk>", "a", "\u00e9"]), np.array([5, 3, 2]))
    vocab.write(tmp_path / "vocab.parquet")
    again = Vocab.read(tmp_path / "vocab.parquet")
    assert again.words.to_pylist() == vocab.words.to_pylist()
    assert again.counts_V.tolist() == vocab.counts_V.tolist()
    assert again.digest() == vocab.digest()


def test_encode_keeps_known_words_and_keys_by_the_whole_text() -> None:
    vocab_words = pa.array(["<unk>", "a", "b"])
    lines = ["a b a", "a zzz b", "zzz a", "b", "a b a", "<unk> a b"]
    found = tokenize(batch(lines), 1000)
    encoded = encode(found.words, found.lengths, vocab_words)
    assert encoded.ids.tolist() == [1, 2, 1, 1, 2, 1, 2, 1, 1, 2]
    assert encoded.lengths.tolist() == [3, 2, 3, 2]
    expected = [oracles.sequence_key(lines[i].split()) for i in (0, 1, 4, 5)]
    assert encoded.keys.tolist() == expected
