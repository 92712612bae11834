"""Laws of training.vectors.export_formats: what gensim reads is what was trained, bit for bit."""

import csv
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Command
from gensim.models import KeyedVectors
from tiny import ODD_WORDS, odd_table, write_run

from training import export
from training.vectors import cosine, export_formats
from training.vectors.word_vectors import Vectors

WORDS = ["<unk>", *ODD_WORDS]
FORMATS = ["word2vec", "word2vec-binary", "projector"]


def table(num_words: int, dim: int) -> npt.NDArray[np.float32]:
    """``odd_table`` with a row of numbers that are hard to write, and <unk>'s zeros."""
    values = odd_table(num_words, dim)
    values[1, :4] = (0, 1, 0.1, 1e-45)
    values[0] = 0
    return values


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", WORDS, table(len(WORDS), 50))
    return tmp_path / "run"


def listing(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# Round trips


@pytest.mark.parametrize("chunk_values", [1, 120, 1 << 20])
@pytest.mark.parametrize("form", ["word2vec", "word2vec-binary"])
def test_gensim_reads_the_same_words_and_bits(
    call: Command, run: Path, tmp_path: Path, form: str, chunk_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosine, "CHUNK_VALUES", chunk_values)
    ended = call(export.main, run, "--format", form, "--output", tmp_path / "vectors")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout == f"12 words, 50 dimensions: {tmp_path / 'vectors'}\n"
    read = KeyedVectors.load_word2vec_format(tmp_path / "vectors", binary=form == "word2vec-binary")
    assert read.index_to_key == WORDS[1:]
    assert read.vectors.dtype == np.float32
    assert read.vectors.tobytes() == table(len(WORDS), 50)[1:].tobytes()


def test_the_binary_file_is_the_one_that_gensim_writes(call: Command, run: Path, tmp_path: Path) -> None:
    vectors = Vectors.load(run)
    known = KeyedVectors(50)
    known.add_vectors(vectors.words[1:], vectors.center_VD[1:])
    known.save_word2vec_format(tmp_path / "gensims", binary=True)
    call(export.main, run, "--format", "word2vec-binary", "--output", tmp_path / "ours")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "gensims").read_bytes()


def test_text_has_no_more_digits_than_it_takes(call: Command, tmp_path: Path) -> None:
    center_VD = np.array([[0, 0, 0], [0.1, -2, 1 / 3]], dtype=np.float32)
    write_run(tmp_path / "run", ["<unk>", "word"], center_VD)
    call(export.main, tmp_path / "run", "--format", "word2vec", "--output", tmp_path / "vectors.txt")
    assert (tmp_path / "vectors.txt").read_text() == "1 3\nword 0.1 -2 0.33333334\n"


