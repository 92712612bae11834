"""Laws of pipeline.shared.storage and generation: datasets on a disk, in an object store, and in what fsspec knows."""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, run_here
from pyspark.sql import SparkSession
from servers import s3
from tiny import write_tiny_dataset

from jobs import prepare as prepare_job
from jobs import session
from pipeline import manifest
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.verify import problems
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared import cli, storage
from pipeline.shared.errors import InputError
from pipeline.shared.settings import from_section
from pipeline.shared.storage import Location, local_path
from pipeline.spark import generation
from pipeline.spark.generation import LOCK, new_generation
from pipeline.stages import prepare
from pipeline.text.corpus import text
from training.train_config import TrainCommand
from training.vectors.word_vectors import Vectors

CONFIG = PipelineConfig(window=2, min_count=2, sample=0, num_shards=2, epochs=2, holdout=0.1)
SMALLER = replace(CONFIG, num_shards=1, epochs=1, holdout=0)


@pytest.fixture(scope="module")
def s3_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3.server(tmp_path_factory.mktemp("s3") / "log") as address:
        yield address


@pytest.fixture
def bucket(s3_address: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A URI in the server's bucket that is this test's own."""
    for variable, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    return f"s3://{s3.BUCKET}/{name}?endpoint_override={s3_address}"


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("in") / "sentences.txt"
    path.write_text("".join(f"w{i % 7} w{i % 11} w{i % 13} w{i % 17} w{i % 19}\n" for i in range(600)))
    return path


def names(folder: Location) -> list[str]:
    return sorted(entry.base_name for entry in folder.entries())


# One file


@pytest.fixture(params=["disk", "file URI", "s3", "fsspec"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """A folder of each kind."""
    if request.param == "s3":
        return Location.of(request.getfixturevalue("bucket"))
    uris: dict[str, str | Path] = {
        "disk": tmp_path / "a b",
        "file URI": f"file://{tmp_path}/f",
        "fsspec": f"memory://m/{tmp_path.name}",
    }
    return Location.of(uris[request.param])


def test_what_is_put_is_read_and_what_is_removed_is_gone(place: Location) -> None:
    place.make_folder()
    (place / "x").put(b"one")
    (place / "x").put(b"another")
    assert (place / "x").read_bytes() == b"another"
    assert (place.sizes(["x", "none"]), names(place)) == ([7, None], ["x"])
    assert ((place / "x").exists(), (place / "none").exists()) == (True, False)
    with pytest.raises(FileNotFoundError):
        (place / "none").read_bytes()
    (place / "x").remove()
    (place / "x").remove()
    assert names(place) == []


def test_a_large_file_that_is_written_in_pieces_appears_whole_and_after_an_error_not_at_all(place: Location) -> None:
    place.make_folder()
    piece = os.urandom(1 << 20)
    with (place / "there").atomic_write() as file:
        for _ in range(11):  # more than one part of an upload
            file.write(piece)
        assert not (place / "there").exists()
    assert (place / "there").read_bytes() == piece * 11
    with pytest.raises(ZeroDivisionError), (place / "not").atomic_write() as file:
        file.write(piece * (1 // 0))
    assert names(place) == ["there"]


def test_a_name_inside_a_uri_with_options_keeps_them() -> None:
    inside = Location.of("s3://bucket/data?region=eu-west-1") / "x"
    assert (str(inside), inside.path) == ("s3://bucket/data/x?region=eu-west-1", "bucket/data/x")
    assert Location.of(str(inside)).path == inside.path


def test_a_scheme_that_no_library_knows_is_refused() -> None:
    with pytest.raises(InputError, match="nowhere://"):
        Location.of("nowhere://host/data")


# URIs

LOCAL = {
    "data/x": "data/x",
    "/x#2": "/x#2",
    "/a%20b?c": "/a%20b?c",
    "//x//y": "/x/y",
    "C:/x": "C:/x",
    "a:b": "a:b",
    "file:/x": "/x",
    "file:///x": "/x",
    "file:////x": "/x",
    "FILE://LocalHost/x": "/x",
    "file:///a%20b%23%3f%2520": "/a b#?%20",
    "file:///a b/%C3%A9é": "/a b/éé",
}

ELSEWHERE = [
    "s3://b/dt=2026-01-01%3A00/x",
    "s3a://b/x",
    "S3://b/x/",
    "s3://b/x?region=eu-west-1",
    "gs://b",
    "hdfs:///logs/2026-*/*.gz",
    "hdfs:/logs/part-?",
    "abfs://container@account.dfs.core.windows.net/x",
    "memory:///x",
]

REFUSED = {
    "file:x": "file:///",
    "file:": "file:///",
    "file://": "file:///",
    "file://x": "host x",
    "file://host/x": "host host",
    "file:///o/q?run=1": "%3F",
    "file:///o/q?": "%3F",
    "file:///o/q#2": "%23",
    "file:///50%": "%25",
    "file:///%zz": "%25",
    "file:///x%00": "zero byte",
    "s3://b/x#2": "found #",
    "s3://b/x?region=eu#2": "found #",
    "s3://b/k//e": "found //",
    "s3://b/k//": "found //",
    "hdfs:///logs//x": "found //",
    "s3://b/./e": r"found /\./",
    "s3://b/k/..": r"found /\.\./",
    "https://host/x": "web address",
    "HTTP://host/x": "web address",
    "simplecache::s3://b/x": "chain",
}


@pytest.mark.parametrize("given", LOCAL)
def test_a_path_and_a_file_uri_name_a_local_path(given: str) -> None:
    expected = Path(LOCAL[given])
    assert local_path(given) == expected
    assert (Location.of(given).path, Location.of(given).local) == (str(expected.absolute()), expected.absolute())
    assert cli.path(given) == expected
    assert from_section(TrainCommand, {"output": given}, "train").output == expected


@pytest.mark.parametrize("given", ELSEWHERE)
def test_other_uris_are_no_local_path_and_are_refused_where_one_is_expected(given: str) -> None:
    assert local_path(given) is None
    with pytest.raises(argparse.ArgumentTypeError, match="on this machine"):
        cli.path(given)
    with pytest.raises(InputError, match=r"^train\.output: .*on this machine"):
        from_section(TrainCommand, {"output": given}, "train")
    with pytest.raises(InputError, match="on this machine"):
        Vectors.load(given)


@pytest.mark.parametrize("given", REFUSED)
def test_a_uri_with_a_part_that_would_be_dropped_is_refused(given: str) -> None:
    for refuse in (local_path, Location.of, Manifest.load):
        with pytest.raises(InputError, match=REFUSED[given]) as error:
            refuse(given)
        assert str(error.value).startswith(f"{given}: found ")
    with pytest.raises(InputError, match=f"^train.output: .*{REFUSED[given]}"):
        from_section(TrainCommand, {"output": given}, "train")


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("memory:///x", "/x"),
        ("memory:/x", "/x"),
        ("MEMORY://x/y/", "/x/y"),
        ("s3a://b/dt=1%3A00/x?region=eu", "b/dt=1%3A00/x"),
        ("abfs://container@account.dfs.core.windows.net/x", "container/x"),
    ],
)
def test_the_path_of_an_object_is_taken_letter_for_letter(given: str, path: str) -> None:
    assert Location.of(given).path == path
    inside = Location.of(given) / "y"
    assert (inside.path, Location.of(str(inside))) == (f"{path}/y", inside)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("hdfs:///x", "no host or bucket, expected hdfs://NAME"),
        ("gs:///x", "no host"),
        ("s3:/b/x", "no host"),
        ("memory:///", "no host"),
        ("s3://b/x?", "expected options"),
        ("s3://b/x?run", "expected options"),
        ("s3://b/x?region=", "expected options"),
        ("s3://b/x?region=a&region=b", "each once"),
        ("s3://b/x?region=eu&run=1", "run"),
        ("gs://b/x?run=1", "run"),
        ("memory://b/x?run=1", "options after"),
        ("dbfs:/x", "cannot be used"),
    ],
)
def test_a_dataset_at_a_uri_that_cannot_work_is_refused(given: str, found: str) -> None:
    with pytest.raises(InputError, match=found):
        Location.of(given)


NASTY = ["a b", "50%", "%20", "x#2", "what?", "é 名", "a&b=c", "+", "a;b", "[x]*", "~", "C:", "s3:", "a\nb", "'"]


@pytest.mark.parametrize("name", NASTY)
def test_as_uri_names_the_same_dataset_as_the_path(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    made = write_tiny_dataset(path)
    assert Manifest.load(path.as_uri()) == Manifest.load(path) == made
    assert list(problems(path.as_uri(), made)) == []
    place = Location.of(path.as_uri()) / "new" / "x"
    (path / "new").mkdir()
    place.put(b"1")
    assert (path / "new" / "x").read_bytes() == b"1"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_name_that_is_not_utf8_is_refused() -> None:
    """pyarrow knows no such path."""
    assert local_path("file:///%FF") == local_path("/\udcff") == Path("/\udcff")
    for given in ("file:///%FF", "/\udcff", "s3://b/\udcff"):
        with pytest.raises(InputError, match="not UTF-8"):
            Location.of(given)


# Whole datasets


@pytest.fixture(scope="module")
def on_disk(spark: SparkSession, sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return prepare(spark, text(sentences), CONFIG, tmp_path_factory.mktemp("disk") / "out")


def test_a_dataset_in_s3_has_the_same_bytes_as_on_a_disk(
    spark: SparkSession, sentences: Path, on_disk: Manifest, bucket: str
) -> None:
    made = prepare(spark, text(sentences), CONFIG, bucket)
    assert made.dataset_id == on_disk.dataset_id
    assert [shard.sha256 for shard in made.shards] == [shard.sha256 for shard in on_disk.shards]
    assert Manifest.load(bucket) == made
    assert names(Location.of(bucket)) == [made.generation, "manifest.json"]
    assert list(problems(bucket, made)) == []


def test_overwriting_in_s3_replaces_and_failing_leaves_what_was(
    spark: SparkSession, sentences: Path, bucket: str
) -> None:
    made = prepare(spark, text(sentences), SMALLER, bucket)
    with pytest.raises(InputError, match="min-count"):
        prepare(spark, text(sentences), replace(SMALLER, min_count=10_000), bucket)
    assert Manifest.load(bucket) == made
    again = prepare(spark, text(sentences), replace(SMALLER, seed=1), bucket)
    assert names(Location.of(bucket)) == [again.generation, "manifest.json"]
    assert list(problems(bucket, again)) == []


def test_where_there_are_no_locks_the_later_of_two_runs_gives_way(
    spark: SparkSession, sentences: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what it has not made it leaves alone: the other's generation, and one that is still being written."""
    other = Location.of(bucket) / "gen-0123456789ab" / "train" / "shard"
    winner: dict[str, Manifest] = {}
    check_files = Manifest.check_files

    def while_another_finishes(made: Manifest, folder: Location) -> None:
        check_files(made, folder)
        if not winner:
            winner["made"] = made
            other.put(b"being written")
            winner["first"] = prepare(spark, text(sentences), replace(SMALLER, seed=2), bucket)

    monkeypatch.setattr(Manifest, "check_files", while_another_finishes)
    with pytest.raises(InputError, match="another prepare has written"):
        prepare(spark, text(sentences), SMALLER, bucket)
    assert Manifest.load(bucket) == winner["first"]
    assert names(Location.of(bucket)) == ["gen-0123456789ab", winner["first"].generation, "manifest.json"]
    monkeypatch.setattr(generation, "ABANDONED_AFTER", -generation.ABANDONED_AFTER)
    prepare(spark, text(sentences), SMALLER, bucket)
    assert "gen-0123456789ab" not in names(Location.of(bucket))


HOLD = """
import sys, time
from pipeline.spark.generation import new_generation
from pipeline.shared.storage import Location
with new_generation(Location.of(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_runs_on_one_folder_do_not_mix_and_a_dead_ones_lock_is_none(
    spark: SparkSession, sentences: Path, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "out")]
    other = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        before = sorted(path.name for path in (tmp_path / "out").iterdir())
        with pytest.raises(InputError, match="another prepare is writing there"):
            prepare(spark, text(sentences), SMALLER, tmp_path / "out")
        assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before
    finally:
        other.kill()
        other.communicate(timeout=10)
    assert LOCK in before
    made = prepare(spark, text(sentences), SMALLER, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [made.generation, "manifest.json"]


def test_what_a_manifest_that_cannot_be_read_may_name_is_not_removed(tmp_path: Path) -> None:
    (tmp_path / "gen-0123456789ab").mkdir()
    (tmp_path / "manifest.json").write_text("{")
    with new_generation(Location.of(tmp_path)):
        pass
    assert (tmp_path / "gen-0123456789ab").is_dir()
    (tmp_path / "manifest.json").unlink()
    with new_generation(Location.of(tmp_path)):
        pass
    assert list(tmp_path.iterdir()) == []


# The command, on S3


@pytest.fixture
def refused(
    sentences: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[..., None]]:
    """``refused(output, environment, *words)``: jobs/prepare.py ends with 2 and one line, before it starts Spark."""

    def must_not_run(_: str) -> SparkSession:
        raise AssertionError("this is too late for the error")

    def run(output: str, environment: dict[str, str], *words: str) -> None:
        for name, value in {"NO_PROXY": "*", "HOME": str(tmp_path), **environment}.items():
            monkeypatch.setenv(name, value)
        ended = run_here(prepare_job.main, ("--input", sentences, "--output", output), monkeypatch, capsys)
        ended.assert_refused(*words)

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(session, "build_session", must_not_run)
    storage._filesystem.cache_clear()  # a file system knows the variables of its time
    yield run
    storage._filesystem.cache_clear()


@pytest.mark.parametrize(
    ("uri", "environment", "words"),
    [
        ("s3://{bucket}/x", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, ["127.0.0.1:9"]),
        ("s3://no-such-bucket-here/x", {}, ["no-such-bucket-here", "NO_SUCH_BUCKET"]),
        ("nowhere://host/data", {}, ["nowhere"]),
        ("s3://", {}, ["bucket"]),
    ],
    ids=["unreachable", "no bucket", "no such scheme", "no name"],
)
def test_an_output_that_cannot_be_reached_is_refused_before_spark_starts(
    s3_address: str, refused: Callable[..., None], uri: str, environment: dict[str, str], words: list[str]
) -> None:
    given = {**s3.CREDENTIALS, "AWS_ENDPOINT_URL": s3_address, **environment}
    started = time.monotonic()
    refused(uri.format(bucket=s3.BUCKET), given, "--output", *words)
    assert time.monotonic() - started < 60


@pytest.fixture(scope="module")
def guarded_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server that asks for credentials once its bucket is there."""
    with s3.server(tmp_path_factory.mktemp("s3") / "log", INITIAL_NO_AUTH_ACTION_COUNT="1") as address:
        yield address


@pytest.mark.parametrize("keys", [{}, {"AWS_ACCESS_KEY_ID": "unknown", "AWS_SECRET_ACCESS_KEY": "x"}])
def test_missing_and_wrong_credentials_are_named(
    refused: Callable[..., None], guarded_address: str, keys: dict[str, str]
) -> None:
    given = {"AWS_ENDPOINT_URL": guarded_address, "AWS_EC2_METADATA_DISABLED": "true", **keys}
    refused(f"s3://{s3.BUCKET}/x", given, "--output", "credentials")


# verify and show


def manifest_command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code: object = 0
    try:
        manifest.main(list(arguments))
    except SystemExit as end:
        code = end.code
    found = capsys.readouterr()
    return int(str(code)), found.out, found.err


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    write_tiny_dataset(tmp_path / "data")
    return tmp_path / "data"


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_whole_dataset_is_shown_and_verified(command: str, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = manifest_command(capsys, command, str(dataset))
    assert (code, err) == (0, "")
    assert Manifest.load(dataset).dataset_id in out


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, tuple[Callable[[list[Path], Path], object], list[str]]] = {
    "a flipped byte of the examples": (lambda shards, _: flip(shards[0], 5000), ["shard-00000", "SHA-256"]),
    "a flipped byte of the footer": (lambda shards, _: flip(shards[1], -30), ["shard-00001", "SHA-256"]),
    "a shard that ends early": (lambda shards, _: os.truncate(shards[2], 3000), ["shard-00002", "bytes", "Parquet"]),
    "a shard that is gone": (lambda shards, _: shards[3].unlink(), ["shard-00003", "cannot be read"]),
    "a shard in another's place": (lambda shards, _: shutil.copy(shards[0], shards[1]), ["shard-00001", "SHA-256"]),
    "another vocabulary": (
        lambda shards, vocab: shutil.copy(other_vocab(vocab.parent), vocab),
        ["vocab.parquet", "digest"],
    ),
    "no vocabulary": (lambda _, vocab: vocab.unlink(), ["vocab.parquet", "cannot be read"]),
}


def other_vocab(folder: Path) -> Path:
    write_tiny_dataset(folder / "other", seed=9)
    return folder / "other" / "gen-tiny" / "vocab.parquet"


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_says_what_is_wrong(damage: str, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [dataset / shard.path for shard in Manifest.load(dataset).shards]
    do, words = DAMAGE[damage]
    do(shards, dataset / Manifest.load(dataset).vocab_path)
    code, _, err = manifest_command(capsys, "verify", str(dataset))
    assert code == 2
    assert [word for word in words if word not in err] == [], err
    assert all(line.startswith("error: ") for line in err.splitlines())


def test_verify_counts_examples_and_pairs(dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Counts are no part of the dataset's id, so a manifest with others still loads."""
    made = Manifest.load(dataset)
    replace(made, counts=replace(made.counts, pairs=made.counts.pairs + 1)).save(dataset)
    code, _, err = manifest_command(capsys, "verify", str(dataset))
    assert code == 2
    assert f"{made.counts.pairs:,} pairs, the manifest lists {made.counts.pairs + 1:,}" in err


@pytest.mark.parametrize("arguments", [[], ["verify"], ["check", "x"], ["verify", "/nonexistent"], ["show", "foo://x"]])
def test_a_wrong_command_is_one_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = manifest_command(capsys, *arguments)
    assert (code, len(err.splitlines())) == (2, 1)
