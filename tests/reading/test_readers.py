"""What every reader of shards promises: the laws hold for each one that the environment has.

The usual environment has ours, petastorm's has both; `make test` runs this file in the two.
"""

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from conftest import ROOT, Command

from pipeline.dataset.manifest_file import Manifest, ManifestError, ShardInfo
from training import train
from training.model.batch import Batch
from training.reading.petastorm_stream import num_steps, petastorm_epochs, shares_of_epoch
from training.reading.plan import plan_epoch
from training.reading.stream import ArrowStream

IS_PETASTORMS = pa.__version__.startswith("14.")  # so that a petastorm that is missing there is not overlooked
GLOBAL_BATCH = 32
EPOCHS = 2
WORLDS = (1, 2, 4, 8)

Row = tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    folder: Path
    manifest: Manifest

    def rows(self, sampled: int) -> "Counter[Row]":
        """What pyarrow finds in the shards of a sampled epoch."""
        return Counter(row for shard in self.manifest.select(sampled) for row in rows_of(self.folder / shard.path))


def rows_of(path: Path, row_groups: Iterable[int] | None = None) -> list[Row]:
    with pq.ParquetFile(path) as file:
        table = file.read_row_groups(list(range(file.num_row_groups) if row_groups is None else row_groups))
    columns = (table[name].to_pylist() for name in ("center", "num_contexts", "contexts_negatives"))
    return [(center, n, *targets) for center, n, targets in zip(*columns, strict=True)]


Reader = Callable[..., Generator[Batch, None, None]]
"""(dataset, epoch, rank, world_size, seed=0): the batches of one epoch."""


def arrow(dataset: Dataset, epoch: int, rank: int, world_size: int, seed: int = 0) -> Generator[Batch, None, None]:
    shards = dataset.manifest.select(epoch % EPOCHS)
    plan = plan_epoch(shards, dataset.manifest.row_group_rows, seed, epoch, lanes=16, global_batch=GLOBAL_BATCH)
    yield from ArrowStream(dataset.folder, dataset.manifest, shards, plan).batches(rank, world_size)


def petastorm(dataset: Dataset, epoch: int, rank: int, world_size: int, seed: int = 0) -> Generator[Batch, None, None]:
    shape = GLOBAL_BATCH, rank, world_size
    with closing(petastorm_epochs(dataset.folder, dataset.manifest, seed, [epoch], *shape)) as epochs:
        for batches in epochs:
            yield from batches


@pytest.fixture(params=[arrow, petastorm] if IS_PETASTORMS else [arrow], ids=lambda reader: reader.__name__)
def reader(request: pytest.FixtureRequest) -> Reader:
    found: Reader = request.param
    return found


def written(folder: Path, num_shards: int, row_group_rows: int) -> Dataset:
    config = {"num_shards": num_shards, "epochs": EPOCHS, "window": 2, "negatives": 2}
    return Dataset(folder, tiny.write_tiny_dataset(folder, 100, row_group_rows=row_group_rows, **config))


@pytest.fixture(
    scope="module",
    params=[(16, 32), (3, 100), (1, 300), (1, 4096)],
    ids="{0[0]} shards in row groups of {0[1]}".format,
)
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """About 800 rows an epoch: in a shard's last row group as good as always fewer than in the others."""
    return written(tmp_path_factory.mktemp("dataset"), *request.param)


@pytest.fixture
def own(tmp_path: Path) -> Dataset:
    """A dataset that the test may change."""
    return written(tmp_path / "data set", 3, 100)


def rows_in(batches: Iterable[Batch]) -> list[Row]:
    """All rows, empty ones too, in their order."""
    found = []
    for batch in batches:
        columns = (tensor.tolist() for tensor in batch.tensors())
        found += [(center, n, *targets) for center, targets, n in zip(*columns, strict=True)]
    return found


def real(rows: Iterable[Row]) -> "Counter[Row]":
    return Counter(row for row in rows if row[1])


