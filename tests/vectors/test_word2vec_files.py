"""Laws of vectors.word2vec_files: what gensim reads is what we read, and what is damaged is refused in one line."""

import bz2
import gzip
import lzma
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import run

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Command
from gensim.models import KeyedVectors
from tiny import ODD_WORDS, odd_table, write_run

from pipeline.shared.errors import InputError
from training import evaluate, export, neighbors
from training.vectors import Tables, Vectors, word2vec_files

WORDS = [*ODD_WORDS, "<unk>"]
FORMS = ["text", "text with blanks at the ends", "text with CRLF", "binary", "binary with line ends"]


def content(form: str, words: list[str], rows_VD: npt.NDArray[np.float32]) -> bytes:
    """A word2vec file, as slowly and obviously as can be."""
    header = f"{len(words)} {rows_VD.shape[1]}\n".encode()
    if "binary" in form:
        end = b"\n" if "line ends" in form else b""
        rows = (struct.pack(f"<{len(row_D)}f", *row_D) + end for row_D in rows_VD)
        return header + b"".join(word.encode() + b" " + row for word, row in zip(words, rows, strict=True))
    lines = (f"{word} {' '.join(map(repr, map(float, row_D)))}" for word, row_D in zip(words, rows_VD, strict=True))
    line_end = " \n" if "blanks" in form else "\n"
    text = header + "".join(line + line_end for line in lines).encode()
    return text.replace(b"\n", b"\r\n") if "CRLF" in form else text


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# What is read


@pytest.mark.parametrize("dim", [1, 2, 50])
def test_words_and_bits_are_those_that_gensim_reads(tmp_path: Path, form: str, dim: int) -> None:
    file = tmp_path / "vectors"  # no suffix says what it is
    file.write_bytes(content(form, WORDS, odd_table(len(WORDS), dim)))
    vectors = Vectors.load(file)
    gensims = KeyedVectors.load_word2vec_format(file, binary="binary" in form)
    assert vectors.words == ["<unk>", *gensims.index_to_key] == ["<unk>", *WORDS]
    assert vectors.center_VD.dtype == np.float32
    assert vectors.center_VD[1:].tobytes() == gensims.vectors.tobytes() == odd_table(len(WORDS), dim).tobytes()
    assert not vectors.center_VD[0].any()
    assert vectors.counts_V is None


@pytest.mark.parametrize("suffix", [".txt", ".bin", ".safetensors"])
def test_content_decides_and_no_suffix(tmp_path: Path, form: str, suffix: str) -> None:
    file = (tmp_path / "vectors").with_suffix(suffix)
    file.write_bytes(content(form, WORDS, odd_table(len(WORDS), 3)))
    assert Vectors.load(file).words[1:] == WORDS


@pytest.mark.parametrize("rows", [[[0, 0], [1, 2], [0.5, -3]], [[0, 0], [2, 0], [2, 2]]])
def test_zeros_and_numbers_whose_bytes_are_utf8_are_told_apart(
    tmp_path: Path, form: str, rows: list[list[float]]
) -> None:
    rows_VD = np.array(rows, np.float32)
    (tmp_path / "vectors").write_bytes(content(form, ["a", "b", "c"], rows_VD))
    assert Vectors.load(tmp_path / "vectors").center_VD[1:].tolist() == rows_VD.tolist()


@pytest.mark.parametrize("written", ["word2vec", "word2vec-binary"])
def test_an_export_reads_back_as_the_run(call: Command, tmp_path: Path, written: str) -> None:
    center_VD = np.concatenate([np.zeros((1, 50), np.float32), odd_table(len(WORDS), 50)])
    write_run(tmp_path / "run", ["<unk>", *WORDS], center_VD)
    assert call(export.main, tmp_path / "run", "--format", written, "--output", tmp_path / "vectors").code == 0
    vectors, trained = Vectors.load(tmp_path / "vectors"), Vectors.load(tmp_path / "run")
    assert vectors.words == trained.words
    assert vectors.center_VD.tobytes() == trained.center_VD.tobytes()


