"""Laws of pipeline.text.tokens, pipeline.text.word_index and pipeline.dataset.vocab."""

import random
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pytest

from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.text import tokens, word_index
from pipeline.text.tokens import tokenized
from pipeline.text.word_index import WordIndex, Words, encode

LINES = [
    "",
    "   ",
    "one",
    "a b c",
    " leading and  double\tand\u00a0other\u3000space ",
    "\u00e9t\u00e9 \u4f60\u597d na\u00efve \u200bzero",
    "<unk> a b",
    "w " * 1100,
    "x y z x y z x",
    "control \x01\x7f\x1b[0m and \x1c file\x1dgroup \u2028 line",
]


def batch(lines: list[str]) -> pa.BinaryArray:
    return pa.array([line.encode() for line in lines], pa.binary())


class Found:
    """All that ``tokenized`` gives for a column."""

    def __init__(self, column: pa.Array, **config: object):
        chunks = list(tokenized(column, PipelineConfig(**config)))  # type: ignore[arg-type]
        self.pieces: list[list[str]] = []
        for chunk in chunks:
            words, end = chunk.words.to_pylist(), 0
            for length in chunk.lengths.tolist():
                self.pieces.append(words[end : end + length])
                end += length
            assert end == len(words)
        self.counts = {
            name: sum(getattr(chunk, name) for chunk in chunks)
            for name in ("num_lines", "num_nulls", "num_invalid_utf8", "num_too_short", "num_long_tokens")
        }


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100, 1 << 21])
@pytest.mark.parametrize("max_length", [pytest.param(2, marks=pytest.mark.long), 3, 1000])
@pytest.mark.parametrize("lines", [LINES, LINES[::-1], LINES[:2], []], ids=["all", "reversed", "blank", "none"])
def test_tokens_are_those_of_str_split_then_cut_whatever_the_chunks(
    lines: list[str], max_length: int, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chunk of one byte makes every line a long one, which is read a stretch at a time."""
    monkeypatch.setattr(tokens, "CHUNK_BYTES", chunk_bytes)
    found = Found(batch(lines), max_sentence_length=max_length)
    expected = oracles.sequences(lines, max_length)
    assert found.pieces == expected
    blank = sum(not line.split() for line in lines)
    assert found.counts["num_lines"] == len(lines)
    assert found.counts["num_too_short"] == blank + sum(len(piece) < 2 for piece in expected)


def test_a_slice_of_an_array_is_tokenized_like_a_whole_one() -> None:
    assert Found(batch(LINES).slice(3, 4)).pieces == oracles.sequences(LINES[3:7], 1000)


@pytest.mark.parametrize("chunk_bytes", [1, 1 << 21])
def test_invalid_utf8_is_replaced_and_its_lines_counted(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK_BYTES", chunk_bytes)
    found = Found(pa.array([b"good line", b"caf\xe9 au caf\xe9", b"\xff\xfe"], pa.binary()))
    assert found.pieces == [["good", "line"], ["caf\ufffd", "au", "caf\ufffd"], ["\ufffd\ufffd"]]
    assert found.counts["num_invalid_utf8"] == 2


def test_nulls_are_skipped_and_counted() -> None:
    found = Found(pa.array([b"a b", None, b"c d", None], pa.binary()))
    assert found.pieces == [["a", "b"], ["c", "d"]]
    assert (found.counts["num_lines"], found.counts["num_nulls"]) == (4, 2)


@pytest.mark.parametrize("chunk", [1, 1 << 19])
def test_an_array_is_a_sequence_as_it_is(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "CHUNK_TOKENS", chunk)
    rows = [["new york", "b", "c"], None, [], ["x", None, "", "y"], ["1", "2", "3", "4", "5"], ["<unk>", "z"]]
    found = Found(pa.array(rows, pa.list_(pa.string())), max_sentence_length=3)
    assert found.pieces == [["new york", "b", "c"], ["x", "y"], ["1", "2", "3"], ["4", "5"], ["<unk>", "z"]]
    assert (found.counts["num_lines"], found.counts["num_nulls"], found.counts["num_too_short"]) == (6, 3, 1)


def test_a_token_of_10_megabytes_becomes_unknown_in_its_place_and_is_counted() -> None:
    found = Found(pa.array([b"a " + b"x" * 10_000_000 + b" b", b"c d"], pa.binary()))
    assert found.pieces == [["a", "<unk>", "b"], ["c", "d"]]
    assert found.counts["num_long_tokens"] == 1


def words_oracle(text: str) -> list[str]:
    """What ``words`` is, a character at a time."""
    import unicodedata

    kept = [
        character if unicodedata.category(character)[0] in "LMN" or character in "'_" else " "
        for character in text.replace("\u2019", "'")
    ]
    return [word.strip("'") for word in "".join(kept).split() if word.strip("'")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic: it's 42.", "don't panic it's 42"),
        ("'Twas the dogs' bone, rock 'n' roll\u2019s", "twas the dogs bone rock n roll's"),
        ("caf\u00e9 \u00c9T\u00c9 nai\u0308ve \u4f60\u597d\uff0c\u4e16\u754c", "café été nai\u0308ve 你好 世界"),
        ("snake_case e-mail a.b http://x.org/y?z=1", "snake_case e mail a b http x org y z 1"),
        ("''' -- \u2014 ...", ""),
        ("\u0661\u0662 \u00bd x\u00b2", "\u0661\u0662 \u00bd x\u00b2"),
    ],
)
def test_words_are_runs_of_letters_marks_numbers(text: str, expected: str) -> None:
    found = Found(batch([text]), tokenizer="words", lowercase=True)
    assert [word for piece in found.pieces for word in piece] == expected.split()


def test_words_equal_the_oracle_on_any_character() -> None:
    rng = random.Random(0)
    lines = ["".join(chr(rng.choice([rng.randrange(32, 0x250), rng.randrange(0x2000, 0x3100)])) for _ in range(50))]
    lines += ["".join(rng.choice("ab'\u2019_- \u0301") for _ in range(40)) for _ in range(50)]
    found = Found(batch(lines), tokenizer="words")
    assert found.pieces == [words_oracle(line) for line in lines if words_oracle(line)]


def test_lowercase_alone_lowers_and_splits_at_white_space() -> None:
    assert Found(batch(["The CAT, \u00c9"]), lowercase=True).pieces == [["the", "cat,", "\u00e9"]]


@pytest.mark.parametrize("max_vocab", [None, 3])
def test_word_ids_go_by_falling_count_then_spelling(max_vocab: int | None) -> None:
    lines = ["b b a a c c c", "<unk> <unk> \u00e9 \u00e9 z z rare", "Z Z"]
    words = [word for line in lines for word in line.split()]
    counts = pa.array(words).value_counts()
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


def test_the_index_finds_every_word_and_no_other() -> None:
    """Slices too: Arrow's buffers then hold more than the words."""
    words = ["<unk>", *(f"word{number}" for number in range(5000)), "\u00e9", "x" * 4000]
    others = ["", "word", "word5000", "words1", "Word1", "e\u0301"]
    index = WordIndex(pa.array(["before", *words])[1:])
    asked = pa.array(["skipped", *others, *words[::-1]])[1:]
    found = index.ids(Words.of(asked))
    assert found.tolist() == [0] * len(others) + list(range(len(words)))[::-1]


def test_the_index_compares_words_whose_hashes_are_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    words, asked = pa.array(["<unk>", "a", "b"]), pa.array(["b", "c", "a"])
    assert WordIndex(words).ids(Words.of(asked)).tolist() == [2, 0, 1]
    monkeypatch.setattr(word_index, "_hash_all", lambda offsets, data, hashes: hashes.fill(7))
    assert Words.of(asked).hashes.tolist() == [7, 7, 7]
    assert WordIndex(words).ids(Words.of(asked)).tolist() == [2, 0, 1]


def test_word_hashes_are_the_oracles() -> None:
    words = ["", "a", "\u00e9t\u00e9", "exactly8", "more than eight bytes", "x" * 100]
    assert Words.of(pa.array(words)).hashes.tolist() == [oracles.word_hash(word) for word in words]
    many = Words.of(pa.array([f"{number}" for number in range(100_000)])).hashes
    assert len(set(many.tolist())) == 100_000
    bits = (many[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.01


def test_encode_keeps_known_words_and_keys_by_the_whole_text() -> None:
    index = WordIndex(pa.array(["<unk>", "a", "b"]))
    lines = ["a b a", "a zzz b", "zzz a", "b", "a b a", "<unk> a b"]
    (found,) = tokenized(batch(lines), PipelineConfig())
    encoded = encode(found.words, found.lengths, index)
    assert encoded.ids.tolist() == [1, 2, 1, 1, 2, 1, 2, 1, 1, 2]
    assert encoded.lengths.tolist() == [3, 2, 3, 2]
    expected = [oracles.sequence_key(lines[i].split()) for i in (0, 1, 4, 5)]
    assert encoded.keys.tolist() == expected
