"""Laws of training.reading.plan and training.reading.stream: the order in which examples are read."""

import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tiny import copies, write_tiny_dataset

from pipeline.dataset.manifest_file import Counts, Manifest, ManifestError, ShardInfo
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Examples
from pipeline.shared.storage import Location
from pipeline.spark.shard_writer import ShardFile
from training.model.batch import Batch
from training.reading import epochs
from training.reading.plan import EpochPlan, plan_epoch
from training.reading.stream import ArrowStream

SIZES = [1000, 1, 37, 640, 64, 129, 500]
ROW_GROUP = 64
LANES = 16


def shards_of(sizes: list[int]) -> list[ShardInfo]:
    return [ShardInfo(f"shard-{i}", "train", 0, rows, 0, "") for i, rows in enumerate(sizes)]


def plan_of(sizes: list[int], epoch: int = 0, seed: int = 0, lanes: int = LANES, batch: int = 32) -> EpochPlan:
    return plan_epoch(shards_of(sizes), ROW_GROUP, seed, epoch, lanes, batch)


def rows_in_order(plan: EpochPlan) -> list[list[tuple[int, int, int]]]:
    """(shard, row group, place in its permuted order) of every row of every lane."""
    return [
        [(piece.shard, piece.row_group, row) for piece in lane for row in range(piece.start, piece.stop)]
        for lane in plan.lanes
    ]


