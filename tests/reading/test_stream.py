"""Laws of reading.stream: batches are what pyarrow reads in the plan's order, whatever is read ahead and reused."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import tiny
import torch

from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.shared.randomness import permutation
from training.model.batch import Batch
from training.reading import stream
from training.reading.plan import EpochPlan, Piece, plan_epoch
from training.reading.row_groups import Opened
from training.reading.stream import NUM_CHUNKS, ArrowStream, read_epochs

ROW_GROUP = 64
EPOCHS = 2


@dataclass(frozen=True)
class Dataset:
    folder: Path
    manifest: Manifest

    def stream(self, epoch: int = 0, lanes: int = 16, global_batch: int = 32) -> ArrowStream:
        shards = self.manifest.select(epoch % EPOCHS)
        plan = plan_epoch(shards, ROW_GROUP, seed=0, epoch=epoch, lanes=lanes, global_batch=global_batch)
        return ArrowStream(self.folder, self.manifest, shards, plan)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four shards of many row groups, the last of each shorter, for each of two sampled epochs."""
    folder = tmp_path_factory.mktemp("dataset")
    manifest = tiny.write_tiny_dataset(
        folder, row_group_rows=ROW_GROUP, num_sequences=100, epochs=EPOCHS, window=2, negatives=2
    )
    assert all(shard.rows > 2 * ROW_GROUP and shard.rows % ROW_GROUP for shard in manifest.shards)
    return Dataset(folder, manifest)


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not prefetching()


def prefetching() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture(params=[1, 50, 200], ids="chunks of {} rows".format)
def chunk_rows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch each, or a few; ArrowStream's own chunks would hold a whole epoch."""
    monkeypatch.setattr(stream, "CHUNK_ROWS", request.param)


@cache
def columns(path: Path) -> dict[str, npt.NDArray[np.int64]]:
    table = pq.read_table(path)
    return {name: np.array(table[name].to_pylist()) for name in ("center", "contexts_negatives", "num_contexts")}


def expected(read: ArrowStream, max_len: int, rank: int, world_size: int) -> list[Batch]:
    """Row for row, from what pyarrow reads."""
    lanes = []
    for pieces in read.plan.of_rank(rank, world_size):
        lane = []
        for piece in pieces:
            found = columns(Path(read.dataset.path) / read.shards[piece.shard].path)
            for row in (
                permutation(piece.stream, piece.num_rows)[piece.start : piece.stop] + piece.row_group * ROW_GROUP
            ):
                lane.append([found[name][row] for name in ("center", "contexts_negatives", "num_contexts")])
        empty = [[0, np.zeros(max_len, int), 0]]
        lanes.append(lane + empty * (read.plan.num_steps * read.plan.rows_per_step - len(lane)))
    batches = []
    for step in range(read.plan.num_steps):
        share = slice(step * read.plan.rows_per_step, (step + 1) * read.plan.rows_per_step)
        rows = zip(*(row for lane in lanes for row in lane[share]), strict=True)
        center_B, targets_BL, num_contexts_B = (torch.tensor(np.array(part)) for part in rows)
        batches.append(Batch(center_B.int(), targets_BL.int(), num_contexts_B.short()))
    return batches


