"""Laws of jobs/prepare_ptb.py on bad input: exit code 2, one line, and nothing is touched or left behind.

Most cases run the job in this process: what must be found before Spark starts with a session that must not be built,
the rest with the session that all tests share.
"""

import gzip
import io
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import reduce
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT, Command, Ended, run_here
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from tiny import write_tiny_dataset

from jobs import prepare_ptb, session
from pipeline.dataset.manifest_file import Manifest
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError
from pipeline.spark.forecast import bytes_an_example, core_seconds, rounded
from pipeline.stages import prepare
from pipeline.text import ptb as ptb_module
from pipeline.text.corpus import text
from pipeline.text.ptb import ptb

PREPARE = str(ROOT / "jobs" / "prepare_ptb.py")
SMALL = ("--window", "2", "--min-count", "2", "--sample", "0", "--num-shards", "2")
SMALL_CONFIG = PipelineConfig(window=2, min_count=2, sample=0, num_shards=2)


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs jobs/prepare_ptb.py in this process; Spark must not be started."""

    def must_not_run(_: str) -> SparkSession:
        raise AssertionError("this is too late for the error")

    def run(*arguments: object) -> Ended:
        return run_here(prepare_ptb.main, arguments, monkeypatch, capsys)

    monkeypatch.setattr(session, "build_session", must_not_run)
    return run


@pytest.fixture
def spark_job(job: Command, spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The same, with the session that all tests share."""
    monkeypatch.setattr(session, "build_session", lambda _: spark)
    monkeypatch.setattr(spark, "stop", lambda: None)
    return job


def lines(seed: int = 0, num_lines: int = 200) -> str:
    """Sentences of 8 words out of 30."""
    rng = random.Random(seed)
    return "".join(" ".join(f"w{rng.randrange(30)}" for _ in range(8)) + "\n" for _ in range(num_lines))


@pytest.fixture
def sentences(tmp_path: Path) -> Path:
    path = tmp_path / "sentences.txt"
    path.write_text(lines())
    return path