def test_a_runs_tensors_are_read_with_the_vocabulary_beside_them(tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["<unk>", "a", "b"], np.array([[0, 0], [1, 2], [3, 4]], np.float32))
    (tmp_path / "run" / "summary.json").unlink()
    file = (tmp_path / "run" / "vectors.safetensors").rename(tmp_path / "run" / "mine.safetensors")
    vectors = Vectors.load(file)
    assert (vectors.words, vectors.center_VD.tolist()) == (["<unk>", "a", "b"], [[0, 0], [1, 2], [3, 4]])
    assert vectors.counts_V is not None
    assert vectors.counts_V.tolist() == [3, 2, 1]


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path: Path, form: str) -> None:
    (tmp_path / "vectors").write_bytes(BYTE_ORDER_MARK + content(form, WORDS, odd_table(len(WORDS), 3)))
    vectors = Vectors.load(tmp_path / "vectors")
    assert vectors.words[1:] == WORDS
    assert vectors.center_VD[1:].tobytes() == odd_table(len(WORDS), 3).tobytes()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda whole: pa.compress(whole, "zstd", asbytes=True),
}


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_compressed_file_is_read_as_what_it_holds(tmp_path: Path, form: str, suffix: str) -> None:
    whole = content(form, WORDS, odd_table(len(WORDS), 3))
    file = tmp_path / "vectors.vec"  # the content decides
    file.write_bytes(COMPRESS[suffix](whole))
    vectors = Vectors.load(file)
    assert vectors.words[1:] == WORDS
    assert vectors.center_VD[1:].tobytes() == odd_table(len(WORDS), 3).tobytes()
    file.write_bytes(COMPRESS[suffix](whole)[:-10])
    with pytest.raises(InputError, match=f"^{file}: cannot be decompressed .*whole"):
        Vectors.load(file)


def test_parts_of_gzip_one_after_the_other_are_one_file(tmp_path: Path, form: str) -> None:
    whole = content(form, WORDS, odd_table(len(WORDS), 3))
    (tmp_path / "vectors.gz").write_bytes(gzip.compress(whole[:50]) + gzip.compress(whole[50:]))
    assert Vectors.load(tmp_path / "vectors.gz").words[1:] == WORDS


# Words that are not UTF-8

LONG = "ü" * 60
CUT = [b"one", LONG.encode()[:99], b"two", "数据".encode()[:5], b"\xff"]
"""word2vec.c keeps so many bytes of a word."""


def content_of_bytes(form: str, words: list[bytes]) -> bytes:
    names = [f"word-{number}-" for number in range(len(words))]
    whole = content(form, names, np.arange(1, 1 + 3 * len(words), dtype=np.float32).reshape(-1, 3))
    for name, word in zip(names, words, strict=True):
        whole = whole.replace(name.encode() + b" ", word + b" ")
    return whole


def test_words_that_are_cut_inside_a_letter_are_those_of_gensim_and_counted(
    call: Command, tmp_path: Path, form: str
) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(content_of_bytes(form, CUT))
    gensims = KeyedVectors.load_word2vec_format(file, binary="binary" in form, unicode_errors="replace")
    vectors = Vectors.load(file)
    assert vectors.words[1:] == gensims.index_to_key == ["one", "ü" * 49 + "\ufffd", "two", "数\ufffd", "\ufffd"]
    assert vectors.center_VD[1:].tobytes() == gensims.vectors.tobytes()
    ended = call(neighbors.main, file, "one")
    assert (ended.code, len(ended.stderr.splitlines())) == (0, 1)
    assert "3 of 5 words" in ended.stderr
    assert "word 2" in ended.stderr
    assert "--strict" in ended.stderr


def test_strict_refuses_words_that_are_not_utf8_and_nothing_else(call: Command, tmp_path: Path, form: str) -> None:
    (tmp_path / "pairs").write_text("one two 1\ntwo three 2\nthree one 4\n")
    for main, flags in (
        (neighbors.main, ["one"]),
        (evaluate.main, ["--pairs", tmp_path / "pairs"]),
        (export.main, ["--format", "word2vec", "--output", tmp_path / "out"]),
    ):
        (tmp_path / "file").write_bytes(content_of_bytes(form, CUT))
        call(main, tmp_path / "file", "--strict", *flags).assert_refused("file", "3 of 5 words", "word 2", "UTF-8")
        (tmp_path / "file").write_bytes(content(form, ["one", "two", "three", "\ufffd"], odd_table(4, 3) % 1))
        assert call(main, tmp_path / "file", "--strict", *flags).code == 0