@pytest.mark.parametrize("chunk_values", [1, 120, 1 << 20])
def test_the_projectors_files_have_a_line_a_word_each(
    call: Command, run: Path, tmp_path: Path, chunk_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cosine, "CHUNK_VALUES", chunk_values)
    output, metadata = tmp_path / "new" / "folder" / "ptb.tsv", tmp_path / "new" / "folder" / "ptb.metadata.tsv"
    ended = call(export.main, run, "--format", "projector", "--output", output)
    assert ended.stdout == f"12 words, 50 dimensions: {output} and {metadata}\n"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read = np.loadtxt(output, dtype=np.float32, delimiter="\t")
    assert read.tobytes() == table(len(WORDS), 50)[1:].tobytes()
    rows = csv.reader(metadata.read_text().splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    assert list(rows) == [["word", "count"], *([word, str(12 - row)] for row, word in enumerate(WORDS[1:]))]
    assert sorted(listing(output.parent)) == ["ptb.metadata.tsv", "ptb.tsv"]


# Words with white space: they come from columns of arrays


@pytest.mark.parametrize("form", FORMATS)
def test_white_space_in_words_is_written_as_an_underscore_and_said(call: Command, tmp_path: Path, form: str) -> None:
    words = ["<unk>", "New York", "a\u00a0b", "c\nd\te", "\u0085", "plain", "x\u2028y\r"]
    write_run(tmp_path / "run", words, table(7, 4))
    ended = call(export.main, tmp_path / "run", "--format", form, "--output", tmp_path / "vectors")
    assert ended.stdout.startswith("6 words, 5 of them with _ for white space, 4 dimensions: ")
    expected = ["New_York", "a_b", "c_d_e", "_", "plain", "x_y_"]
    if form == "projector":
        lines = (tmp_path / "vectors.metadata.tsv").read_text().splitlines()
        assert [line.split()[0] for line in lines[1:]] == expected
    else:
        read = KeyedVectors.load_word2vec_format(tmp_path / "vectors", binary=form == "word2vec-binary")
        assert read.index_to_key == expected


@pytest.mark.parametrize("words", [["new_york", "new york"], ["a\tb", "a b"], ["\n", "\u0085"]])
def test_words_that_would_become_one_are_refused(call: Command, tmp_path: Path, words: list[str]) -> None:
    write_run(tmp_path / "run", ["<unk>", *words], table(3, 4))
    ended = call(export.main, tmp_path / "run", "--format", "word2vec", "--output", tmp_path / "vectors")
    ended.assert_refused(*map(repr, words), "white space", "vocab.parquet")
    assert not (tmp_path / "vectors").exists()


# Outputs


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_is_replaced_with_overwrite_alone(call: Command, run: Path, tmp_path: Path, form: str) -> None:
    flags = [run, "--format", form, "--output", tmp_path / "out" / "vectors.tsv"]
    assert call(export.main, *flags).code == 0
    whole = listing(tmp_path / "out")
    for name in whole:
        for other in whole:
            (tmp_path / "out" / other).unlink(missing_ok=True)
        (tmp_path / "out" / name).write_text("mine")
        before = listing(tmp_path / "out")
        call(export.main, *flags).assert_refused(name, "--overwrite")
        assert listing(tmp_path / "out") == before
        assert call(export.main, *flags, "--overwrite").code == 0
        assert listing(tmp_path / "out") == whole


@pytest.mark.parametrize("form", FORMATS)
def test_a_failure_on_the_way_leaves_the_old_file_and_nothing_else(
    call: Command, run: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full after the first words, say."""
    flags = [run, "--format", form, "--output", tmp_path / "out" / "vectors.tsv"]
    assert call(export.main, *flags).code == 0
    before = listing(tmp_path / "out")
    monkeypatch.setattr(cosine, "CHUNK_VALUES", 120)
    write_run(tmp_path / "other", WORDS, -table(len(WORDS), 50))

    def full(num_rows: int, width: int) -> Iterator[slice]:
        yield next(cosine.chunks(num_rows, width))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_formats, "chunks", full)
    call(export.main, tmp_path / "other", *flags[1:], "--overwrite").assert_refused("vectors.tsv", "No space left")
    assert listing(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("", "is no file"),
        ("file/vectors", "file is a file and expected a folder"),
        ("file/a/b/vectors", "file is a file and expected a folder"),
        ("x" * 256, "too long"),
        ("x" * 255, "too long"),
        ("vectors.txt.gz", "unpack and .gz"),
        ("vectors.BZ2", "unpack and .BZ2"),
        ("run/vectors.safetensors", "the run's folder"),
        ("run/vectors.txt", "the run's folder"),
        ("link/new/vectors.txt", "the run's folder"),
    ],
)
def test_an_output_that_cannot_be_used_is_refused(
    call: Command, run: Path, tmp_path: Path, output: str, words: str
) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to(run)
    before = listing(tmp_path), listing(run)
    for overwrite in ([], ["--overwrite"]):
        ended = call(export.main, run, "--format", "word2vec", "--output", tmp_path / output, *overwrite)
        ended.assert_refused("--output", *words.split(" and "))
        assert (listing(tmp_path), listing(run)) == before


def test_a_pipe_or_device_is_not_replaced_by_a_file(call: Command, run: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    ended = call(export.main, run, "--format", "word2vec", "--output", tmp_path / "pipe", "--overwrite")
    ended.assert_refused(str(tmp_path / "pipe"), "is no file")
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--output x", "--format"),
        ("--format word2vec", "--output"),
        ("--format text --output x", "--format text word2vec-binary projector"),
        ("--format word2vec --output=", "--output"),
    ],
)
def test_flags_that_cannot_be_are_refused(call: Command, run: Path, flags: str, words: str) -> None:
    call(export.main, run, *flags.split()).assert_refused(*words.split())


def test_a_run_that_is_not_finished_is_refused_and_nothing_written(call: Command, run: Path, tmp_path: Path) -> None:
    (run / "summary.json").unlink()
    ended = call(export.main, run, "--format", "word2vec", "--output", tmp_path / "new" / "vectors")
    ended.assert_refused(str(run), "no finished run")
    assert not (tmp_path / "new").exists()