def tree(folder: Path) -> dict[str, bytes]:
    """All that lies in ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


# Settings


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--window 0", "--window found 0 expected 1 or more sequence"),
        ("--window -1", "--window found -1"),
        ("--window 3000", "--window found 3000 6000 contexts 36000"),
        ("--window 6000 --window-side left", "--window found 6000 6000 contexts 36000"),
        ("--window sequence --negatives 700", "--window found sequence 50 contexts 35050"),
        ("--window sequence --window-kind dynamic", "--window-kind found dynamic expected fixed --window sequence"),
        ("--window wide", "--window: found wide expected whole number sequence"),
        ("--negatives 0", "--negatives found 0 expected 1"),
        ("--negatives -5", "--negatives found -5"),
        ("--min-count 0", "--min-count found 0"),
        ("--max-vocab 0", "--max-vocab found 0"),
        ("--num-shards 0", "--num-shards found 0"),
        ("--epochs 0", "--epochs found 0"),
        ("--epochs -2", "--epochs found -2"),
        ("--sample -1", "--sample found -1.0 [0, 1]"),
        ("--sample 2", "--sample found 2.0"),
        ("--sample nan", "--sample found nan"),
        ("--max-sentence-length 1", "--max-sentence-length found 1 expected 2"),
        ("--max-sentence-length 999999999", "--max-sentence-length found 999999999"),
        ("--ns-exponent nan", "--ns-exponent found nan"),
        ("--ns-exponent 99", "--ns-exponent found 99.0"),
        ("--holdout -0.1", "--holdout found -0.1"),
        ("--holdout 0.9", "--holdout found 0.9"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    job: Command, sentences: Path, tmp_path: Path, flags: str, words: str
) -> None:
    job("--input", sentences, "--output", tmp_path / "out", *flags.split()).assert_refused(*words.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("flags", ["--subsample-rule foo", "--window wide", "--windows 3", "--epochs", "stray"])
def test_a_flag_that_is_not_understood_is_refused_in_one_line_too(job: Command, flags: str) -> None:
    job(*flags.split()).assert_refused(flags.split()[0])


@pytest.mark.parametrize("flags", ["--epochs 100000000", "--num-shards 1000000000"])
def test_a_number_that_no_machine_can_serve_is_refused_at_once(
    job: Command, sentences: Path, tmp_path: Path, flags: str
) -> None:
    """Each asks for as many files, at least."""
    job("--input", sentences, "--output", tmp_path / "out", *flags.split()).assert_refused(*flags.split())


# The input


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "not found"),
        ("empty.txt", b"", "empty"),
        ("binary.txt", b"GIF89a\0\0\1", "binary offset 6"),
        ("utf16.txt", "a sentence\n".encode("utf-16-le"), "binary offset 1"),
        ("not.gz", b"a sentence\n", "cannot be read"),
        ("cut.gz", gzip.compress(lines().encode())[:900], "cannot be read"),
        ("zipped.zip", b"PK\3\4\24\0\0\0", "binary"),
        ("time 12:30.txt", lines().encode(), "':'"),
        ("_hidden.txt", lines().encode(), "_"),
        (".hidden.txt", lines().encode(), "."),
        ("copied.txt._COPYING_", lines().encode(), "_COPYING_"),
        ("sentences.lz4", lines().encode(), ".lz4"),
        ("sentences.snappy", lines().encode(), ".snappy"),
        ("sentences.deflate", lines().encode(), ".deflate"),
        ("x" * 300, None, ""),
    ],
)
def test_input_that_is_no_text_is_refused_before_spark_starts(
    job: Command, tmp_path: Path, name: str, content: bytes | None, words: str
) -> None:
    """Among these: what Spark cannot read (a colon in the name), passes over, or dies of (another kind of .lz4)."""
    if content is not None:
        (tmp_path / name).write_bytes(content)
    before = tree(tmp_path)
    ended = job("--input", tmp_path / name, "--output", tmp_path / "out")
    ended.assert_refused("--input", str(tmp_path / name), *words.split())
    assert tree(tmp_path) == before


def test_an_lz4_frame_is_refused_too(job: Command, tmp_path: Path) -> None:
    """It is not what Hadoop means by .lz4, and kills the JVM."""
    import pyarrow as pa

    with pa.output_stream(str(tmp_path / "sentences.lz4"), compression="lz4") as file:
        file.write(lines().encode())
    ended = job("--input", tmp_path / "sentences.lz4", "--output", tmp_path / "out")
    ended.assert_refused("--input", "sentences.lz4")


def test_a_name_that_is_no_utf8_is_refused(job: Command, tmp_path: Path) -> None:
    """Java cannot say it, so Spark cannot open it."""
    (tmp_path / "latin-\udce9.txt").write_text(lines())
    job("--input", tmp_path, "--output", tmp_path / "out").assert_refused("--input", "latin-")


@pytest.mark.parametrize("name", ["", "/dev/null"])
def test_input_that_is_neither_a_file_nor_a_folder_is_refused(
    job: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """An empty --input comes from a variable that is not set; it does not mean the folder we are in."""
    (tmp_path / "notes.txt").write_text(lines())
    monkeypatch.chdir(tmp_path)
    job("--input", name, "--output", tmp_path / "out").assert_refused("--input")


@pytest.mark.parametrize("names", [[], ["below/text.txt"], [".hidden", "_SUCCESS"]], ids=["empty", "below", "hidden"])
def test_a_folder_without_text_is_refused(job: Command, tmp_path: Path, names: list[str]) -> None:
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text(lines())
    ended = job("--input", tmp_path / "in", "--output", tmp_path / "out")
    ended.assert_refused("--input", str(tmp_path / "in"), "without files")
    assert not (tmp_path / "out").exists()


def test_the_one_binary_file_of_a_folder_is_named(job: Command, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(lines())
    (tmp_path / "b.pdf").write_bytes(b"%PDF\0")
    job("--input", tmp_path, "--output", tmp_path / "out").assert_refused(str(tmp_path / "b.pdf"), "binary")


@pytest.mark.parametrize("name", ["folder", "folder/text.txt", "text.txt"])
def test_input_that_may_not_be_read_is_refused(name: str) -> None:
    with world_readable_folder() as folder:
        (folder / "folder").mkdir()
        for path in (folder / "folder" / "text.txt", folder / "text.txt"):
            path.write_text(lines())
            path.chmod(0)
        (folder / "folder").chmod(0)
        with unprivileged(), pytest.raises(InputError, match=r"--input .*[Pp]ermission denied"):
            text(folder / name)
        (folder / "folder").chmod(0o700)


@contextmanager
def world_readable_folder() -> Iterator[Path]:
    """Not below pytest's own, which nobody else may enter."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def unprivileged() -> Iterator[None]:
    """As somebody whom permissions bind; root is not."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


# The output


@pytest.mark.parametrize(
    "below", ["", "out", "a/b/out", "x" * 300], ids=["a file", "below it", "deep below it", "long"]
)
def test_an_output_that_cannot_be_made_is_refused_before_spark_starts(
    job: Command, sentences: Path, tmp_path: Path, below: str
) -> None:
    output = tmp_path / below if len(below) > 255 else sentences / below
    before = tree(tmp_path)
    job("--input", sentences, "--output", output).assert_refused("--output", str(output))
    assert tree(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True], ids=["", "--overwrite"])
def test_a_folder_of_somebody_elses_files_is_refused_and_left_as_it_is(
    job: Command, sentences: Path, tmp_path: Path, overwrite: bool
) -> None:
    """Above all, what its folders begin with does not make them generations of ours."""
    for name in ("notes.txt", "gen-etics/results.csv"):
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text("mine")
    before = tree(tmp_path / "mine")
    flags = ["--overwrite"] if overwrite else []
    job("--input", sentences, "--output", tmp_path / "mine", *flags).assert_refused("--output", str(tmp_path / "mine"))
    assert tree(tmp_path / "mine") == before


def test_an_empty_output_is_refused(
    job: Command, sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job("--input", sentences, "--output", "").assert_refused("--output")


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(text, dataset): what ``--input TEXT --output DATASET`` and SMALL make. No test changes it."""
    folder = tmp_path_factory.mktemp("prepared")
    (folder / "text.txt").write_text(lines())
    prepare(spark, text(folder / "text.txt"), SMALL_CONFIG, folder / "out")
    return folder / "text.txt", folder / "out"