def test_words_that_would_become_equal_keep_their_bytes(call: Command, tmp_path: Path, form: str) -> None:
    file = tmp_path / "vectors"
    file.write_bytes(content_of_bytes(form, [b"Z\xc3", b"Z\xc4", "Y\ufffd".encode(), b"Y\xe4", b"ok"]))
    assert Vectors.load(file).words[1:] == ["Z\ufffd", r"Z\xc4", "Y\ufffd", r"Y\xe4", "ok"]
    assert "2 of them" in call(neighbors.main, file, "ok").stderr
    for words in ([b"Z\xc3", b"Z\xc3"], [b"Z\xc3", b"Z\xc4", rb"Z\xc4"]):
        file.write_bytes(content_of_bytes(form, words))
        call(neighbors.main, file, "ok").assert_refused(str(file), "twice")


# What is refused

FOREIGN = {
    "a zip archive": b"PK\x03\x04\x14\0",
    "a tar archive": b"v.vec".ljust(257, b"\0") + b"ustar\0",
    "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
    "git-annex": b"/annex/objects/SHA256E-s1--2.vec\n",
    "an HTML page": b"\n<!DOCTYPE html>\n<html><head>",
    "an XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>",
    "JSON": b'{"abc": {"x": [0.1, 0.2]}}\n',
    "UTF-16": "3 3\none 1 2 3\n".encode("utf-16"),
    "a pickle": pickle.dumps({"a": 1}),
    "a fastText model": struct.pack("<ii", 793712314, 12),
    "a NumPy array": b"\x93NUMPY\1\0",
    "a Parquet file": b"PAR1\x15\x04",
}


@pytest.mark.parametrize("packed", [bytes, gzip.compress])
@pytest.mark.parametrize("kind", FOREIGN)
def test_a_file_of_another_kind_is_named(
    call: Command, tmp_path: Path, kind: str, packed: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "vectors.vec").write_bytes(packed(FOREIGN[kind]))
    ended = call(neighbors.main, tmp_path / "vectors.vec", "one")
    ended.assert_refused(str(tmp_path / "vectors.vec"), f"found {kind}" if kind[0] in "a" else kind, "expected")
    assert "first line" not in ended.stderr


def test_tables_are_those_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "vectors.vec").write_bytes(content("text", WORDS, odd_table(len(WORDS), 3)))
    with pytest.raises(InputError, match=r"vectors\.vec: found a file, expected a finished run's folder"):
        Tables.load(tmp_path / "vectors.vec")


GOOD = np.array([[0.25, 1, -2], [3, 4, 5], [6, 7, 8]], np.float32)
Change = Callable[[bytes], bytes]