@pytest.mark.parametrize("world_size", WORLDS)
def test_every_example_is_seen_once_an_epoch_in_equally_many_steps(
    reader: Reader, dataset: Dataset, world_size: int
) -> None:
    per_rank, max_len = GLOBAL_BATCH // world_size, dataset.manifest.max_len
    for epoch in range(3):
        ranks = [tiny.copies(reader(dataset, epoch, rank, world_size)) for rank in range(world_size)]
        assert len({len(batches) for batches in ranks}) == 1
        for batch in (batch for batches in ranks for batch in batches):
            assert [(tuple(tensor.shape), tensor.dtype) for tensor in batch.tensors()] == [
                ((per_rank,), torch.int32),
                ((per_rank, max_len), torch.int32),
                ((per_rank,), torch.int16),
            ]
            assert all(tensor.is_contiguous() for tensor in batch.tensors())
        rows = [row for batches in ranks for row in rows_in(batches)]
        assert real(rows) == dataset.rows(epoch % EPOCHS)
        assert all(set(row) == {0} for row in rows if not row[1])


@pytest.mark.parametrize("world_size", [1, 4])
def test_order_is_a_function_of_seed_epoch_and_world(reader: Reader, dataset: Dataset, world_size: int) -> None:
    """Whatever other generators do, which are not touched either."""

    def read(epoch: int, seed: int) -> list[Row]:
        return [row for rank in range(world_size) for row in rows_in(reader(dataset, epoch, rank, world_size, seed))]

    first = read(0, 0)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()
    assert read(0, 0) == first
    assert (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()) == before
    orders = [first, read(2, 0), read(0, 1), read(2, 1)]  # of one sampled epoch
    assert [real(order) for order in orders] == [real(first)] * 4
    assert len({tuple(order) for order in orders}) == 4


def test_rows_that_lie_together_are_far_apart_in_an_epoch(reader: Reader, dataset: Dataset) -> None:
    """Rows of one sentence stand together in a shard: the mean way between neighbours is near a third of all rows."""
    order = {row: place for place, row in enumerate(rows_in(reader(dataset, 0, 0, 1)))}
    shards = [rows_of(dataset.folder / shard.path) for shard in dataset.manifest.select(0)]
    ways = [abs(order[one] - order[other]) for rows in shards for one, other in pairwise(rows)]
    assert np.mean(ways) > 0.25 * len(order)


def test_only_what_the_manifest_lists_is_read(reader: Reader, own: Dataset) -> None:
    before = rows_in(reader(own, 0, 0, 1))
    shard = own.folder / own.manifest.select(0)[0].path
    (shard.parent / "shard-00009.parquet").write_bytes(shard.read_bytes())
    (shard.parent / "shard-00000.parquet.tmp").write_bytes(b"half")
    (shard.parent / "_metadata").write_bytes(b"not ours")
    assert rows_in(reader(own, 0, 0, 1)) == before


@pytest.mark.parametrize("number", [0, 2])
def test_damage_is_named_before_its_rows_are_handed_out(reader: Reader, own: Dataset, number: int) -> None:
    """One byte of a row group's contexts."""
    path = own.folder / own.manifest.select(0)[number].path
    lost = Counter(rows_of(path, [1]))
    chunk = pq.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    content[chunk.dictionary_page_offset + chunk.total_compressed_size - 1] ^= 1
    whole = own.rows(0)
    path.write_bytes(content)
    for world_size in (1, 2):
        found, errors = [], []
        for rank in range(world_size):
            try:
                for batch in reader(own, 0, rank, world_size):
                    found += rows_in([batch])
            except ManifestError as error:
                errors.append(str(error))
        assert errors
        assert all(str(path) in error and "damaged" in error for error in errors)
        assert real(found) <= whole - lost


def test_a_reader_that_is_left_leaves_no_thread(reader: Reader, own: Dataset) -> None:
    before = set(threading.enumerate())
    for _ in range(2):
        with closing(reader(own, 0, 0, 1)) as batches:
            assert len(list(islice(batches, 2))) == 2
        assert set(threading.enumerate()) - before == set()