@pytest.fixture
def output(prepared: tuple[Path, Path], tmp_path: Path) -> Path:
    """A copy of the prepared dataset."""
    return Path(shutil.copytree(prepared[1], tmp_path / "out"))


def test_the_same_command_twice_says_so_and_starts_no_spark(
    job: Command, prepared: tuple[Path, Path], output: Path
) -> None:
    before = tree(output)
    ended = job("--input", prepared[0], "--output", output, *SMALL)
    assert (ended.code, ended.stderr) == (0, "")
    assert "already there" in ended.stdout
    assert tree(output) == before


def test_a_preset_is_another_name_of_the_settings_that_follow_from_it(
    job: Command, prepared: tuple[Path, Path], output: Path
) -> None:
    same = *SMALL, "--preset", "items", "--window-kind", "dynamic", "--ns-exponent", "0.75"
    assert "already there" in job("--input", prepared[0], "--output", output, *same).stdout
    other = job("--input", prepared[0], "--output", output, *SMALL, "--preset", "items")
    other.assert_refused("--window-kind dynamic, now fixed", "--overwrite")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--window", "3"], "--window 2 now 3"),
        (["--sample", "1e-4", "--seed", "7"], "--sample 0 now 0.0001 --seed 0 now 7"),
        (["--epochs", "2"], "--epochs 1 now 2"),
        (["--max-vocab", "20"], "--max-vocab None now 20"),
    ],
)
def test_another_config_is_refused_and_its_flags_named(
    job: Command, prepared: tuple[Path, Path], output: Path, flags: list[str], words: str
) -> None:
    before = tree(output)
    ended = job("--input", prepared[0], "--output", output, *SMALL, *flags)
    ended.assert_refused("--overwrite", str(output), *words.split())
    assert tree(output) == before


