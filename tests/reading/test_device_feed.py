"""Laws of training.reading.device_feed and training.model.cuda_graph: what a GPU is fed is what the stream reads.

Where there is a GPU they hold on it, elsewhere on the CPU.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor, nn

from pipeline.dataset.manifest_file import Manifest, ShardInfo
from pipeline.dataset.unpacking import Rows
from training.model.batch import Batch
from training.model.cuda_graph import Graphed, Step, warm_up
from training.model.kernels import reference
from training.model.skip_gram import LossFunction, RowLosses, SkipGram
from training.reading import device_feed
from training.reading.device_feed import KeptRows, can_keep, copied
from training.reading.plan import EpochPlan, Piece, plan_epoch
from training.reading.stream import ArrowStream

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROW_GROUP = 64
SAMPLED_EPOCHS = 2


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    """Four shards of many row groups for each of two sampled epochs."""
    folder = tmp_path_factory.mktemp("dataset")
    manifest = tiny.write_tiny_dataset(
        folder, row_group_rows=ROW_GROUP, num_sequences=150, epochs=SAMPLED_EPOCHS, window=2, negatives=1
    )
    assert all(shard.rows > 3 * ROW_GROUP for shard in manifest.shards)
    return folder, manifest


def stream_of(dataset: tuple[Path, Manifest], epoch: int) -> ArrowStream:
    folder, manifest = dataset
    shards = manifest.select(epoch % SAMPLED_EPOCHS)
    plan = plan_epoch(shards, ROW_GROUP, seed=0, epoch=epoch, lanes=8, global_batch=48)
    return ArrowStream(folder, manifest, shards, plan)


def assert_same(found: Sequence[Batch], expected: Sequence[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for ours, theirs in zip(one.tensors(), other.tensors(), strict=True):
            assert ours.device.type == DEVICE.type
            assert ours.is_contiguous()
            assert ours.dtype == theirs.dtype
            assert torch.equal(ours.cpu(), theirs)


class Reads:
    """A stream's ``read`` that counts the row groups it is asked for."""

    def __init__(self, stream: ArrowStream):
        self._stream = stream
        self.counts: Counter[tuple[int, int]] = Counter()

    def __call__(self, piece: Piece) -> Rows:
        self.counts[piece.shard, piece.row_group] += 1
        return self._stream.read(piece)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_kept_rows_are_the_streams_batches_in_every_epoch(dataset: tuple[Path, Manifest], world_size: int) -> None:
    for rank in range(world_size):
        reads = [Reads(stream_of(dataset, sampled)) for sampled in range(SAMPLED_EPOCHS)]
        kept = [
            KeptRows(read, dataset[1].select(sampled), ROW_GROUP, dataset[1].max_len, DEVICE)
            for sampled, read in enumerate(reads)
        ]
        for epoch in range(4):
            stream = stream_of(dataset, epoch)
            expected = tiny.copies(stream.batches(rank, world_size))
            assert_same(list(kept[epoch % SAMPLED_EPOCHS].batches(stream.plan, rank, world_size)), expected)
        assert all(set(read.counts.values()) == {1} for read in reads)


