"""Laws of jobs/prepare.py: the same sequences give the same bytes from any format; bad input is named and counted."""

import bz2
import gzip
import json
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, Command, Ended
from pyspark.sql import SparkSession

from pipeline import stages
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.text.corpus import corpus, exact_names, text

SMALL = ("--window", "2", "--min-count", "2", "--sample", "0", "--num-shards", "2")


RNG = random.Random(0)
SEQUENCES = [[str(RNG.randrange(40)) for _ in range(RNG.randrange(1, 9))] for _ in range(400)]
LINES = [" ".join(sequence) for sequence in SEQUENCES]
TEXT = "".join(f"{line}\n" for line in LINES).encode()


def write_parquet(path: Path, values: list[Any], kind: pa.DataType) -> None:
    pq.write_table(pa.table({"id": list(range(len(values))), "items": pa.array(values, kind)}), path)


def write_json(path: Path, values: list[Any]) -> None:
    path.write_text("".join(json.dumps({"id": 1, "items": value, "other": None}) + "\n" for value in values))


def integers() -> list[list[int]]:
    return [[int(word) for word in sequence] for sequence in SEQUENCES]


def two_files(folder: Path) -> None:
    (folder / "a").write_bytes(TEXT[: TEXT.index(b"\n", 1000) + 1])
    (folder / "b.bz2").write_bytes(bz2.compress(TEXT[TEXT.index(b"\n", 1000) + 1 :]))


def zstandard(folder: Path) -> None:
    with pa.output_stream(str(folder / "x.zst"), compression="zstd") as file:
        file.write(TEXT)


FORMATS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "plain": (lambda folder: (folder / "x.txt").write_bytes(TEXT), []),
    "gzip": (lambda folder: (folder / "x.gz").write_bytes(gzip.compress(TEXT)), []),
    "zstd": (zstandard, []),
    "two files, one bz2": (two_files, []),
    "mixed line ends": (
        lambda folder: (folder / "x").write_bytes(
            b"".join(line.encode() + (b"\n", b"\r\n", b"\r")[i % 3] for i, line in enumerate(LINES))
        ),
        [],
    ),
    "parquet strings": (
        lambda folder: write_parquet(folder / "x.parquet", LINES, pa.string()),
        ["--format", "parquet", "--column", "items"],
    ),
    "parquet bytes": (
        lambda folder: write_parquet(folder / "x.parquet", [line.encode() for line in LINES], pa.binary()),
        ["--format", "parquet", "--column", "items"],
    ),
    "parquet arrays": (
        lambda folder: write_parquet(folder / "x.parquet", SEQUENCES, pa.list_(pa.string())),
        ["--format", "parquet", "--column", "items"],
    ),
    "parquet integers": (
        lambda folder: write_parquet(folder / "x.parquet", integers(), pa.list_(pa.int16())),
        ["--format", "parquet", "--column", "items"],
    ),
    "json strings": (lambda folder: write_json(folder / "x.json", LINES), ["--format", "json", "--column", "items"]),
    "json arrays": (
        lambda folder: (folder / "x.json.gz").write_bytes(
            gzip.compress("".join(json.dumps({"items": s}) + "\n" for s in SEQUENCES).encode())
        ),
        ["--format", "json", "--column", "items"],
    ),
    "json integers": (
        lambda folder: write_json(folder / "x.json", integers()),
        ["--format", "json", "--column", "items"],
    ),
}


@pytest.fixture(scope="module")
def made_before(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset of the text."""
    folder = tmp_path_factory.mktemp("expected")
    (folder / "x.txt").write_bytes(TEXT)
    config = PipelineConfig(window=2, min_count=2, sample=0, num_shards=2)
    stages.prepare(spark, text(folder / "x.txt"), config, folder / "out")
    return folder / "out"


@pytest.fixture(scope="module")
def expected(made_before: Path) -> Manifest:
    return Manifest.load(made_before)


LONG = {"plain", "gzip", "zstd", "parquet strings", "parquet bytes", "parquet arrays", "json strings", "json integers"}
"""Another compression, or another type of column, of a format that the others have."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in LONG else name for name in FORMATS]
)
def test_the_same_sequences_give_the_same_dataset_from_any_format(
    job: Command, tmp_path: Path, expected: Manifest, name: str
) -> None:
    (tmp_path / "in").mkdir()
    write, flags = FORMATS[name]
    write(tmp_path / "in")
    ended = job("--input", tmp_path / "in", "--output", tmp_path / "out", *flags, *SMALL)
    assert (ended.code, ended.stderr) == (0, ""), ended.stderr
    made = Manifest.load(tmp_path / "out")
    assert made.dataset_id == expected.dataset_id
    assert (made.counts.lines, made.counts.tokens) == (400, expected.counts.tokens)
    again = job("--input", tmp_path / "in", "--output", tmp_path / "out", *flags, *SMALL)
    assert "already there" in again.stdout