def test_another_corpus_is_refused(job: Command, sentences: Path, output: Path) -> None:
    before = tree(output)
    ended = job("--input", sentences, "--output", output, *SMALL)
    ended.assert_refused("--overwrite", str(output), "corpus")
    assert tree(output) == before


def damage_nothing(_: Path) -> None:
    pass


def drop_shard(dataset: Path) -> None:
    (dataset / Manifest.load(dataset).shards[0].path).unlink()


def halve_manifest(dataset: Path) -> None:
    path = dataset / "manifest.json"
    path.write_text(path.read_text()[:200])


def newer_manifest(dataset: Path) -> None:
    path = dataset / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))


@pytest.mark.parametrize("damage", [drop_shard, halve_manifest, newer_manifest])
def test_a_damaged_dataset_is_not_taken_for_one_that_is_there(
    job: Command, prepared: tuple[Path, Path], output: Path, damage: Callable[[Path], None]
) -> None:
    damage(output)
    before = tree(output)
    job("--input", prepared[0], "--output", output, *SMALL).assert_refused(str(output))
    assert tree(output) == before


@pytest.mark.parametrize("damage", [damage_nothing, pytest.param(drop_shard, marks=pytest.mark.long), halve_manifest])
def test_overwriting_replaces_a_dataset_whatever_its_state(
    spark_job: Command, prepared: tuple[Path, Path], output: Path, damage: Callable[[Path], None]
) -> None:
    """And what a killed run has left goes with it."""
    (output / "gen-0123456789ab").mkdir()
    damage(output)
    ended = spark_job("--input", prepared[0], "--output", output, *SMALL, "--overwrite", "--seed", "5")
    assert (ended.code, ended.stderr) == (0, "")
    manifest = Manifest.load(output)
    manifest.check_files(output)
    assert manifest.config.seed == 5
    assert sorted(path.name for path in output.iterdir()) == sorted(["manifest.json", manifest.generation])


# What only Spark finds


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--min-count 100000", "no word --min-count 100000 1600 tokens"),
        ("--window 15", "30 words more than 30 --window --min-count"),
        ("--max-vocab 3", "3 words more than 4"),
        ("--window sequence", "30 words more than 50 --window --min-count"),
        ("--sample 1e-30", "no line"),
    ],
)
def test_a_corpus_that_gives_nothing_is_refused_and_the_old_dataset_kept(
    spark_job: Command, prepared: tuple[Path, Path], output: Path, flags: str, words: str
) -> None:
    before = tree(output)
    ended = spark_job("--input", prepared[0], "--output", output, *SMALL, "--overwrite", *flags.split())
    ended.assert_refused(*words.split())
    assert tree(output) == before


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b" \n\t\n\n", "no tokens"),
        (b"<unk> <unk>\n" * 20, "no word"),
        (b"".join(b"w%d\n" % (i % 30) for i in range(900)), "no line two known words"),
    ],
    ids=["blank", "unknown only", "one word a line"],
)
def test_a_text_that_gives_nothing_is_refused_and_leaves_no_folder(
    spark_job: Command, tmp_path: Path, content: bytes, words: str
) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    ended = spark_job("--input", tmp_path / "text.txt", "--output", tmp_path / "out", *SMALL)
    ended.assert_refused(*words.split())
    assert tree(tmp_path) == {"text.txt": content}