def replaced(old: bytes, new: bytes) -> Change:
    def change(whole: bytes) -> bytes:
        assert old in whole
        return whole.replace(old, new)

    return change


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        pytest.param("text", replaced(b"3 3\n", b""), ":1: '70000 100'", id="no first line"),
        pytest.param("text", lambda whole: b"", ":1: '70000 100'", id="empty"),
        pytest.param("text", replaced(b"3 3\n", b"3 0\n"), ":1: '3 0'", id="no dimensions"),
        pytest.param("text", replaced(b"3 3\n", b"-3 3\n"), ":1: '-3 3'", id="negative"),
        pytest.param("text", replaced(b"two 3.0 4.0", b"two 3.0"), ":3: 2 numbers 'two' 3", id="too few numbers"),
        pytest.param("text", replaced(b"7.0 8.0", b"7.0 8.0 9"), ":4: 4 numbers 'three' 3", id="too many"),
        pytest.param("text", replaced(b"3 3\n", b"3 4\n"), ":2: 3 numbers 'one' 4", id="another D"),
        pytest.param("text", replaced(b"one", b"New York"), ":2: 4 numbers 'New' 3", id="a blank in a word"),
        pytest.param("text", replaced(b"one 0.25", b"one\t0.25"), ":2: 2 numbers", id="tabs"),
        pytest.param("text", replaced(b"4.0", b"four"), ":3: 'four' 'two' 0.25", id="no number"),
        pytest.param("text", replaced(b"4.0", b""), ":3: '' 'two'", id="an empty number"),
        pytest.param("text", replaced(b"4.0", b"nan"), ":3: 'nan' 'two'", id="nan"),
        pytest.param("text", replaced(b"4.0", b"-inf"), ":3: '-inf' 'two'", id="inf"),
        pytest.param("text", replaced(b"4.0", b"1e39"), ":3: '1e39' 'two'", id="too large for float32"),
        pytest.param("text", replaced(b"3 3\n", b"4 3\n"), "3 words 4 whole", id="fewer words than said"),
        pytest.param("text", replaced(b"3 3\n", b"2 3\n"), "3 words 2", id="more words than said"),
        pytest.param("text", replaced(b"3 3\n", b"3000000000000 3\n"), "3,000,000,000,000", id="very many words"),
        pytest.param(
            "text", replaced(b"3 3\n", b"3 3000000000000\n"), "3,000,000,000,000 dim", id="very many dimensions"
        ),
        pytest.param("text", replaced(b"3 3\n", b"3 16385\n"), "16,385 dimensions", id="more dimensions than are read"),
        pytest.param("text", replaced(b"two", b"one"), "'one' twice", id="a word twice"),
        pytest.param("binary", lambda whole: whole[:-1], "its end in word 3", id="truncated"),
        pytest.param("binary", lambda whole: whole[:30], "26 bytes 42", id="half of it"),
        pytest.param("binary", replaced(b"3 3\n", b"3000000000000 3\n"), "42,000,000,000,000", id="many binary words"),
        pytest.param("binary", replaced(b"3 3\n", b"3 3000000000000\n"), "3,000,000,000,000 dim", id="many dimensions"),
        pytest.param("binary", replaced(b"3 3\n", b"2 3\n"), "bytes after its 2 words", id="fewer said"),
        pytest.param("binary", replaced(b"two", b"t\0\xff"), "UTF-8 control", id="no word"),
        pytest.param("binary", replaced(b"two", b"one"), "'one' twice", id="a binary word twice"),
        pytest.param(
            "binary",
            replaced(struct.pack("<f", 4), struct.pack("<f", np.nan)),
            "finite word 2 'two'",
            id="binary nan",
        ),
    ],
)
def test_a_damaged_file_gives_one_line(call: Command, tmp_path: Path, kind: str, change: Change, words: str) -> None:
    (tmp_path / "vectors").write_bytes(change(content(kind, ["one", "two", "three"], GOOD)))
    ended = call(neighbors.main, tmp_path / "vectors", "one")
    ended.assert_refused(str(tmp_path / "vectors"), *words.split())
    assert ended.stdout == ""


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_every_truncation_of_a_file_is_refused(tmp_path: Path, kind: str) -> None:
    """But those that cut the last digits off, in text, where nothing shows it."""
    whole = content(kind, ["one", "two", "three"], GOOD)
    for end in range(len(whole) - (4 if kind == "text" else 0)):
        (tmp_path / "vectors").write_bytes(whole[:end])
        with pytest.raises(InputError, match=str(tmp_path)):
            Vectors.load(tmp_path / "vectors")


