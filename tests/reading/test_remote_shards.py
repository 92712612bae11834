"""Laws of shards that lie elsewhere: the same batches and vectors as from a disk, whatever the network does.

The server is a real one (moto's), behind another that is slow and fails (flaky_s3).
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing, suppress
from dataclasses import replace
from itertools import islice
from operator import methodcaller
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import tiny
from conftest import ROOT, Command, Ended
from ranks import train_here
from servers import flaky_s3, s3
from servers.flaky_s3 import Flaky
from test_stream import ROW_GROUP, assert_same

from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.dataset.unpacking import Rows
from pipeline.shared import storage
from pipeline.shared.storage import Location
from training import train
from training.model.batch import Batch
from training.model.kernels.threads import Team
from training.reading import remote, stream
from training.reading.chunk import Chunk
from training.reading.plan import Piece, plan_epoch
from training.reading.prefetch import prefetch
from training.reading.remote import RemoteShard, Requests
from training.reading.row_groups import LazyRowGroup
from training.reading.shard_cache import TOTAL, ShardCache
from training.reading.stream import ArrowStream, chunks_of, read_epochs

EPOCHS = 2
QUICK = ("--dim", "8", "--epochs", "2", "--device", "cpu", "--threads", "1")


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of many row groups for each of two sampled epochs."""
    folder = tmp_path_factory.mktemp("dataset")
    tiny.write_tiny_dataset(folder, row_group_rows=ROW_GROUP, num_sequences=100, epochs=EPOCHS, window=2, negatives=2)
    return folder


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3.server(tmp_path_factory.mktemp("s3") / "log") as address:
        yield address


@pytest.fixture(scope="module")
def shared_server(behind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Flaky]:
    with flaky_s3.in_front_of(behind, tmp_path_factory.mktemp("flaky") / "log") as flaky:
        yield flaky


@pytest.fixture
def server(shared_server: Flaky, monkeypatch: pytest.MonkeyPatch) -> Flaky:
    """A server that behaves, and that nothing is known of yet."""
    for variable, value in s3.CREDENTIALS.items():
        monkeypatch.setenv(variable, value)
    shared_server.behave()
    remote.remote_shards.cache_clear()
    return shared_server


@pytest.fixture
def bucket(behind: str, local: Path, request: pytest.FixtureRequest) -> str:
    """This test's own copy of the dataset, by its path in the store."""
    path = f"{s3.BUCKET}/" + "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    upload(local, behind, path)
    return path


@pytest.fixture
def uri(bucket: str, server: Flaky) -> str:
    return f"s3://{bucket}?endpoint_override={server.address}"


@pytest.fixture
def direct(bucket: str, behind: str, server: Flaky) -> Location:
    """The same where it can be written."""
    return Location.of(f"s3://{bucket}?endpoint_override={behind}")


@pytest.fixture
def quick_to_give_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)


def upload(folder: Path, address: str, path: str) -> None:
    keys = {"access_key": "testing", "secret_key": "testing", "region": "us-east-1"}
    store = pafs.S3FileSystem(endpoint_override=address, **keys)
    pafs.copy_files(str(folder), path, destination_filesystem=store)


def open_stream(
    where: object, epoch: int = 0, lanes: int = 4, global_batch: int = 32, cache: ShardCache | None = None
) -> ArrowStream:
    manifest = Manifest.load(str(where))
    shards = manifest.select(epoch % EPOCHS)
    plan = plan_epoch(shards, ROW_GROUP, seed=0, epoch=epoch, lanes=lanes, global_batch=global_batch)
    return ArrowStream(str(where), manifest, shards, plan, cache)


def batches(where: object, cache: ShardCache | None = None, team: Team | None = None, epochs: int = 3) -> list[Batch]:
    """Of rank 1 of 2."""
    found = []
    for epoch in read_epochs(lambda number: open_stream(where, number, cache=cache), range(epochs), 1, 2, team=team):
        found += tiny.copies(epoch)
    return found


def times_asked(server: Flaky) -> "Counter[tuple[str, str]]":
    """For each range how often it was asked for."""
    return Counter((request["path"], request["range"]) for request in server.requests())


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("prefetch", "fetch"))] == []