def test_several_inputs_and_patterns_are_one_corpus(job: Command, tmp_path: Path, expected: Manifest) -> None:
    for number, name in enumerate(["days/1/a.txt", "days/2/a.txt", "more.txt", "days/2/b.txt"]):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("".join(f"{line}\n" for line in LINES[number::4]))
    inputs = [tmp_path / "days" / "*", tmp_path / "more.txt"]
    assert job("--input", *inputs, "--output", tmp_path / "out", *SMALL).code == 0
    assert Manifest.load(tmp_path / "out").dataset_id == expected.dataset_id


@pytest.fixture
def remote(spark: SparkSession, tmp_path: Path) -> str:
    """A URI of a folder that only Spark's Java can open: a mount of Hadoop's, of a folder of this machine."""
    (tmp_path / "mounted").mkdir()
    host = tmp_path.name.replace("_", "-")  # Java keeps a file system for each host
    mounts = spark.sparkContext._jsc.hadoopConfiguration()
    mounts.set(f"fs.viewfs.mounttable.{host}.link./data", f"file:{tmp_path}/mounted")
    return f"VIEWFS://{host}/data"


def test_an_input_by_uri_is_read_by_spark(job: Command, tmp_path: Path, expected: Manifest, remote: str) -> None:
    (tmp_path / "mounted" / "x.txt").write_bytes(TEXT)
    flags = ["--input", f"{remote}/*.txt", "--output", tmp_path / "out", *SMALL]
    ended = job(*flags)
    assert (ended.code, ended.stderr) == (0, ""), ended.stderr
    assert Manifest.load(tmp_path / "out").dataset_id == expected.dataset_id
    assert "already there" in job(*flags).stdout
    (tmp_path / "mounted" / "y.txt").write_bytes(TEXT)
    job(*flags).assert_refused("corpus", "--overwrite")