def test_what_a_first_line_claims_takes_no_memory(tmp_path: Path) -> None:
    """In a process that may have 2 GB; the lines claim 400 GB."""
    (tmp_path / "text").write_bytes(b"1000000000 100\n" + b"w" + b" 1" * 100 + b"\n")
    (tmp_path / "binary").write_bytes(b"1000000000 100\nw " + bytes(400))
    code = """if True:
        import resource, sys
        from training.vectors.word_vectors import InputError, Vectors
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))
        for name in sys.argv[1:]:
            try:
                Vectors.load(name)
            except InputError as error:
                print(error)
    """
    files = [str(tmp_path / name) for name in ("text", "binary")]
    done = run([sys.executable, "-c", code, *files], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert len(done.stdout.splitlines()) == 2


def folder_of_words(folder: Path) -> None:
    """pyarrow would read its files as one table."""
    (folder / "vocab.parquet").rename(folder / "part")
    (folder / "vocab.parquet").mkdir()
    (folder / "part").rename(folder / "vocab.parquet" / "part.parquet")


def words_twice(folder: Path) -> None:
    table = pq.read_table(folder / "vocab.parquet")
    pq.write_table(table.append_column("word", table["word"]), folder / "vocab.parquet")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(lambda folder: (folder / "vocab.parquet").unlink(), "vocab.parquet cannot be read", id="no words"),
        pytest.param(
            lambda folder: (folder / "vectors.safetensors").write_bytes(b"\1" + bytes(7) + b"{"),
            "cannot be read",
            id="cut",
        ),
        pytest.param(folder_of_words, "vocab.parquet cannot be read", id="a folder of words"),
        pytest.param(words_twice, "vocab.parquet cannot be read", id="two columns of words"),
    ],
)
def test_tensors_that_are_not_whole_give_one_line(
    call: Command, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    write_run(tmp_path / "run", ["<unk>", "a"], np.array([[0, 0], [1, 2]], np.float32))
    damage(tmp_path / "run")
    file = tmp_path / "run" / "vectors.safetensors"
    call(neighbors.main, file, "a").assert_refused(str(file), words, "write it again")


def test_a_vector_in_the_row_of_unk_is_refused(call: Command, tmp_path: Path) -> None:
    write_run(tmp_path / "run", ["a", "b"], np.array([[1, 0], [1, 2]], np.float32))
    call(neighbors.main, tmp_path / "run", "b").assert_refused("row 0", "<unk>")


def test_a_line_longer_than_a_block_is_read(tmp_path: Path) -> None:
    """Of 4 MB, by many digits: many columns take longer."""
    rows_VD = np.random.default_rng(0).standard_normal((3, 15_000), dtype=np.float32)
    lines = [
        f"{word} {' '.join(f'{value:.300f}' for value in row_D)}\n" for word, row_D in zip("abc", rows_VD, strict=True)
    ]
    (tmp_path / "vectors").write_text("3 15000\n" + "".join(lines))
    assert len(lines[0]) > 1 << 22
    words, center_VD = word2vec_files.read(tmp_path / "vectors")
    assert words == ["<unk>", "a", "b", "c"]
    assert (center_VD[1:] == rows_VD).all()


# The commands


def test_the_commands_take_files_as_they_take_runs(call: Command, tmp_path: Path, form: str) -> None:
    words, rows_VD = ["one", "two", "three", "four"], odd_table(4, 5) % 1
    write_run(tmp_path / "run", ["<unk>", *words], np.concatenate([np.zeros((1, 5), np.float32), rows_VD]))
    (tmp_path / "file").write_bytes(content(form, words, rows_VD))
    (tmp_path / "pairs").write_text("one two 1\ntwo three 2\nthree four 3\n")
    for main, flags in (
        (neighbors.main, ["two", "--topk", "2"]),
        (evaluate.main, ["--pairs", tmp_path / "pairs"]),
        (export.main, ["--format", "word2vec", "--output", tmp_path / "out", "--overwrite"]),
    ):
        of_run, of_file = (call(main, tmp_path / source, *flags) for source in ("run", "file"))
        assert (of_file.code, of_file.stdout) == (0, of_run.stdout)
    assert (tmp_path / "out").read_bytes().split(b"\n")[0] == b"4 5"


def test_the_projector_has_words_alone_where_counts_are_not_known(call: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content("text", ["one", "two", "three"], GOOD))
    assert call(export.main, tmp_path / "file", "--format", "projector", "--output", tmp_path / "out.tsv").code == 0
    assert (tmp_path / "out.metadata.tsv").read_text() == "one\ntwo\nthree\n"


def test_a_file_is_not_exported_onto_itself(call: Command, tmp_path: Path) -> None:
    whole = content("text", ["one", "two", "three"], GOOD)
    (tmp_path / "file").write_bytes(whole)
    flags = ["--format", "word2vec-binary", "--overwrite", "--output", tmp_path / "." / "file"]
    call(export.main, tmp_path / "file", *flags).assert_refused("--output", "name another")
    assert (tmp_path / "file").read_bytes() == whole


@pytest.mark.parametrize("main", [neighbors.main, evaluate.main, export.main])
def test_help_says_what_vectors_may_be(call: Command, main: Callable[[], None]) -> None:
    printed = " ".join(call(main, "--help").stdout.split())
    assert "a finished run's folder" in printed
    assert "a word2vec file, text or binary; .safetensors" in printed