def assert_same(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        for ours, theirs in zip(one.tensors(), other.tensors(), strict=True):
            assert (ours.dtype, ours.is_contiguous()) == (theirs.dtype, True)
            assert torch.equal(ours, theirs), f"step {step}"


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize(
    ("world_size", "lanes", "global_batch"),
    [(1, 16, 16), (1, 16, 32), (1, 1, 7), (1, 4, 400), (2, 16, 64), (4, 4, 64), (16, 16, 32), (1, 16, 100_000)],
)
def test_batches_are_what_pyarrow_reads_in_the_plans_order(
    dataset: Dataset, world_size: int, lanes: int, global_batch: int
) -> None:
    """Shares of a row and of more than a row group; lanes that run out; a batch of more than an epoch."""
    global_batch -= global_batch % lanes
    for epoch in (0, 3):
        for rank in range(world_size):
            read = dataset.stream(epoch, lanes, global_batch)
            found = tiny.copies(read.batches(rank, world_size))
            assert_same(found, expected(read, dataset.manifest.max_len, rank, world_size))


@pytest.mark.usefixtures("chunk_rows")
def test_epochs_read_by_one_thread_are_the_streams(dataset: Dataset) -> None:
    """The third epoch is left early."""
    found = []
    for epoch, batches in enumerate(read_epochs(dataset.stream, range(5), 0, 2)):
        found.append(tiny.copies(islice(batches, 3 if epoch == 2 else None)))
    for epoch, copies in enumerate(found):
        assert_same(copies, tiny.copies(dataset.stream(epoch).batches(0, 2))[: 3 if epoch == 2 else None])


def test_lanes_without_rows_are_empty_rows(dataset: Dataset) -> None:
    read = dataset.stream()
    read.plan = EpochPlan(((), (Piece(0, 0, ROW_GROUP, 5, 8, 7),), ()), rows_per_step=2, num_steps=2)
    assert_same(tiny.copies(read.batches(0, 1)), expected(read, dataset.manifest.max_len, 0, 1))


def test_an_epoch_without_steps_has_no_batches(dataset: Dataset) -> None:
    read = dataset.stream()
    read.plan = EpochPlan(((), ()), rows_per_step=2, num_steps=0)
    assert list(read.batches(0, 1)) == []


@pytest.mark.usefixtures("chunk_rows")
def test_a_batch_stays_as_it_is_until_the_next_one_is_asked_for(dataset: Dataset) -> None:
    """The reader is given all the time it may want to spoil it."""
    read = dataset.stream(lanes=4)
    oracle = expected(read, dataset.manifest.max_len, 0, 1)
    for batch, other in zip(read.batches(0, 1), oracle, strict=True):
        threading.Event().wait(0.005)
        assert_same([batch], [other])


def test_memory_is_reused(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_ROWS", 1)
    for epochs in (range(1), range(4)):
        places, count = set(), 0
        for batches in read_epochs(dataset.stream, epochs, 0, 1):
            for batch in batches:
                places.add(tuple(tensor.data_ptr() for tensor in batch.tensors()))
                count += 1
        assert len(places) <= NUM_CHUNKS < count


def test_a_row_group_is_read_once_however_many_lanes_share_it(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    read = ArrowStream.opened

    def counted(self: ArrowStream, piece: Piece, fetch: None) -> Opened:
        opened.append((piece.shard, piece.row_group))
        return read(self, piece, fetch)

    monkeypatch.setattr(ArrowStream, "opened", counted)
    for _ in dataset.stream(lanes=16).batches(0, 1):
        pass
    assert len(opened) == len(set(opened)) == sum(-(-shard.rows // ROW_GROUP) for shard in dataset.manifest.select(0))


# Errors


def damaged(dataset: Dataset, folder: Path, piece: Piece) -> Dataset:
    """A copy with one flipped bit in the contexts of the piece's row group; returns it."""
    other = Dataset(folder, dataset.manifest)
    for shard in dataset.manifest.shards:
        (folder / shard.path).parent.mkdir(parents=True, exist_ok=True)
        (folder / shard.path).write_bytes((dataset.folder / shard.path).read_bytes())
    victim = folder / dataset.manifest.select(0)[piece.shard].path
    column = pq.ParquetFile(victim).metadata.row_group(piece.row_group).column(1)
    content = bytearray(victim.read_bytes())
    content[column.dictionary_page_offset + column.total_compressed_size - 1] ^= 1
    victim.write_bytes(content)
    return other


@pytest.mark.usefixtures("chunk_rows")
@pytest.mark.parametrize("place", [0, 1, -1])
@pytest.mark.parametrize("lanes", [1, 4])
def test_damage_is_named_in_place_of_the_first_batch_that_has_its_rows(
    dataset: Dataset, tmp_path: Path, lanes: int, place: int
) -> None:
    """And all batches before it are right."""
    whole = dataset.stream(lanes=lanes)
    piece = whole.plan.lanes[-1][place]
    steps = []
    oracle = tiny.copies(whole.batches(0, 1))
    for lane in whole.plan.lanes:
        rows = [(other.shard, other.row_group) for other in lane for _ in range(other.start, other.stop)]
        if (piece.shard, piece.row_group) in rows:
            steps.append(rows.index((piece.shard, piece.row_group)) // whole.plan.rows_per_step)
    broken = damaged(dataset, tmp_path, piece).stream(lanes=lanes)
    found: list[Batch] = []
    name = Path(whole.shards[piece.shard].path).name
    with pytest.raises(ManifestError, match=rf"{name}: damaged .*CRC"):
        found.extend(map(tiny.copy, broken.batches(0, 1)))
    assert_same(found, oracle[: min(steps)])


def test_a_stream_left_early_ends_its_thread(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_ROWS", 1)
    batches = dataset.stream().batches(0, 1)
    next(batches)
    assert prefetching()
    batches.close()  # type: ignore[attr-defined]
    assert not prefetching()