def test_an_empty_output_folder_stays_when_nothing_comes_of_it(
    spark_job: Command, sentences: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    before = tree(tmp_path)
    assert spark_job("--input", sentences, "--output", tmp_path / "out", *SMALL, "--min-count", "9999").code == 2
    assert tree(tmp_path) == before


def test_a_gzip_that_is_cut_off_behind_its_beginning_is_named(spark_job: Command, tmp_path: Path) -> None:
    content = gzip.compress(lines(num_lines=20_000).encode())
    path = tmp_path / "cut [1] 100%.txt.gz"
    path.write_bytes(content[: len(content) // 2])
    before = tree(tmp_path)
    ended = spark_job("--input", path, "--output", tmp_path / "out", *SMALL)
    ended.assert_refused("--input", str(path))
    assert tree(tmp_path) == before


def test_invalid_utf8_is_mended_counted_and_said(spark_job: Command, tmp_path: Path) -> None:
    broken = [b"w1 caf\xe9 w2\n"] * 3 + [b"\xff\xfe w3 w4\n", b"w5 \xc3\x28 w6\n"]
    (tmp_path / "text.txt").write_bytes(lines().encode() + b"".join(broken))
    ended = spark_job("--input", tmp_path / "text.txt", "--output", tmp_path / "out", *SMALL)
    assert (ended.code, ended.stderr) == (0, "")
    assert Manifest.load(tmp_path / "out").counts.invalid_utf8_lines == 5
    assert "5 lines were not valid UTF-8" in ended.stdout


def test_what_looks_odd_but_is_legal_works(spark_job: Command, sentences: Path, tmp_path: Path) -> None:
    flags = "--sample 0 --seed -7 --max-sentence-length 2 --window 1 --negatives 1"
    ended = spark_job("--input", sentences, "--output", tmp_path / "out", *SMALL, *flags.split())
    assert (ended.code, ended.stderr) == (0, "")
    manifest = Manifest.load(tmp_path / "out")
    manifest.check_files(tmp_path / "out")
    assert manifest.counts.subsampled == 0


NAMES = {
    "[x].txt": "x.txt",
    "[!a].txt": "b.txt",
    "a*b.txt": "a-b.txt",
    "q?.txt": "qq.txt",
    "{a,b}.txt": "a.txt",
    "back\\slash.txt": "backslash.txt",
    "per%20cent.txt": "per cent.txt",
    "hash#1.txt": "hash",
    "co,mma.txt": "co",
    "caf\u00e9 \u4f60.txt": "cafe.txt",
    "key=value.txt": "key",
    " led by a space.txt": "led by a space.txt",
    "quote's \".txt": "quotes.txt",
}
"""Odd names, and beside each what a pattern or a careless decoding would find in its place."""


def test_the_file_that_is_named_is_read_and_no_other(spark: SparkSession, tmp_path: Path) -> None:
    folder = tmp_path / "[a]*? {b,c} %20"
    folder.mkdir()
    for number, (name, lure) in enumerate(NAMES.items()):
        (folder / name).write_text(f"right {number}\n")
        (folder / lure).write_text(f"wrong {number}\n")
    read = [text(folder / name).read(spark).select(F.lit(name), "value") for name in NAMES]
    found = [(name, value) for name, value in reduce(DataFrame.union, read).collect()]
    assert sorted(found) == sorted((name, f"right {number}") for number, name in enumerate(NAMES))
    assert text(folder).read(spark).count() == 2 * len(NAMES)


def test_odd_names_work_from_end_to_end(spark_job: Command, tmp_path: Path) -> None:
    (tmp_path / "in [1] *").mkdir()
    (tmp_path / "in [1] *" / "text ? {a,b}.txt").write_text(lines())
    flags = ["--input", tmp_path / "in [1] *" / "text ? {a,b}.txt", "--output", tmp_path / "out [x] *%20"]
    assert spark_job(*flags, *SMALL).code == 0
    assert "already there" in spark_job(*flags, *SMALL).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in [1] *", "out [x] *%20"]


# Being stopped


def test_an_interrupt_ends_with_130_and_one_line(
    spark_job: Command, sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> Manifest:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "prepare", interrupt)
    ended = spark_job("--input", sentences, "--output", tmp_path / "out")
    assert (ended.code, len(ended.stderr.splitlines())) == (130, 1)


def test_an_interrupt_just_after_the_new_manifest_leaves_a_dataset_that_is_whole(
    spark: SparkSession, sentences: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Manifest.save

    def save_and_be_interrupted(manifest: Manifest, dataset: Path) -> None:
        save(manifest, dataset)
        raise KeyboardInterrupt

    monkeypatch.setattr(Manifest, "save", save_and_be_interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(spark, text(sentences), SMALL_CONFIG, output)
    Manifest.load(output).check_files(output)


def test_a_manifest_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_tiny_dataset(tmp_path)
    before = tree(tmp_path)

    def disk_full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.raises(OSError, match="No space"):
        replace(manifest, versions={}).save(tmp_path)
    assert tree(tmp_path) == before


# Penn Treebank, downloaded

PUBLISHED = b"the published text\n" * 1000


def zipped(name: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


RIGHT_ZIP = zipped("ptb/ptb.train.txt", PUBLISHED)
ANSWERS = {
    "/right.txt": PUBLISHED,
    "/wrong.txt": b"another text\n",
    "/empty.txt": b"",
    "/login.txt": b"<html>Please log in to the wireless network</html>",
    "/right.zip": RIGHT_ZIP,
    "/cut.zip": RIGHT_ZIP[: len(RIGHT_ZIP) // 2],
    "/flipped.zip": RIGHT_ZIP[:60] + bytes(b ^ 255 for b in RIGHT_ZIP[60:70]) + RIGHT_ZIP[70:],
    "/bomb.zip": zipped("ptb/ptb.train.txt", b"the published text\n" * (8 << 20)),
    "/other.zip": zipped("ptb/readme", b"nothing"),
    "/login.zip": b"<html>Please log in to the wireless network</html>",
}


class Handler(BaseHTTPRequestHandler):
    """Answers as ANSWERS has it, or badly."""

    def do_GET(self) -> None:
        content = ANSWERS.get(self.path)
        if self.path == "/hang.txt":
            self.server.stopped.wait(20)  # type: ignore[attr-defined]
        elif self.path == "/not-http.txt":
            self.wfile.write(b"220 mail.example.com ESMTP\r\n")
        elif self.path == "/cut.txt":
            self.answer(PUBLISHED[:500], len(PUBLISHED))
        elif self.path == "/chunks.txt":
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"ff\r\nnot as many")
        elif content is None:
            self.send_error(404)
        else:
            self.answer(content, len(content))

    def answer(self, content: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a server of our own."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.stopped = threading.Event()  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.stopped.set()  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """PUBLISHED in PTB's place, and patience of a third of a second."""
    monkeypatch.setattr(ptb_module, "PTB_SHA256", ptb_module._sha256(PUBLISHED))
    monkeypatch.setattr(ptb_module, "TIMEOUT_S", 0.3)
    monkeypatch.setenv("no_proxy", "*")


BAD = ["missing.txt", "wrong.txt", "empty.txt", "login.txt", "cut.txt", "chunks.txt", "not-http.txt", "hang.txt"]
BAD_ZIPS = ["missing.zip", "bomb.zip", "cut.zip", "flipped.zip", "other.zip", "login.zip"]


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", BAD + BAD_ZIPS)
def test_a_bad_answer_is_refused_and_nothing_cached(server: str, tmp_path: Path, name: str) -> None:
    begin = time.monotonic()
    with pytest.raises(InputError, match="--input") as refused:
        ptb(None, tmp_path / "cache" / "ptb.train.txt", [f"{server}/{name}"])
    assert time.monotonic() - begin < 5
    assert f"{server}/{name}" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("name", BAD + BAD_ZIPS)
@pytest.mark.parametrize("good", ["right.zip", "right.txt"])
def test_the_second_address_is_asked_when_the_first_fails(
    server: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, good: str
) -> None:
    cache = tmp_path / "cache" / "ptb.train.txt"
    with caplog.at_level(logging.INFO):
        found = ptb(None, cache, [f"{server}/{name}", f"{server}/{good}"])
    assert found.paths == (str(cache),)
    assert tree(tmp_path / "cache") == {"ptb.train.txt": PUBLISHED}
    assert f"downloading {server}/{good}" in caplog.messages


@pytest.mark.usefixtures("published")
def test_an_archive_is_not_unpacked_beyond_a_limit(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    digest = ptb_module._sha256
    monkeypatch.setattr(ptb_module, "MAX_BYTES", 1 << 20)

    def noted(content: bytes) -> str:
        seen.append(len(content))
        return digest(content)

    monkeypatch.setattr(ptb_module, "_sha256", noted)
    with pytest.raises(InputError, match="SHA-256"):
        ptb(None, tmp_path / "cache", [f"{server}/bomb.zip"])
    assert seen == [1 << 20]


def test_downloads_are_encrypted() -> None:
    assert [url for url in ptb_module.PTB_URLS if not url.startswith("https://")] == []


@pytest.mark.usefixtures("published")
def test_every_address_and_its_failure_is_named(server: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        ptb(None, tmp_path / "cache", [f"{server}/missing.txt", f"{server}/wrong.txt", "http://127.0.0.1:9/none"])
    found = str(refused.value)
    words = ["missing.txt: ", "Not Found", "wrong.txt: ", "SHA-256", "127.0.0.1:9/none: ", "refused", "--input FILE"]
    assert [word for word in words if word not in found] == []


@pytest.mark.usefixtures("published")
def test_a_right_cached_copy_is_used_without_asking(tmp_path: Path) -> None:
    (tmp_path / "cache").write_bytes(PUBLISHED)
    assert ptb(None, tmp_path / "cache", ["http://127.0.0.1:9/none"]).paths == (str(tmp_path / "cache"),)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("content", [b"", PUBLISHED[:-1], PUBLISHED + b"more\n"], ids=["empty", "shorter", "longer"])
def test_a_damaged_cached_copy_is_named_and_left_as_it_is(server: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "cache").write_bytes(content)
    with pytest.raises(InputError, match=r"cache: .*SHA-256 differs.*remove it.*--input"):
        ptb(None, tmp_path / "cache", [f"{server}/right.txt"])
    assert tree(tmp_path) == {"cache": content}


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize("cache", ["file/cache/ptb.train.txt", "file/ptb.train.txt", "folder"])
def test_a_cache_that_cannot_be_written_is_refused(server: str, tmp_path: Path, cache: str) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    before = tree(tmp_path)
    with pytest.raises(InputError, match=cache):
        ptb(None, tmp_path / cache, [f"{server}/right.txt"])
    assert tree(tmp_path) == before


# Processes of their own


def start(command: list[str]) -> Ended:
    """Runs a command in a process of its own."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def test_the_script_itself_ends_with_2_and_one_line(tmp_path: Path) -> None:
    ended = start([sys.executable, PREPARE, "--input", str(tmp_path / "none"), "--output", str(tmp_path / "out")])
    ended.assert_refused("--input", str(tmp_path / "none"), "not found")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--window 0", "--window: found 0"),
        pytest.param("--min-count 9999", "--min-count 9999", marks=pytest.mark.long),
    ],
    ids=["before Spark starts", "by Spark"],
)
def test_spark_submit_ends_with_2_and_our_line_last(sentences: Path, tmp_path: Path, flags: str, says: str) -> None:
    """It moves what Python writes to stderr into stdout; stderr is Spark's own."""
    before = tree(tmp_path)
    spark_submit = str(Path(sys.executable).with_name("spark-submit"))
    given = ["--input", str(sentences), "--output", str(tmp_path / "out"), *flags.split()]
    ended = start([spark_submit, PREPARE, *given])
    found = ended.stdout.splitlines()
    assert ended.code == 2
    assert "Traceback" not in ended.stdout + ended.stderr
    assert [line for line in found if line.startswith("error: ")] == found[-1:], ended.stdout
    assert says in found[-1]
    assert tree(tmp_path) == before


# What is printed


def said(job: Command, sentences: Path, tmp_path: Path, *flags: str) -> list[str]:
    """The lines of a preparation that went well, and nothing on stderr."""
    ended = job("--input", sentences, "--output", tmp_path / "out", *SMALL, "--overwrite", *flags)
    assert (ended.code, ended.stderr) == (0, "")
    return ended.stdout.splitlines()


def test_what_is_about_to_happen_is_said_before_the_long_work(
    spark_job: Command, sentences: Path, tmp_path: Path
) -> None:
    """The settings, the width of a row, what is read, and what will be written, each with its arithmetic."""
    lines = said(spark_job, sentences, tmp_path, "--epochs", "2")
    assert lines[0].startswith(f"{tmp_path / 'out'} from {sentences}")
    assert (
        "preset words, window 2, window_kind dynamic, window_side both, negatives 5, min_count 2, sample 0.0,"
        in lines[1]
    )
    assert "rows of 4 contexts x (1 + 5) = 24" in lines[1]
    assert lines[2] == "counting words in 1 file(s) of 0.0 MB"
    forecast = next(number for number, line in enumerate(lines) if line.startswith("about "))
    assert lines[forecast].startswith("about 1,600 examples an epoch x 2 epoch(s) x at most about 31 bytes = 0.1 MB; ")
    assert "less than a minute in all on 2 cores" in lines[forecast]
    assert lines[forecast] == lines[4]


def test_quiet_prints_the_last_line_and_what_was_not_right_and_verbose_adds_times(
    spark_job: Command, sentences: Path, tmp_path: Path
) -> None:
    usual, verbose = said(spark_job, sentences, tmp_path), said(spark_job, sentences, tmp_path, "-v")
    stages = "counting", "writing the vocabulary and its tables", "shuffling, sampling and writing"
    timed = [line for line in verbose if line.startswith(tuple(f"{stage} took " for stage in stages))]
    assert len(timed) == len(stages)
    assert [line for line in verbose[:-1] if line not in timed] == usual[:-1]
    sentences.write_bytes(sentences.read_bytes() + b"caf\xe9 w1 w2\n")
    remark, last = said(spark_job, sentences, tmp_path, "-q")
    assert remark.startswith("1 lines were not valid UTF-8")
    assert last.startswith(f"{tmp_path / 'out'}: dataset ")
    assert usual[-1].startswith(f"{tmp_path / 'out'}: dataset ")


@pytest.mark.parametrize(
    ("num_words", "bytes_seen"), [(6719, 59.5), (45_289, 91.7), (2002, 51.7)], ids=["ptb", "wikipedia", "demo"]
)
def test_the_bytes_that_are_foretold_are_at_least_those_that_are_written_and_half_as_much_again_at_most(
    num_words: int, bytes_seen: float
) -> None:
    """Those of README, docs/scaling.md and the demo corpus."""
    foretold = bytes_an_example(num_words, PipelineConfig())
    assert bytes_seen <= foretold <= 1.5 * bytes_seen


def test_the_time_that_is_foretold_is_that_of_the_documents() -> None:
    """docs/scaling.md: 17 M tokens in 22.2 core-seconds, 70 M in 60.9."""
    assert core_seconds(16_940_000, 1) == pytest.approx(22.2, rel=0.05)
    assert core_seconds(70_000_000, 1) == pytest.approx(60.9, rel=0.05)
    assert core_seconds(10**9, 3) - core_seconds(10**9, 1) == pytest.approx(2 * 0.26e-6 * 10**9)


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (187_344, "190,000"),
        (94, "94"),
        (0.138, "0.1"),
        (12.6, "13"),
        (0.04, "0.04"),
        (0.0, "0"),
        (999_999, "1,000,000"),
    ],
)
def test_a_foretold_number_has_two_digits_at_most(number: float, text: str) -> None:
    assert rounded(number) == text