PEAK = """
import resource, sys, test_readers
from pathlib import Path
test_readers.GLOBAL_BATCH = 512
for folder in sys.argv[2:]:
    dataset = test_readers.Dataset(Path(folder), test_readers.Manifest.load(folder))
    batches = getattr(test_readers, sys.argv[1])(dataset, 0, 0, 1)
    print(sum(int((batch.num_contexts_B > 0).sum()) for batch in batches))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_dataset(reader: Reader, tmp_path: Path) -> None:
    """256,000 rows of 246 bytes, then four times as many; 189 MB more. One process for both: its peak only rises."""
    manifest = tiny.write_tiny_dataset(tmp_path / "4", num_sequences=8_000, num_shards=1)
    shard = manifest.shards[0]
    assert shard.rows > 60_000
    for copies in (4, 16):
        folder = tmp_path / str(copies)
        shards = tuple(replace(shard, path=f"{shard.path}.{number}") for number in range(copies))
        for other in shards:
            (folder / other.path).parent.mkdir(parents=True, exist_ok=True)
            (folder / other.path).write_bytes((tmp_path / "4" / shard.path).read_bytes())
        counts = replace(manifest.counts, examples=copies * shard.rows)
        replace(manifest, shards=shards, counts=counts).save(folder)
    command = [sys.executable, "-c", PEAK, reader.__name__, str(tmp_path / "4"), str(tmp_path / "16")]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{Path(__file__).parent}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    rows_4, peak_4_kb, rows_16, peak_16_kb = map(int, done.stdout.split())
    assert (rows_4, rows_16) == (4 * shard.rows, 16 * shard.rows)
    assert peak_16_kb - peak_4_kb < 120_000, (peak_4_kb, peak_16_kb)


# petastorm's plan, which needs no petastorm


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize(
    "sizes", [[100] * 16, [1, 1000, 64, 65, 128], [5], [1000], [64, 64], []], ids=lambda sizes: f"{len(sizes)}"
)
def test_shares_are_all_row_groups_once(sizes: list[int], world_size: int) -> None:
    shards = [ShardInfo(str(number), "train", 0, rows, 0, "") for number, rows in enumerate(sizes)]
    for epoch in range(2):
        shares = shares_of_epoch(shards, 64, 0, epoch, world_size)
        found: Counter[tuple[str, int]] = Counter()
        for share in shares:
            owners = [(shard.path, row_group) for shard in share.shards for row_group in range(-(-shard.rows // 64))]
            assert len(owners) == len(share.row_groups)
            found.update(owners[share.part :: share.parts])
        assert found == Counter({(shard.path, number): 1 for shard in shards for number in range(-(-shard.rows // 64))})
        assert sum(share.num_rows for share in shares) == sum(sizes)
        longest = max(share.num_rows for share in shares)
        assert num_steps(shares, 10) * 10 in range(longest, longest + 10)


def test_ranks_with_equal_shards_have_equal_shares() -> None:
    """Of a long row group and a short one each: dealt one by one, half of the ranks would get all the long ones."""
    shards = [ShardInfo(str(number), "train", 0, 80, 0, "") for number in range(16)]
    for world_size in (1, 2, 4, 8, 16):
        shares = shares_of_epoch(shards, 64, 0, 0, world_size)
        assert {share.num_rows for share in shares} == {16 * 80 // world_size}


@pytest.mark.skipif(IS_PETASTORMS, reason="here petastorm works")
def test_without_petastorms_environment_its_reader_is_refused(own: Dataset, call: Command) -> None:
    for flags in ((), ("--nproc", "2")):
        arguments = "--reader", "petastorm", "--data", own.folder, "--output", own.folder / "run", *flags
        found = f"found pyarrow {pa.__version__}"
        call(train.main, *arguments).assert_refused("--reader", found, "expected 14", "make setup-petastorm")
        assert not (own.folder / "run").exists()