# The same batches


@pytest.mark.usefixtures("quick_to_give_up")
@pytest.mark.parametrize("reader", ["thread", "team"])
@pytest.mark.parametrize("cached", [False, True])
def test_batches_from_a_server_that_fails_are_those_from_a_disk(
    server: Flaky, uri: str, local: Path, tmp_path: Path, cached: bool, reader: str
) -> None:
    server.behave(share=0.4, delay_ms=5)
    cache = ShardCache(tmp_path / "cache", 10**6) if cached else None
    team = Team(2) if reader == "team" else None
    assert_same(batches(uri, cache, team), batches(local))
    assert {request["result"] for request in server.requests()} == {"ok", *flaky_s3.FAILURES}


@pytest.mark.parametrize("place", ["file://{}", "memory://there{}"])
def test_a_uri_of_any_kind_gives_the_same_batches(local: Path, place: str) -> None:
    where = place.format(local)
    for path in local.rglob("*") if where.startswith("memory") else ():
        if path.is_file():
            Location.of(f"memory://there{path}").put(path.read_bytes())
    assert_same(batches(where), batches(local))


def test_a_row_group_is_one_request_and_a_shard_one_more(server: Flaky, uri: str, local: Path) -> None:
    """However many lanes share a row group."""
    read = open_stream(uri, lanes=16)
    for _ in read.batches(0, 1):
        pass
    num_row_groups = sum(-(-shard.rows // ROW_GROUP) for shard in read.shards)
    asked = times_asked(server)
    assert set(asked.values()) == {1}
    assert len(asked) == num_row_groups + len(read.shards)


def test_footers_are_read_once_for_all_epochs(server: Flaky, uri: str, local: Path) -> None:
    batches(uri, epochs=2 * EPOCHS)
    footers = {(shard.path, str(shard.bytes - 1)) for shard in Manifest.load(local).shards}
    asked = ((path[path.index("gen-") :], span.partition("-")[2]) for path, span in times_asked(server).elements())
    assert sorted(key for key in asked if key in footers) == sorted(footers)


def test_a_footer_that_is_longer_than_thought_is_read_whole(
    server: Flaky, uri: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "FOOTER_BYTES", 100)
    assert_same(batches(uri), batches(local))


def test_requests_of_different_lanes_overlap(
    server: Flaky, uri: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next row group is asked for before the one before it is used up."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", 32)
    server.behave(delay_ms=50)
    taken = 0
    for batch in islice(open_stream(uri, lanes=8).batches(0, 1), 3):
        taken += len(batch.center_B)
    assert taken < 8 * ROW_GROUP
    spans = [(request["begin"], request["end"]) for request in server.requests()]
    most = max(sum(begin <= moment < end for begin, end in spans) for moment, _ in spans)
    assert most >= 4
    assert len(spans) > 8 + len(Manifest.load(local).select(0))


def test_a_chunk_comes_when_a_row_group_more_for_every_lane_is_being_fetched(
    local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the next epoch's too, where this one has no more."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", 32)
    for path in filter(Path.is_file, local.rglob("*")):
        Location.of(f"memory://ahead{path}").put(path.read_bytes())
    streams = [open_stream(f"memory://ahead{local}", epoch) for epoch in range(2)]
    num_row_groups = [sum(-(-shard.rows // ROW_GROUP) for shard in read.shards) for read in streams]
    with closing(Requests()) as requests:
        chunks = chunks_of(streams, 0, 1, 2, requests)
        assert next(chunks).num_steps == 1
        assert requests.num_begun == 4 + 4
        while not next(chunks).ends_epoch:
            pass
        assert requests.num_begun in range(num_row_groups[0] + 4, num_row_groups[0] + 8)
        list(chunks)
        assert requests.num_begun == sum(num_row_groups)


class NoRows:
    """A row group whose rows nobody looks at."""

    def unpack(self, *_: object) -> None:
        pass


def test_a_team_waits_for_what_is_fetched_only_when_it_is_asked_for_it() -> None:
    """Not within the step before, whose time it would seem to be; lanes that need not wait are filled within it."""
    in_step, filled = False, []
    fetches = [Future[Any]() for _ in range(3)]
    fetches[1].set_result(None)

    def chunks() -> Iterator[Chunk]:
        """Of two lanes each, one that needs what is fetched and one that needs a file."""
        for number, fetch in enumerate(fetches):

            def opened(source: Future[Any] | None, number: int = number) -> Any:
                filled.append((number, "file" if source is None else "fetched", in_step))
                return NoRows()

            lanes = [[(Piece(0, 0, 1, 0, 1, 7), LazyRowGroup(opened, source))] for source in (fetch, None)]
            yield Chunk(lanes, 1, 1, Rows.zeros(2, 1))

    team = Team(2)
    with closing(prefetch(chunks(), 2, team)) as reader:
        for _ in range(3):
            next(reader)
            in_step = True
            team.run(lambda _: None)
            in_step = False
    assert sorted(filled) == [
        (0, "fetched", False),
        (0, "file", False),
        (1, "fetched", True),
        (1, "file", True),
        (2, "fetched", False),
        (2, "file", True),
    ]


# The cache


def test_a_cached_epoch_asks_the_server_for_nothing(server: Flaky, uri: str, local: Path, tmp_path: Path) -> None:
    """Nor does another process, which knows no footers."""
    cache = ShardCache(tmp_path / "cache", 10**7)
    first = batches(uri, cache, epochs=1)
    remote.remote_shards.cache_clear()
    read = open_stream(uri, cache=cache)
    server.behave(always="503")
    assert_same(tiny.copies(read.batches(1, 2)), first)
    assert server.requests() == []


def test_the_cache_stays_below_its_size_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = ShardCache(tmp_path, 10_000)
    cache.prepare()
    names = [f"{number:064x}.0" for number in range(30)]
    for number, name in enumerate(names):
        cache.put(name, bytes([number]) * 996)
        os.utime(tmp_path / name, (number, number))
        if (tmp_path / names[0]).exists():
            cache.get(names[0])
        assert used(tmp_path) <= 10_000
    assert cache.get(names[0]) == bytes(996)
    assert cache.get(names[-1]) == bytes([29]) * 996
    assert cache.get(names[1]) is None
    cache.put("f" * 64 + ".0", bytes(10_001))
    assert cache.get("f" * 64 + ".0") is None
    assert used(tmp_path) > 7_000


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.name != TOTAL)


FILL = """
import sys, os, random, signal
from pathlib import Path
from training.reading.shard_cache import ShardCache
cache, seed = ShardCache(Path(sys.argv[1]), 50_000), int(sys.argv[2])
random.seed(seed)
for number in range(400):
    name = f"{random.randrange(200):064x}.0"
    content = cache.get(name)
    assert content is None or content == name.encode() * 15, name
    cache.put(name, name.encode() * 15)
    if seed == 0 and number == 200:
        os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_that_share_a_cache_hold_its_size_together_and_outlive_each_other(tmp_path: Path) -> None:
    """Watched from outside all the while; each may just be writing one file."""
    command = [sys.executable, "-c", FILL, str(tmp_path)]
    running = [subprocess.Popen([*command, str(seed)], cwd=ROOT) for seed in range(3)]
    most = 0
    while any(process.poll() is None for process in running):
        sizes = []
        for path in tmp_path.iterdir():
            with suppress(FileNotFoundError):
                sizes.append(0 if path.name == TOTAL else path.stat().st_size)
        most = max(most, sum(sizes))
    assert [process.returncode for process in running] == [-9, 0, 0]
    assert 25_000 < most <= 50_000 + 3 * 1000


def test_leftovers_go_some_day_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    left, recent = (tmp_path / f".{'a' * 64}.3.{pid}.1" for pid in (1, 2))
    old = tmp_path / ("b" * 64 + ".footer")
    for path in (left, recent, old, tmp_path / "notes.txt", tmp_path / ".hidden"):
        path.write_bytes(bytes(1000))
        os.utime(path, (1, 1))
    os.utime(recent)
    ShardCache(tmp_path, 900).prepare()
    assert {path.name for path in tmp_path.iterdir()} == {recent.name, "notes.txt", ".hidden", TOTAL}


def test_a_dataset_that_lists_anothers_digests_does_not_feed_its_readers(tmp_path: Path) -> None:
    """Other rows, whose manifest claims the other dataset's SHA-256s: nobody compares them with the bytes."""
    cache = ShardCache(tmp_path / "cache", 10**7)
    manifests = [tiny.write_tiny_dataset(tmp_path / name, 100, seed=seed) for name, seed in (("a", 1), ("b", 2))]
    claimed = tuple(
        replace(shard, sha256=other.sha256)
        for shard, other in zip(manifests[1].shards, manifests[0].shards, strict=True)
    )
    replace(manifests[1], shards=claimed).save(tmp_path / "b")
    for name in "ab":
        for path in filter(Path.is_file, (tmp_path / name).rglob("*")):
            Location.of(f"memory://poison{path}").put(path.read_bytes())

    def read(name: str, cache: ShardCache | None) -> list[Batch]:
        manifest = Manifest.load(f"memory://poison{tmp_path / name}")
        plan = plan_epoch(manifest.select(0), manifest.row_group_rows, 0, 0, lanes=4, global_batch=32)
        stream = ArrowStream(f"memory://poison{tmp_path / name}", manifest, manifest.select(0), plan, cache)
        return tiny.copies(stream.batches(0, 1))

    right = read("a", None)
    read("b", cache)
    assert_same(read("a", cache), right)


def test_another_endpoint_is_another_dataset(local: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = Manifest.load(local).shards[0]
    keys = set()
    for endpoint in ("http://one", "http://two"):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        keys.add(RemoteShard(Location.of("memory://same"), shard, None)._key)
    assert len(keys) == 2


def test_links_in_the_cache_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / TOTAL).symlink_to(tmp_path / "precious")
    cache = ShardCache(tmp_path / "cache", 10**6)
    with pytest.raises(ManifestError, match=r"--shard-cache .*cannot be written .*; choose another folder"):
        cache.prepare()
    (tmp_path / "cache" / TOTAL).unlink()
    name = "a" * 64 + ".0"
    monkeypatch.setattr("secrets.token_hex", lambda _: "0123456789abcdef")
    (tmp_path / "cache" / f".{name}.0123456789abcdef").symlink_to(tmp_path / "precious")
    with pytest.raises(ManifestError, match="cannot be written"):
        cache.put(name, b"rows")
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_damaged_cache_file_is_fetched_again(server: Flaky, uri: str, local: Path, tmp_path: Path) -> None:
    """A row group's, a footer's, one cut short, an empty one."""
    cache = ShardCache(tmp_path / "cache", 10**7)
    first = batches(uri, cache)
    files = sorted(path for path in (tmp_path / "cache").iterdir() if path.name != TOTAL)
    footers = [path for path in files if path.suffix == ".footer"]
    damaged = [*files[:4], *footers[:4]]
    for number, path in enumerate(damaged):
        content = path.read_bytes()
        path.write_bytes([content[:50] + b"?" + content[51:], content[:-1], b"", b"abc"][number % 4])
    remote.remote_shards.cache_clear()
    server.behave()
    assert_same(batches(uri, cache), first)
    assert len(server.requests()) == len(set(damaged))


def test_a_cache_that_cannot_be_written_is_named(call: Command, uri: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    flags = ("--data", uri, "--output", tmp_path / "out", "--shard-cache", tmp_path / "file")
    call(train.main, *QUICK, *flags).assert_refused("--shard-cache", "file", "cannot be written")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--shard-cache-bytes 5G", "--shard-cache-bytes found 5000000000 --shard-cache"),
        ("--shard-cache x --shard-cache-bytes 5X", "--shard-cache-bytes 5X 500M"),
        ("--shard-cache x --shard-cache-bytes 0", "--shard-cache-bytes found 0 expected 1"),
    ],
)
def test_settings_of_the_cache_that_cannot_be_are_named(
    call: Command, local: Path, tmp_path: Path, flags: str, words: str
) -> None:
    ended = call(train.main, *QUICK, "--data", local, "--output", tmp_path / "out", *flags.split())
    ended.assert_refused(*words.split())


def test_a_cache_of_a_dataset_of_this_machine_is_warned_of(call: Command, local: Path, tmp_path: Path) -> None:
    flags = ("--data", local, "--output", tmp_path / "out", "--shard-cache", tmp_path / "cache")
    ended = call(train.main, *QUICK, *flags)
    assert ended.code == 0
    assert ended.stderr.startswith("warning: --shard-cache has no effect")
    assert not (tmp_path / "cache").exists()


# Failures that stay


@pytest.mark.usefixtures("quick_to_give_up")
@pytest.mark.parametrize("failure", ["503", "reset", "truncated"])
def test_a_server_that_only_fails_is_tried_five_times(server: Flaky, uri: str, failure: str) -> None:
    read = open_stream(uri)
    server.behave(always=failure)
    with pytest.raises(ManifestError, match=r"shard-0000\d.parquet.*tried 5 time.* in .* s .*AWS Error.* train again"):
        read.read(read.plan.lanes[0][0])
    if failure != "reset":
        # A reused connection that proves closed curl tries once more by itself; each of them, where they are reset.
        assert len(server.requests()) in (5, 6)


def test_what_another_attempt_would_not_change_is_tried_once(server: Flaky, uri: str, local: Path) -> None:
    read = open_stream(uri)
    server.behave(always="403")
    with pytest.raises(ManifestError, match=r"shard-0000\d.parquet.*ACCESS_DENIED.*credentials"):
        read.read(read.plan.lanes[0][0])
    assert len(server.requests()) == 1


def test_a_shard_that_is_gone_is_named(uri: str, direct: Location) -> None:
    read = open_stream(uri, lanes=1)
    path = read.shards[read.plan.lanes[0][0].shard].path
    (direct / path).remove()
    with pytest.raises(ManifestError, match=rf"{path}.*cannot be read .*run prepare again"):
        next(read.batches(0, 1))


@pytest.mark.usefixtures("quick_to_give_up")
def test_a_damaged_answer_is_asked_for_once_more(
    server: Flaky, uri: str, local: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = open_stream(uri, lanes=1)
    server.behave(damage_first=True)
    found = tiny.copies(read.batches(0, 1))
    assert_same(found, tiny.copies(open_stream(local, lanes=1).batches(0, 1)))
    assert "damaged" in {request["result"] for request in server.requests()}


@pytest.mark.usefixtures("quick_to_give_up")
@pytest.mark.parametrize("change", ["a bit", "cut", "longer"])
def test_a_shard_that_is_not_the_manifests_is_named(uri: str, direct: Location, local: Path, change: str) -> None:
    read = open_stream(uri, lanes=1)
    shard = read.shards[read.plan.lanes[0][0].shard]
    content = bytearray((local / shard.path).read_bytes())
    for place in range(200, len(content), 500):
        content[place] ^= 1
    changed = {"a bit": bytes(content), "cut": bytes(content[:-300]), "longer": bytes(content) + bytes(300)}[change]
    (direct / shard.path).put(changed)
    with pytest.raises(ManifestError, match=Path(shard.path).name):
        list(read.batches(0, 1))
    if change != "a bit":
        with pytest.raises(ManifestError, match=rf"{shard.path}.*: {len(changed)} bytes"):
            Manifest.load(uri).check_files(uri)


def test_a_silent_server_is_given_up_within_bounds(
    server: Flaky, uri: str, local: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """It takes connections, and never answers."""
    monkeypatch.setattr(remote, "PATIENCE_S", 1)
    monkeypatch.setattr(storage, "_S3_SILENCE_S", 1.0)
    storage._filesystem.cache_clear()  # a file system knows the bound of its time
    request.addfinalizer(storage._filesystem.cache_clear)
    read = open_stream(uri, lanes=16)
    server.behave(always="silent")
    begin = time.monotonic()
    with pytest.raises(ManifestError, match=r"tried 1 time.*Timeout was reached"):
        next(read.batches(0, 1))
    assert time.monotonic() - begin < 15


def test_a_stream_left_early_leaves_no_request_behind(server: Flaky, uri: str) -> None:
    server.behave(delay_ms=200)
    reading = open_stream(uri, lanes=16).batches(0, 1)
    next(reading)
    begin = time.monotonic()
    reading.close()  # type: ignore[attr-defined]
    assert time.monotonic() - begin < 2
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("fetch")] == []


# Whole runs


HASTE = methodcaller("setattr", "training.reading.remote.FIRST_PAUSE_S", 0.01)
"""Done to each rank: ``quick_to_give_up``."""


def run(logs: Path, *arguments: object) -> Ended:
    logs.mkdir()
    return train_here(*QUICK, *arguments, logs=logs, change=HASTE)


@pytest.mark.parametrize(
    "mode",
    [(), pytest.param(("--sync-every", "4", "--global-batch", "64"), marks=pytest.mark.long)],
    ids=["in step", "in place"],
)
def test_two_ranks_train_the_same_vectors_from_a_server_that_fails(
    server: Flaky, uri: str, local: Path, tmp_path: Path, mode: tuple[str, ...]
) -> None:
    server.behave(share=0.3, delay_ms=20)
    cache = ("--shard-cache", tmp_path / "cache", "--shard-cache-bytes", "100K")
    flags = ("--nproc", 2, *mode)
    for data, output, more in ((uri, "there", cache), (local, "here", ())):
        ended = run(tmp_path / f"logs {output}", "--data", data, "--output", tmp_path / output, *flags, *more)
        assert ended.code == 0, ended.stderr
    for name in ("vectors.safetensors", "vocab.parquet"):
        assert (tmp_path / "there" / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    config = json.loads((tmp_path / "there" / "config.json").read_text())
    assert (config["data"], config["shard_cache_bytes"]) == (uri, 100_000)
    assert {request["result"] for request in server.requests()} == {"ok", *flaky_s3.FAILURES}
    assert used(tmp_path / "cache") <= 100_000


def test_a_server_that_goes_away_ends_all_ranks_with_one_line(
    server: Flaky, behind: str, bucket: str, tmp_path: Path
) -> None:
    with flaky_s3.in_front_of(behind, tmp_path / "log") as mortal:
        mortal.behave(delay_ms=20)
        uri = f"s3://{bucket}?endpoint_override={mortal.address}"
        flags = ("--data", uri, "--output", tmp_path / "out", "--nproc", 2, "--epochs", 500)

        def go_away() -> None:
            while len(mortal.requests()) < 60:
                time.sleep(0.1)
            mortal.process.kill()

        killer = threading.Thread(target=go_away)
        killer.start()
        begin = time.monotonic()
        ended = run(tmp_path / "logs", *flags)
        killer.join()
    assert time.monotonic() - begin < 100
    lines = ended.stderr.splitlines()
    assert ended.code == 2
    assert ["tried" in line and ".parquet" in line for line in lines if line.startswith("error: ")] == [True], lines
    assert lines[-1].startswith("error: ")
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("wrong", ["bucket", "key", "credentials", pytest.param("port", marks=pytest.mark.long)])
def test_a_wrong_address_or_wrong_credentials_are_said_in_one_line(
    server: Flaky, call: Command, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    address, path = server.address, bucket
    if wrong == "bucket":
        path = path.replace(s3.BUCKET, "no-such-bucket")
    if wrong == "key":
        path += "x"
    if wrong == "credentials":
        server.behave(key="Credential=another/")
    if wrong == "port":
        address = "http://127.0.0.1:9"
    uri = f"s3://{path}?endpoint_override={address}"
    begin = time.monotonic()
    ended = call(train.main, *QUICK, "--data", uri, "--output", tmp_path / "out")
    words = ["no manifest.json"] if wrong in ("bucket", "key") else ["cannot be read", "check the address"]
    ended.assert_refused(path, *words)
    assert time.monotonic() - begin < 40
    assert not (tmp_path / "out").exists()