def test_a_row_group_is_read_when_a_step_first_needs_it(dataset: tuple[Path, Manifest]) -> None:
    stream = stream_of(dataset, 0)
    reads = Reads(stream)
    kept = KeptRows(reads, stream.shards, ROW_GROUP, dataset[1].max_len, DEVICE)
    batches = kept.batches(stream.plan, 0, 1)
    next(batches)
    assert len(reads.counts) <= len(stream.plan.lanes)
    list(batches)
    assert len(reads.counts) == sum(-(-shard.rows // ROW_GROUP) for shard in stream.shards)


def test_more_lanes_than_rows_are_empty_rows() -> None:
    plan = EpochPlan(((), (Piece(0, 0, 2, 0, 2, 7),)), rows_per_step=3, num_steps=1)
    shard = ShardInfo("shard", "train", 0, 2, 0, "")
    kept = KeptRows(lambda piece: Rows.zeros(piece.size, 1), [shard], ROW_GROUP, 1, DEVICE)
    assert sorted(kept.order(plan, 0, 1)[0].tolist()) == [0, 1, 2, 2, 2, 2]


def test_rows_are_kept_that_fit_into_half_of_the_memory() -> None:
    assert can_keep(num_rows=1000, max_len=60, memory_bytes=2 * 254_000)
    assert not can_keep(num_rows=1001, max_len=60, memory_bytes=2 * 254_000)


@pytest.mark.parametrize(("batches", "num_bytes"), [(64, 1 << 20), (3, 1 << 20), (64, 1)])
def test_copied_batches_are_the_streams(
    dataset: tuple[Path, Manifest], batches: int, num_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In chunks of all batches, of three, and of one: with the stages in use again and again."""
    monkeypatch.setattr(device_feed, "CHUNK_BATCHES", batches)
    monkeypatch.setattr(device_feed, "CHUNK_BYTES", num_bytes)
    stream = stream_of(dataset, 0)
    expected = tiny.copies(stream.batches(0, 1))
    assert len(expected) % 3, "the last chunk is to be a part of one"
    assert_same(list(copied(stream.batches(0, 1), DEVICE)), expected)
    assert list(copied(iter(()), DEVICE)) == []


@pytest.mark.parametrize(("limit", "value"), [("CHUNK_BATCHES", 2), ("CHUNK_BYTES", 2 * 48 * (4 + 4 * 8 + 2))])
def test_one_chunk_is_read_ahead(
    dataset: tuple[Path, Manifest], limit: str, value: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either limit makes it two batches of 48 rows of 8 targets."""
    monkeypatch.setattr(device_feed, limit, value)
    taken = []

    def counted() -> Iterator[Batch]:
        for batch in stream_of(dataset, 0).batches(0, 1):
            taken.append(batch)
            yield batch

    batches = copied(counted(), DEVICE)
    assert [next(batches) and len(taken) for _ in range(5)] == [4, 4, 6, 6, 8]


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "adam": lambda tables: torch.optim.Adam(tables, lr=0.01, fused=True, capturable=DEVICE.type == "cuda"),
    "adagrad": lambda tables: torch.optim.Adagrad(tables, lr=0.1, fused=True),
    "sgd": lambda tables: torch.optim.SGD(tables, lr=0.1, fused=True),
}


def kernel() -> LossFunction:
    if DEVICE.type == "cpu":
        return reference.row_losses
    from training.model.kernels import cuda

    return cuda.row_losses


def step_of(model: SkipGram, optimizer: torch.optim.Optimizer) -> Step:
    row_losses = RowLosses(model, kernel(), 1)

    def step(*batch: Tensor) -> Tensor:
        optimizer.zero_grad()
        losses_B: Tensor = row_losses(*batch)
        torch.autograd.backward(losses_B.sum())
        optimizer.step()
        return losses_B.detach()

    return step


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("steps_before", [0, 2])
def test_a_step_made_ready_to_be_replayed_trains_what_the_plain_one_does(
    dataset: tuple[Path, Manifest], optimizer: str, steps_before: int
) -> None:
    """Before the first step, and when moments and counters are there already."""
    batches = [batch.tensors() for batch in islice(copied(stream_of(dataset, 0).batches(0, 1), DEVICE), 8)]
    tables, losses = [], []
    for ready in (False, True):
        model = SkipGram(dataset[1].vocab_size, 4).to(DEVICE)
        weights = list(model.parameters())
        made = OPTIMIZERS[optimizer](weights)
        step = step_of(model, made)
        trained = [step(*batch) for batch in batches[:steps_before]]
        if ready and DEVICE.type == "cuda":
            step = Graphed(step, batches[0], weights, made)
        elif ready:
            warm_up(step, batches[0], weights, made)
        trained += [step(*batch).clone() for batch in batches[steps_before:]]
        tables.append(torch.stack([weight.detach() for weight in weights]))
        losses.append(torch.stack(trained))
    tolerance = 0.0 if DEVICE.type == "cpu" else 1e-4  # a GPU adds in any order
    torch.testing.assert_close(tables[1], tables[0], rtol=0.0, atol=tolerance)
    torch.testing.assert_close(losses[1], losses[0], rtol=0.0, atol=tolerance)