@pytest.mark.parametrize("format", ["text", "json", "parquet"])
def test_a_folder_by_uri_is_what_the_same_folder_is_here(
    job: Command, spark: SparkSession, tmp_path: Path, remote: str, format: str
) -> None:
    """Spark itself would go into folders ``key=value``, add their keys as columns, and read a file for each naming."""
    folder = tmp_path / "mounted"
    write: dict[str, Callable[[Path, list[list[str]]], object]] = {
        "text": lambda path, values: path.write_text("".join(f"{' '.join(words)}\n" for words in values)),
        "json": write_json,
        "parquet": lambda path, values: write_parquet(path, values, pa.list_(pa.string())),
    }
    for name, values in (
        ("a b", SEQUENCES[:200]),
        ("[c]", SEQUENCES[200:]),
        ("_d", [["x", "y"]]),
        ("k=1/e", [["x", "y"]]),
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        write[format](folder / name, values)
    column = None if format == "text" else "items"
    words: dict[str, Callable[[Any], list[str]]] = {
        "text": str.split,
        "json": lambda line: json.loads(line)["items"],
        "parquet": list,
    }

    def rows(*given: str) -> list[list[str]]:
        with exact_names(spark):
            read = corpus(list(given), format, column).read(spark)
            assert read.columns == ["value"]
            return sorted(words[format](row) for (row,) in read.collect())

    assert rows(remote) == rows(str(folder)) == sorted(SEQUENCES)
    assert rows(remote, f"{remote}/*") == sorted([*SEQUENCES, ["x", "y"]])  # the pattern matches the folder k=1 too
    flags = ["--format", format] + (["--column", "items"] if column else [])
    job("--input", f"{remote}/**", "--output", tmp_path / "other", *flags).assert_refused("--input", "**")


@pytest.mark.parametrize(
    "names",
    [
        ["a [1].parquet", "b {2,3}.parquet"],
        pytest.param(["b {2,3}.parquet", "a [1].parquet"], marks=pytest.mark.long),
    ],
)
def test_parquet_by_uri_is_read_by_the_type_of_each_file(
    job: Command, tmp_path: Path, expected: Manifest, remote: str, names: list[str]
) -> None:
    half = len(SEQUENCES) // 2
    kinds = (pa.list_(pa.uint64()), pa.list_(pa.int16()))
    for name, kind, part in zip(names, kinds, (integers()[:half], integers()[half:]), strict=True):
        write_parquet(tmp_path / "mounted" / name, part, kind)
    flags = ["--input", remote, "--output", tmp_path / "out", "--format", "parquet", "--column", "items", *SMALL]
    ended = job(*flags)
    assert (ended.code, ended.stderr) == (0, ""), ended.stderr
    assert Manifest.load(tmp_path / "out").dataset_id == expected.dataset_id
    (tmp_path / "mounted" / "_delta_log").mkdir()
    job(*flags, "--overwrite").assert_refused("--input", remote, "Delta")
    (tmp_path / "mounted" / "_delta_log").rmdir()
    (tmp_path / "mounted" / "c.parquet").write_bytes(b"no Parquet")
    job(*flags, "--overwrite").assert_refused("--input", "c.parquet", "Parquet")


@pytest.mark.parametrize(
    "what",
    [pytest.param("appended", marks=pytest.mark.long), "rewritten", "replaced", "removed", "appended by URI"],
)
def test_a_corpus_that_changes_between_the_passes_is_refused(
    job: Command, tmp_path: Path, made_before: Path, remote: str, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The old dataset stays. Without the comparison, words were counted that no example can have, or the reverse."""
    path = tmp_path / "mounted" / "x.txt"
    path.write_bytes(TEXT)
    flags = ["--input", f"{remote}/x.txt" if "URI" in what else path, "--output", tmp_path / "out", *SMALL]
    shutil.copytree(made_before, tmp_path / "out")
    before = Manifest.load(tmp_path / "out")
    encode_words = stages.encode_words

    def change(*arguments: Any) -> Any:
        if what == "removed":
            path.unlink()
        elif what == "replaced":  # by a file of equal size and time, as rsync -t does
            times = path.stat()
            (tmp_path / "other").write_bytes(TEXT.replace(b"1", b"2"))
            os.utime(tmp_path / "other", ns=(times.st_atime_ns, times.st_mtime_ns))
            (tmp_path / "other").replace(path)
        elif what == "rewritten":
            path.write_bytes(TEXT.replace(b"1", b"2"))
        else:
            path.write_bytes(TEXT + b"1 2 3\n" * 80)
        return encode_words(*arguments)

    monkeypatch.setattr(stages, "encode_words", change)
    ended = job(*flags, "--seed", "1", "--overwrite")
    ended.assert_refused("--input", "x.txt", "" if what == "removed" else "changed while it was read")
    assert Manifest.load(tmp_path / "out") == before
    assert [entry.name for entry in (tmp_path / "out").iterdir() if entry.name.startswith("gen")] == [before.generation]


def test_what_gives_few_examples_is_said(job: Command, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(TEXT + b"1\n\n" + b"1 2 3 4 5 6 7 8 9\n" * 3)
    flags = ["--input", tmp_path / "x.txt", "--output", tmp_path / "out", *SMALL, "--max-sentence-length", "8"]
    told = job(*flags).stdout
    counts = Manifest.load(tmp_path / "out").counts
    assert (counts.cut, counts.too_short) == (3, sum(len(words) < 2 for words in SEQUENCES) + 5)
    assert "3 lines were cut into pieces of 8 tokens" in told
    assert f"{counts.too_short} lines or pieces of lines had fewer than two tokens" in told


def test_a_corpus_that_subsampling_empties_is_told_what_keeps_it(job: Command, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"1 2 3 4 5 6\n" * 100)
    flags = ["--input", tmp_path / "x.txt", "--output", tmp_path / "out", *SMALL, "--sample", "1e-12"]
    job(*flags).assert_refused("no line gave an example", "--sample 0")


def test_words_are_lower_cased_unless_told_otherwise(job: Command, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("The cat, the Dog; don't (cat) the end.\n" * 20)
    flags = ["--input", tmp_path / "x.txt", "--tokenizer", "words", "--window", "1", "--min-count", "1"]
    flags += ["--sample", "0", "--num-shards", "1"]
    for lower, words in (
        ([], ["the", "cat", "dog", "don't", "end"]),
        (["--no-lowercase"], ["cat", "the", "Dog", "The", "don't", "end"]),
    ):
        out = tmp_path / f"out{len(lower)}"
        assert job(*flags, "--output", out, *lower).code == 0
        manifest = Manifest.load(out)
        assert Vocab.read(out / manifest.vocab_path).words.to_pylist()[1:] == words
        assert manifest.config.tokenizer == "words"


# Bad input


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (pa.float64(), 1.5, "items double string"),
        (pa.int64(), 3, "items bigint string"),
        (pa.list_(pa.float32()), [1.0], "items array<float>"),
        (pa.struct([("a", pa.string())]), {"a": "x"}, "items struct"),
    ],
)
def test_a_column_of_the_wrong_type_is_refused(
    job: Command, tmp_path: Path, kind: pa.DataType, value: Any, words: str
) -> None:
    write_parquet(tmp_path / "x.parquet", [value] * 3, kind)
    flags = ["--format", "parquet", "--column", "items"]
    ended = job("--input", tmp_path / "x.parquet", "--output", tmp_path / "out", *flags)
    ended.assert_refused("--column", "expected", *words.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", ["parquet", "json"])  # a new format with columns belongs here
def test_a_column_that_is_not_there_is_refused_and_those_that_are_named(
    job: Command, tmp_path: Path, format: str
) -> None:
    if format == "parquet":
        write_parquet(tmp_path / "x", LINES, pa.string())
    else:
        write_json(tmp_path / "x", LINES)
    flags = ["--input", tmp_path / "x", "--output", tmp_path / "out", "--format", format]
    job(*flags, "--column", "words").assert_refused("--column", "words", "id", "items")
    job(*flags).assert_refused("--column", format)
    assert not (tmp_path / "out").exists()


def test_a_column_of_text_is_refused(job: Command, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(TEXT)
    ended = job("--input", tmp_path / "x", "--output", tmp_path / "out", "--column", "items")
    ended.assert_refused("--column", "items", "text")


def test_nulls_are_skipped_counted_and_said(job: Command, tmp_path: Path) -> None:
    values = [*SEQUENCES, None, ["1", None, "2"], None, [], ["", "1", "2"]]
    write_parquet(tmp_path / "x.parquet", values, pa.list_(pa.string()))
    flags = ["--format", "parquet", "--column", "items"]
    ended = job("--input", tmp_path / "x.parquet", "--output", tmp_path / "out", *flags, *SMALL)
    counts = Manifest.load(tmp_path / "out").counts
    assert (counts.lines, counts.nulls) == (405, 4)
    assert "4 rows or tokens without a value were skipped" in ended.stdout


def test_json_lines_that_are_none_are_skipped_and_counted(job: Command, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", SEQUENCES)
    with (tmp_path / "x.json").open("a") as file:
        file.write('{"items": ["1", "2"\nnot json at all\n{"other": 3}\n' + '{"items": []}\n' * 700)
        file.write('{"items": "a string where arrays were"}\n')
    flags = ["--format", "json", "--column", "items"]
    job("--input", tmp_path / "x.json", "--output", tmp_path / "out", *flags, *SMALL)
    counts = Manifest.load(tmp_path / "out").counts
    assert (counts.lines, counts.nulls) == (1104, 4)


def test_json_of_mixed_kinds_is_refused(job: Command, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", [*SEQUENCES, *LINES])
    flags = ["--format", "json", "--column", "items"]
    ended = job("--input", tmp_path / "x.json", "--output", tmp_path / "out", *flags, *SMALL)
    ended.assert_refused("--column", "items", "array<string> and string")


def test_a_damaged_parquet_file_is_named(job: Command, tmp_path: Path) -> None:
    """One that has no footer before Spark starts; one that only reading finds while it runs."""
    for name in ("a.parquet", "b.parquet"):
        write_parquet(tmp_path / name, SEQUENCES, pa.list_(pa.string()))
    flags = ["--input", tmp_path, "--output", tmp_path / "out", "--format", "parquet", "--column", "items", *SMALL]
    whole = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(whole[: len(whole) // 2])
    job(*flags).assert_refused("--input", str(tmp_path / "b.parquet"), "Parquet")
    (tmp_path / "b.parquet").write_bytes(whole[:4] + bytes(len(whole) // 2 - 4) + whole[len(whole) // 2 :])
    job(*flags).assert_refused("--input", str(tmp_path / "b.parquet"), "FAILED_READ_FILE")
    assert not (tmp_path / "out").exists()


def test_files_of_different_types_are_named(job: Command, tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", SEQUENCES, pa.list_(pa.string()))
    write_parquet(tmp_path / "b.parquet", LINES, pa.string())
    flags = ["--input", tmp_path, "--output", tmp_path / "out", "--format", "parquet", "--column", "items", *SMALL]
    job(*flags).assert_refused("--input", str(tmp_path), ".parquet")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("s3a://bucket/x", "s3a://bucket/x --packages"),
        ("hdfs://127.0.0.1:9/x", "hdfs://127.0.0.1:9/x ConnectException refused check the address"),
        ("hdfs://no-such-host:9/x", "hdfs://no-such-host:9/x UnknownHostException check the address"),
        ("nowhere://x/y", "nowhere"),
        ("FILE:///nonexistent/path", "/nonexistent/path not found"),
        ("https://example.com/x.txt", "https://example.com/x.txt download it"),
    ],
)
def test_an_input_uri_that_spark_cannot_read_is_one_line(job: Command, tmp_path: Path, uri: str, words: str) -> None:
    job("--input", uri, "--output", tmp_path / "out").assert_refused("--input", *words.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("size", [100_000, pytest.param(10_000_000, marks=pytest.mark.long)])
def test_giant_tokens_and_control_characters_do_no_harm(job: Command, tmp_path: Path, size: int) -> None:
    giant = b"x" * size
    (tmp_path / "x.txt").write_bytes(TEXT + (b"1 " + giant + b" 2\n") * 3 + b"3 \x01\x1b[0m 4\x7f \x0b5\n" * 4)
    ended = job("--input", tmp_path / "x.txt", "--output", tmp_path / "out", *SMALL)
    assert (ended.code, ended.stderr) == (0, ""), ended.stderr
    manifest = Manifest.load(tmp_path / "out")
    assert manifest.counts.long_tokens == 3
    assert "\x01\x1b[0m" in Vocab.read(tmp_path / "out" / manifest.vocab_path).words.to_pylist()


@pytest.mark.long
def test_a_full_disk_is_one_line_and_leaves_the_old_dataset(tmp_path: Path) -> None:
    """A limit on the size of files that Spark's Python workers write stands in for it; test_stages.py has one task."""
    (tmp_path / "x.txt").write_bytes(TEXT)
    flags = ["--input", tmp_path / "x.txt", "--output", tmp_path / "out", *SMALL]
    submit(tmp_path, *flags)
    before = sorted((tmp_path / "out").rglob("*"))
    wrapper = tmp_path / "limited-python"
    wrapper.write_text(f'#!/bin/bash\nulimit -f 4\nexec {sys.executable} "$@"\n')
    wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)
    ended = submit(tmp_path, *flags, "--seed", "1", "--overwrite", PYSPARK_PYTHON=str(wrapper))
    assert ended.code == 2, ended.stdout + ended.stderr
    found = [line for line in (ended.stdout + ended.stderr).splitlines() if line.startswith("error: ")]
    assert len(found) == 1
    assert "Traceback" not in ended.stdout + ended.stderr
    assert [word for word in ("--output", "out", "cannot be written", "File too large") if word not in found[0]] == []
    assert sorted((tmp_path / "out").rglob("*")) == before


def submit(folder: Path, *arguments: object, **environment: str) -> Ended:
    """A process of its own, by plain Python: spark-submit would start the driver with the workers' Python."""
    command = [sys.executable, str(ROOT / "jobs" / "prepare.py"), *map(str, arguments)]
    driver = {"PYSPARK_DRIVER_PYTHON": sys.executable}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **driver, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return Ended(done.returncode, done.stdout, done.stderr)
