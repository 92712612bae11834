"""Laws of an epoch's order: the same global batches for any number of ranks, however read, from any step on.

The digest of a global batch is of its rows' bytes, lane by lane; which rank had a lane does not enter.
"""

import hashlib
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from pipeline.dataset.manifest_file import Manifest, ShardInfo
from pipeline.shared.randomness import Purpose, permutation
from pipeline.shared.randomness import stream as stream_of_keys
from pipeline.spark.shard_writer import ROW_GROUP_ROWS
from training.distributed import World
from training.model.batch import Batch
from training.model.blocks import initial_tables
from training.model.kernels.group import Group
from training.model.kernels.threads import Team, team_of
from training.model.steps import make_step
from training.reading import stream as stream_module
from training.reading.device_feed import KeptRows
from training.reading.epochs import epochs_of, plan_of
from training.reading.permutation import permutation as fast_permutation
from training.reading.plan import EpochPlan, Piece, plan_epoch
from training.reading.remote import Requests
from training.reading.stream import ArrowStream, chunks_of, read_epochs
from training.run import Position, Run
from training.train_config import TrainConfig

ROW_GROUP = 24
LANES = 16
GLOBAL_BATCH = 64
MAX_LEN = 12
WORLD_SIZES = (1, 2, 4, 8, 16)
COLUMNS = {"center": np.int32, "contexts_negatives": np.int32, "num_contexts": np.int16}
CPU = torch.device("cpu")
GOLDEN = "2b3b3e6d8a849bd33440affb22a6a552d41d91d560960df721ff130dbc67ad20"