@pytest.mark.parametrize("sizes", [SIZES, [1], [64], [15], [16], [1, 1, 1]], ids=str)
@pytest.mark.parametrize("lanes", [1, 2, 16])
def test_lanes_hold_every_row_once_and_are_equally_long(sizes: list[int], lanes: int) -> None:
    plan = plan_of(sizes, lanes=lanes)
    rows = rows_in_order(plan)
    everything = Counter(row for lane in rows for row in lane)
    expected = {
        (shard, group, row)
        for shard, size in enumerate(sizes)
        for group in range(-(-size // ROW_GROUP))
        for row in range(min(ROW_GROUP, size - group * ROW_GROUP))
    }
    assert set(everything) == expected
    assert set(everything.values()) == {1}
    lengths = [len(lane) for lane in rows]
    assert max(lengths) - min(lengths) <= 1
    assert (plan.num_steps - 1) * plan.rows_per_step < max(lengths) <= plan.num_steps * plan.rows_per_step


def test_lanes_that_share_a_row_group_share_its_permutation() -> None:
    streams: dict[tuple[int, int], set[int]] = {}
    for lane in plan_of(SIZES).lanes:
        for piece in lane:
            streams.setdefault((piece.shard, piece.row_group), set()).add(piece.stream)
    assert all(len(found) == 1 for found in streams.values())
    assert len({next(iter(found)) for found in streams.values()}) == len(streams)


def test_another_epoch_or_seed_is_another_order_and_the_same_one_is_the_same() -> None:
    orders = {str(plan_of(SIZES, epoch, seed).lanes) for epoch in range(3) for seed in range(3)}
    assert len(orders) == 9
    assert plan_of(SIZES) == plan_of(SIZES)


def test_epochs_read_the_sampled_ones_in_turn(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path, epochs=3)
    read = [{shard.epoch for shard in epochs.shards_of(manifest, epoch)} for epoch in range(5)]
    assert read == [{0}, {1}, {2}, {0}, {1}]


# A dataset whose rows can be told apart: row i has center i + 1.


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder, config = tmp_path_factory.mktemp("dataset"), PipelineConfig(window=1, negatives=1)
    infos, first = [], 1
    (folder / "gen-0").mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.spark.shard_writer.ROW_GROUP_ROWS", ROW_GROUP)
        for number, size in enumerate(SIZES):
            center = np.arange(first, first + size, dtype=np.int32)
            targets = np.add.outer(center, np.arange(4)).astype(np.int32)
            with ShardFile(Location.of(folder / "gen-0"), "train", 0, number, config) as file:
                file.append(Examples(center, targets, (center % 2 + 1).astype(np.int16), 0))
                info = file.finish()
            assert info is not None
            infos.append(info)
            first += size
    counts = Counts(0, 0, 0, 0, 0, 0, 0, 0, 0, sum(SIZES), 0)
    manifest = Manifest("gen-0", config, (), counts, first + 4, "", 4, ROW_GROUP, {}, tuple(infos))
    (folder / "gen-0" / "vocab.parquet").touch()
    manifest.save(folder)
    return folder, manifest


def batches(dataset: tuple[Path, Manifest], rank: int, world_size: int, epoch: int = 0) -> list[Batch]:
    folder, manifest = dataset
    plan = plan_epoch(manifest.shards, ROW_GROUP, 0, epoch, LANES, 32)
    return copies(ArrowStream(folder, manifest, manifest.shards, plan).batches(rank, world_size))


def global_batches(dataset: tuple[Path, Manifest], world_size: int, epoch: int = 0) -> list[list[int]]:
    """The centers of every step over all ranks, sorted."""
    ranks = [batches(dataset, rank, world_size, epoch) for rank in range(world_size)]
    assert len({len(steps) for steps in ranks}) == 1
    return [sorted(torch.cat([batch.center_B for batch in step]).tolist()) for step in zip(*ranks, strict=True)]


@pytest.mark.parametrize("world_size", [2, 4, 8, 16])
def test_a_global_batch_does_not_depend_on_the_world(dataset: tuple[Path, Manifest], world_size: int) -> None:
    assert global_batches(dataset, world_size) == global_batches(dataset, 1)


@pytest.mark.parametrize("world_size", [1, 4])
def test_every_example_is_seen_once_per_epoch(dataset: tuple[Path, Manifest], world_size: int) -> None:
    steps = global_batches(dataset, world_size)
    seen = [center for step in steps for center in step if center]
    assert sorted(seen) == list(range(1, sum(SIZES) + 1))
    assert all(len(step) == 32 for step in steps)
    assert all(0 not in step for step in steps[:-2])


def test_rows_stay_whole_and_batches_are_not_the_files_order(dataset: tuple[Path, Manifest]) -> None:
    for batch in batches(dataset, 0, 1):
        full = batch.center_B > 0
        assert torch.equal(batch.contexts_negatives_BL[full][:, 0], batch.center_B[full])
        assert torch.equal(batch.num_contexts_B[full].int(), batch.center_B[full] % 2 + 1)
        assert not batch.num_contexts_B[~full].any()
    orders = [hashlib.sha256(str(global_batches(dataset, 1, epoch)).encode()).hexdigest() for epoch in (0, 1)]
    assert orders[0] != orders[1]
    first = global_batches(dataset, 1)[0]
    assert max(np.diff(sorted(first))) > 10


def damage(path: Path) -> None:
    """Flips a bit of the last byte of the contexts of row group 0."""
    column = pq.ParquetFile(path).metadata.row_group(0).column(1)
    offset = column.dictionary_page_offset + column.total_compressed_size - 1
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def test_a_damaged_page_is_named(dataset: tuple[Path, Manifest], tmp_path: Path) -> None:
    folder, manifest = dataset
    victim = folder / manifest.shards[3].path
    whole = victim.read_bytes()
    try:
        damage(victim)
        with pytest.raises(ManifestError, match=r"shard-00003\.parquet: damaged or unreadable .*CRC"):
            batches(dataset, 0, 1)
    finally:
        victim.write_bytes(whole)


def test_row_groups_of_another_size_are_noticed(dataset: tuple[Path, Manifest]) -> None:
    folder, manifest = dataset
    plan = plan_epoch(manifest.shards, 50, 0, 0, LANES, 32)
    with pytest.raises(ManifestError, match="has 64 rows, the manifest implies 50"):
        list(ArrowStream(folder, manifest, manifest.shards, plan).batches(0, 1))
