"""Vocab.read takes what ``write`` writes and nothing else."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import vocab
from pipeline.dataset.vocab import SCHEMA, Vocab, VocabError
from pipeline.shared.errors import InputError

GOOD = {"word_id": [0, 1, 2], "word": ["<unk>", "a", "b"], "count": [3, 2, 1]}
LOOSE = pa.schema([pa.field(field.name, field.type) for field in SCHEMA])
NOT_UTF8 = pa.StringArray.from_buffers(3, pa.py_buffer(np.array([0, 5, 6, 7], "<i4")), pa.py_buffer(b"<unk>\xff\xfe"))

OTHERS: dict[str, Callable[[], pa.Table]] = {
    "a null word": lambda: pa.table({**GOOD, "word": ["<unk>", None, "b"]}, LOOSE),
    "a null count": lambda: pa.table({**GOOD, "count": [3, None, 1]}, LOOSE),
    "a null id": lambda: pa.table({**GOOD, "word_id": [0, None, 2]}, LOOSE),
    "a word twice": lambda: pa.table({**GOOD, "word": ["<unk>", "a", "a"]}, LOOSE),
    "words that are no UTF-8": lambda: pa.table([pa.array([0, 1, 2], pa.int32()), NOT_UTF8, [3, 2, 1]], schema=LOOSE),
    "a negative count": lambda: pa.table({**GOOD, "count": [3, 2, -1]}, LOOSE),
    "ids in another order": lambda: pa.table({**GOOD, "word_id": [0, 2, 1]}, LOOSE),
    "no <unk>": lambda: pa.table({**GOOD, "word": ["c", "a", "b"]}, LOOSE),
    "no words": lambda: LOOSE.empty_table(),
    "numbers for words": lambda: pa.table({**GOOD, "word": [1, 2, 3]}),
    "text for counts": lambda: pa.table({**GOOD, "count": ["3", "2", "1"]}),
    "a column too few": lambda: pa.table({"word": GOOD["word"], "count": GOOD["count"]}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_any_other_table_is_refused(tmp_path: Path, name: str) -> None:
    pq.write_table(OTHERS[name](), tmp_path / "vocab.parquet")
    with pytest.raises(VocabError):
        Vocab.read(tmp_path / "vocab.parquet")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    made = Vocab(pa.array(GOOD["word"]), np.array(GOOD["count"]))
    made.write(tmp_path / "vocab.parquet")
    again = Vocab.read(tmp_path / "vocab.parquet")
    assert (again.words.to_pylist(), again.counts_V.tolist()) == (GOOD["word"], GOOD["count"])


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_a_digest_is_of_a_line_for_every_word(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(vocab, "DIGEST_WORDS", at_once)
    words, counts = ["<unk>", "caf\u00e9", "\n", "", "a b"], [10**15, 0, 7, 7, 1]
    lines = "".join(f"{count} {word}\n" for count, word in zip(counts, words, strict=True))
    made = Vocab(pa.array(["before", *words])[1:], np.array(counts))
    assert made.digest() == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + bytes(100) + b"PAR1"], ids=["empty", "cut", "zeros"])
def test_what_is_no_parquet_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "vocab.parquet").write_bytes(content)
    with pytest.raises((OSError, VocabError)):
        Vocab.read(tmp_path / "vocab.parquet")


def test_words_that_no_column_can_hold_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    words, counts = pa.array(["abc", "de"]), pa.array([2, 1])
    monkeypatch.setattr(vocab, "MAX_TEXT_BYTES", len("<unk>abcde"))
    assert len(Vocab.from_counts(words, counts, 3, None)) == 3
    monkeypatch.setattr(vocab, "MAX_TEXT_BYTES", len("<unk>abcd"))
    with pytest.raises(InputError, match="2 words of 10 bytes in all, expected at most 9 bytes; set --max-vocab"):
        Vocab.from_counts(words, counts, 3, None)