@dataclass(frozen=True)
class Dataset:
    folder: Path
    manifest: Manifest

    def stream(self, epoch: int = 0, step: int = 0) -> ArrowStream:
        shards = self.manifest.select(0)
        plan = plan_epoch(shards, ROW_GROUP, seed=0, epoch=epoch, lanes=LANES, global_batch=GLOBAL_BATCH)
        return ArrowStream(self.folder, self.manifest, shards, plan.after(step))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Some 800 rows in four shards: a lane has parts of a few row groups, and runs out within its last step."""
    folder = tmp_path_factory.mktemp("dataset")
    manifest = tiny.write_tiny_dataset(folder, row_group_rows=ROW_GROUP, num_sequences=100, window=2, negatives=2)
    assert manifest.max_len == MAX_LEN
    longest = math.ceil(sum(shard.rows for shard in manifest.shards) / LANES)
    assert longest % (GLOBAL_BATCH // LANES)
    return Dataset(folder, manifest)


def by_thread(stream: ArrowStream, rank: int, world_size: int) -> Iterator[Batch]:
    """Read ahead by a thread."""
    return stream.batches(rank, world_size)


def by_team(stream: ArrowStream, rank: int, world_size: int) -> Iterator[Batch]:
    """Read by the threads that take the steps, between them."""
    team = team_of(2)
    with closing(read_epochs(lambda _: stream, range(1), rank, world_size, team=team)) as epochs:
        for batches in epochs:
            for batch in batches:
                team.run(lambda member: None)
                yield batch


def kept(stream: ArrowStream, rank: int, world_size: int) -> Iterator[Batch]:
    """Looked up among rows that stay on the device."""
    return KeptRows(stream.read, stream.shards, ROW_GROUP, MAX_LEN, CPU).batches(stream.plan, rank, world_size)


Reader = Callable[[ArrowStream, int, int], Iterator[Batch]]
READERS = pytest.mark.parametrize("read", [by_thread, by_team, kept], ids=lambda read: read.__name__)


def columns(batch: Batch) -> list[npt.NDArray[Any]]:
    return [tensor.numpy() for tensor in batch.tensors()]


def lane_by_lane(stream: ArrowStream, read: Reader, world_size: int) -> list[list[list[npt.NDArray[Any]]]]:
    """The rows of every global batch: those of each lane, column by column."""
    ranks = [tiny.copies(read(stream, rank, world_size)) for rank in range(world_size)]
    share, steps = stream.plan.rows_per_step, []
    for batches in zip(*ranks, strict=True):
        own = [(columns(batches[lane % world_size]), lane // world_size * share) for lane in range(LANES)]
        steps.append([[column[first : first + share] for column in found] for found, first in own])
    return steps


def digests(steps: list[list[list[npt.NDArray[Any]]]]) -> list[str]:
    return [hashlib.sha256(b"".join(part.tobytes() for lane in step for part in lane)).hexdigest() for step in steps]


def oracle(dataset: Dataset, epoch: int) -> list[list[list[npt.NDArray[Any]]]]:
    """What ``lane_by_lane`` is to give, by the definition: rows that pyarrow reads, permuted, cut, and dealt out."""
    shards = dataset.manifest.select(0)
    rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    for shard in permutation(stream_of_keys(0, Purpose.SHARD_ORDER, epoch), len(shards)).tolist():
        table = pq.read_table(dataset.folder / shards[shard].path, columns=list(COLUMNS))
        for row_group, first in enumerate(range(0, len(table), ROW_GROUP)):
            size = min(ROW_GROUP, len(table) - first)
            order = permutation(stream_of_keys(0, Purpose.ROW_ORDER, epoch, shard, row_group), size)
            for name in COLUMNS:
                rows[name].extend(table[name].take(first + order).to_pylist())
    total, share = len(rows["center"]), GLOBAL_BATCH // LANES
    steps = math.ceil(math.ceil(total / LANES) / share)
    empty = {"center": 0, "contexts_negatives": [0] * MAX_LEN, "num_contexts": 0}
    lanes = []
    for lane in range(LANES):
        first, last = total * lane // LANES, total * (lane + 1) // LANES
        filled = {name: rows[name][first:last] + [empty[name]] * (steps * share - last + first) for name in COLUMNS}
        lanes.append([np.array(filled[name], dtype) for name, dtype in COLUMNS.items()])
    return [[[c[step * share : (step + 1) * share] for c in lane] for lane in lanes] for step in range(steps)]


@READERS
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_global_batches_have_one_digest_for_any_number_of_ranks(
    dataset: Dataset, read: Reader, world_size: int
) -> None:
    for epoch in (0, 1):
        found = digests(lane_by_lane(dataset.stream(epoch), read, world_size))
        assert found == digests(oracle(dataset, epoch))
        assert len(set(found)) == len(found)


@READERS
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_every_example_comes_exactly_once_an_epoch(dataset: Dataset, read: Reader, world_size: int) -> None:
    """By what is in the rows, against the files."""
    expected: Counter[bytes] = Counter()
    for shard in dataset.manifest.select(0):
        table = pq.read_table(dataset.folder / shard.path, columns=list(COLUMNS))
        values = [np.array(table[name].to_pylist(), dtype) for name, dtype in COLUMNS.items()]
        expected.update(b"".join(value.tobytes() for value in row) for row in zip(*values, strict=True))
    found: Counter[bytes] = Counter()
    for step in lane_by_lane(dataset.stream(), read, world_size):
        for lane in step:
            found.update(b"".join(value.tobytes() for value in row) for row in zip(*lane, strict=True) if row[2])
    assert found == expected


def test_the_order_is_the_same_in_every_version_and_on_every_processor() -> None:
    """Golden: a checkpoint names its epoch and step alone, and is to go on with the rows that are left."""
    shards = [ShardInfo(f"shard-{i}", "train", 0, rows, 0, "") for i, rows in enumerate((1000, 1, 37, 640, 129))]
    plan = plan_epoch(shards, 64, seed=3, epoch=2, lanes=4, global_batch=8)
    text = ""
    for lane in plan.lanes:
        for piece in lane:
            order = fast_permutation(piece.stream, piece.num_rows)[piece.start : piece.stop]
            text += f"{piece.shard} {piece.row_group} {order.tolist()}\n"
    assert hashlib.sha256(text.encode()).hexdigest() == GOLDEN


# Seeking


@READERS
@pytest.mark.parametrize("world_size", [1, 4])
def test_an_epoch_that_begins_at_any_step_has_the_batches_that_are_left(
    dataset: Dataset, read: Reader, world_size: int
) -> None:
    for rank in range(world_size):
        whole = tiny.copies(read(dataset.stream(), rank, world_size))
        for step in range(len(whole) + 1):
            found = tiny.copies(read(dataset.stream(step=step), rank, world_size))
            assert len(found) == len(whole) - step
            for ours, theirs in zip(found, whole[step:], strict=True):
                assert all(map(np.array_equal, columns(ours), columns(theirs))), f"from step {step}"


@pytest.mark.parametrize("begin", [0, 1, 7, 12, 13])
def test_a_run_that_goes_on_has_the_batches_of_one_that_was_not_interrupted(dataset: Dataset, begin: int) -> None:
    """Through two epochs, in batches of many steps, which end where the whole run's do."""
    config = TrainConfig(data=str(dataset.folder), epochs=2, global_batch=GLOBAL_BATCH, log_every=5, dim=4, threads=1)
    world, manifest = World(0, 1, 0, 1), dataset.manifest
    step = make_step(config, initial_tables(manifest.vocab_size, 4), manifest.config.negatives, 100, world)
    in_epoch = plan_of(config, manifest, 0).num_steps
    assert step.max_steps > config.log_every
    assert in_epoch == 13, "among those that are tried"

    def read(done: int) -> tuple[list[npt.NDArray[Any]], set[int]]:
        """All rows, and the steps of the run at which a batch ends."""
        begin = Position(done // in_epoch, done % in_epoch, done)
        rows, ends = [], set()
        with closing(epochs_of(Run(config, manifest, world, CPU), step, begin)) as epochs:
            for batches in epochs:
                for batch in batches:
                    rows.append(columns(tiny.copy(batch)))
                    done += batch.num_steps
                    ends.add(done)
        return [np.concatenate(parts) for parts in zip(*rows, strict=True)], ends

    whole, ends = read(0)
    assert set(range(5, 2 * in_epoch, 5)) <= ends
    rest, later_ends = read(begin)
    assert all(np.array_equal(ours, theirs[begin * GLOBAL_BATCH :]) for ours, theirs in zip(rest, whole, strict=True))
    assert {end for end in ends if end > begin + 1} <= later_ends


def needed(plan: EpochPlan, rank: int, world_size: int, step: int) -> list[set[tuple[int, int]]]:
    """The row groups in which the rows of a step lie, for each of the rank's lanes."""
    first, last, found = step * plan.rows_per_step, (step + 1) * plan.rows_per_step, []
    for pieces in plan.of_rank(rank, world_size):
        borders = pairwise(np.cumsum([0, *map(_size, pieces)]))
        parts = [piece for piece, (begin, end) in zip(pieces, borders, strict=True) if begin < last and end > first]
        found.append({(piece.shard, piece.row_group) for piece in parts})
    return found


def _size(piece: Piece) -> int:
    return piece.stop - piece.start


@dataclass
class NoRows:
    """A row group whose rows nobody looks at."""

    def unpack(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_seeking_in_ten_million_rows_opens_what_the_first_batch_needs(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, world_size: int
) -> None:
    """That is one row group a lane, and a second one where the batch itself lies across a border; none twice."""
    opened: list[tuple[int, int]] = []

    def count(self: ArrowStream, piece: Piece, fetch: object) -> NoRows:
        opened.append((piece.shard, piece.row_group))
        return NoRows()

    monkeypatch.setattr(ArrowStream, "opened", count)
    shards = [ShardInfo(f"shard-{i}", "train", 0, 1_000_000 + 37 * i, 0, "") for i in range(10)]
    plan = plan_epoch(shards, ROW_GROUP_ROWS, seed=0, epoch=1, lanes=LANES, global_batch=512)
    border = _size(plan.lanes[3][0]) // plan.rows_per_step
    across = 0
    for step in (0, 1, border - 1, border, border + 1, plan.num_steps // 2, plan.num_steps - 1):
        for rank in {0, world_size - 1, 3 % world_size}:
            opened.clear()
            stream = ArrowStream(Path("nowhere"), dataset.manifest, shards, plan.after(step))
            lanes = stream.plan.of_rank(rank, world_size)
            next(chunks_of([stream], rank, world_size, 1, Requests())).do()
            groups = needed(plan, rank, world_size, step)
            assert Counter(opened) == dict.fromkeys(set().union(*groups), 1)
            across += sum(len(found) > 1 for found in groups)
            assert len(opened) <= len(lanes) + sum(len(found) - 1 for found in groups)
    assert 0 < across < 3 * LANES


def test_seeking_among_kept_rows_reads_what_the_first_batch_needs(dataset: Dataset) -> None:
    whole = dataset.stream().plan
    for step in range(whole.num_steps):
        stream, read = dataset.stream(step=step), Counter[tuple[int, int]]()

        def counted(piece: Piece, stream: ArrowStream = stream, read: Counter[tuple[int, int]] = read) -> Any:
            read[piece.shard, piece.row_group] += 1
            return stream.read(piece)

        rows = KeptRows(counted, stream.shards, ROW_GROUP, MAX_LEN, CPU)
        next(rows.batches(stream.plan, 0, 1))
        assert read == dict.fromkeys(set().union(*needed(whole, 0, 1, step)), 1)


# A group


class Together:
    """One of two ranks that are threads here, in place of a Group."""

    def __init__(self, rank: int, arrays: list[npt.NDArray[Any]], meeting: threading.Barrier, lock: threading.Lock):
        self.here = World(rank, 2, rank, 2)
        self._arrays, self._meeting, self._lock, self._taken = arrays, meeting, lock, 0

    def array(self, *shape: int, dtype: Any) -> npt.NDArray[Any]:
        with self._lock:
            self._taken += 1
            if self._taken > len(self._arrays):
                self._arrays.append(np.zeros(shape, dtype))
            return self._arrays[self._taken - 1]

    def barrier(self) -> None:
        self._meeting.wait(timeout=60)


@pytest.mark.parametrize(("copy", "copies"), [(0, 1), (1, 2)])
@pytest.mark.parametrize("how", ["by a thread", "by a team"])
def test_ranks_that_share_memory_get_the_batches_of_one_rank(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch, how: str, copy: int, copies: int
) -> None:
    """Over two epochs, in chunks of three steps; one rank is slow. Also if they are one of several groups."""
    monkeypatch.setattr(stream_module, "CHUNK_ROWS", 3 * GLOBAL_BATCH)
    arrays: list[npt.NDArray[Any]] = []
    meeting, lock, found = threading.Barrier(2), threading.Lock(), {}

    def read(group: Together | None) -> list[list[npt.NDArray[Any]]]:
        team, read = Team(1) if how == "by a team" else None, []
        epochs = read_epochs(dataset.stream, range(2), copy, copies, team=team, group=cast("Group", group))
        for batches in epochs:
            for batch in batches:
                if group and group.here.is_first:
                    time.sleep(0.002)
                read.append([column.copy() for column in columns(batch)])
                if group:
                    group.barrier()  # as a step does
                if team:
                    team.run(lambda thread: None)
        return read

    def work(rank: int) -> None:
        found[rank] = read(Together(rank, arrays, meeting, lock))

    ranks = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    expected = read(None)
    for rank in range(2):
        assert len(found[rank]) == len(expected)
        for ours, theirs in zip(found[rank], expected, strict=True):
            assert all(np.array_equal(our, their) for our, their in zip(ours, theirs, strict=True))
