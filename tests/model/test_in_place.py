"""Laws of --sync-every N: what ranks train, each its own tables in place, and when these are averaged."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Threads
from ranks import train_here
from safetensors.numpy import load_file
from tiny import copies, write_tiny_dataset
from torch import Tensor

from pipeline.dataset.manifest_file import Manifest
from training import train
from training.model.schedule import linear_decay
from training.model.skip_gram import SkipGram
from training.model.steps import kernel_of
from training.reading.epochs import stream_of
from training.train_config import IN_PLACE, TrainConfig

pytestmark = pytest.mark.usefixtures("no_pages")
OPTIMIZERS = pytest.mark.parametrize("optimizer", IN_PLACE)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=400, epochs=2)
    return folder


@pytest.fixture(scope="module")
def little(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the reference, which takes a millisecond a row."""
    folder = tmp_path_factory.mktemp("little")
    write_tiny_dataset(folder, num_sequences=100)
    return folder


def config_of(data: Path, output: Path, optimizer: str, **others: object) -> TrainConfig:
    """A run whose epochs do not end with a whole stretch of steps."""
    settings = {"epochs": 3, "global_batch": 256, "dim": 16, "log_every": 1, "threads": 1, "kernel": "cpu", **others}
    return TrainConfig(data=str(data), output=output, optimizer=optimizer, sync_every=4, device="cpu", **settings)  # type: ignore[arg-type]


def by_hand(config: TrainConfig, world_size: int) -> tuple[list[float], list[Tensor], list[Tensor]]:
    """The rate of every step, and the tables and optimizer state of a run: a loop over what each rank does."""
    manifest = Manifest.load(config.data)
    optimizer, trainer = IN_PLACE[config.optimizer], kernel_of(config.kernel).trainer
    ranks = []
    for _ in range(world_size):
        tables = SkipGram(manifest.vocab_size, config.dim, config.seed, in_place=True).tables
        ranks.append(trainer(tables, manifest.config.negatives, config.optimizer))

    def average() -> None:
        for same in zip(*(rank.parts() for rank in ranks), strict=True):
            mean = torch.stack(same).mean(0)
            for part in same:
                part.copy_(mean)

    rows = [sum(shard.rows for shard in manifest.select(epoch % 2)) for epoch in range(config.epochs)]
    rates = []
    for epoch in range(config.epochs):
        stream = stream_of(config, manifest, epoch)
        batches = [copies(stream.batches(rank, world_size)) for rank in range(world_size)]
        assert len(batches[0]) % config.sync_every != 0
        for step in range(len(batches[0])):
            seen = sum(rows[:epoch]) + step * config.global_batch
            rates.append(linear_decay(config.lr, seen, sum(rows)) if optimizer.lr_decays else config.lr)
            for rank in range(world_size):
                factor = world_size if optimizer.lr_times_ranks else 1
                ranks[rank].update(batches[rank][step].tensors(), rates[-1] * factor)
            if (step + 1) % config.sync_every == 0 or step == len(batches[0]) - 1:
                average()
    return rates, [table.whole() for table in ranks[0].blocks()], list(ranks[0].state.values())


def assert_is(output: Path, rates: list[float], tables: list[Tensor]) -> None:
    """The run's vectors, to the bit, and the rates in its metrics."""
    found = load_file(output / "vectors.safetensors")
    for name, table_VD in zip(("center", "context"), tables, strict=True):
        assert np.array_equal(found[name], table_VD.numpy())
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in lines if line["kind"] == "step"] == pytest.approx(rates, rel=1e-12)


@OPTIMIZERS
def test_one_process_trains_row_after_row(data: Path, tmp_path: Path, threads: Threads, optimizer: str) -> None:
    config = config_of(data, tmp_path / "run", optimizer)
    train.be_a_rank(config)
    rates, tables, _ = by_hand(config, world_size=1)
    assert_is(tmp_path / "run", rates, tables)
    start = SkipGram(len(tables[0]), 16, in_place=True).center.weight.detach()
    assert (tables[0] - start).abs().max() > 0.1


@pytest.mark.parametrize(
    ("kernel", "optimizer"), [*(("cpu", optimizer) for optimizer in IN_PLACE), ("reference", "rowwise_adagrad")]
)
def test_two_ranks_are_averaged_every_n_steps_and_at_an_epochs_end(
    data: Path, little: Path, tmp_path: Path, threads: Threads, kernel: str, optimizer: str
) -> None:
    """Steps are counted within their epoch. The optimizer's state is averaged as well."""
    if kernel == "reference":
        config = config_of(little, tmp_path / "run", optimizer, kernel=kernel, global_batch=64, epochs=2)
    else:
        config = config_of(data, tmp_path / "run", optimizer, kernel=kernel)
    names = ("data", "output", "optimizer", "sync_every", "epochs", "global_batch", "dim", "kernel", "log_every")
    flags = [text for name in names for text in (f"--{name.replace('_', '-')}", getattr(config, name))]
    ended = train_here(*flags, "--nproc", 2, "--threads", 1, "--device", "cpu", logs=tmp_path)
    assert ended.code == 0, ended.stderr
    threads(1)
    rates, tables, state = by_hand(config, world_size=2)
    assert_is(tmp_path / "run", rates, tables)
    assert len(state) == 2 * len(IN_PLACE[optimizer].row_state)


def test_sgd_follows_word2vec_and_adagrad_keeps_a_sum_for_each_row() -> None:
    """word2vec.c's rate and decay, and as many times the rate as there are ranks (facts of IN_PLACE)."""
    assert IN_PLACE["sgd"] == (0.025, True, True, ())
    assert IN_PLACE["rowwise_adagrad"] == (0.05, False, False, ("sums",))


@OPTIMIZERS
def test_every_optimizer_in_place_learns_at_its_usual_rate(
    data: Path, tmp_path: Path, threads: Threads, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = TrainConfig(
        data=str(data),
        output=tmp_path / "run",
        optimizer=optimizer,
        sync_every=2,
        global_batch=256,
        dim=16,
        device="cpu",
    )
    train.be_a_rank(config)
    losses = [epoch["loss"] for epoch in json.loads((tmp_path / "run" / "summary.json").read_text())["epochs"]]
    assert losses[-1] < losses[0] - 0.02
    assert f"{optimizer}, lr {IN_PLACE[optimizer].lr:g}" in capsys.readouterr().out


@OPTIMIZERS
def test_in_place_the_reference_is_nearly_what_machine_code_is(
    little: Path, tmp_path: Path, threads: Threads, optimizer: str
) -> None:
    """Machine code takes the slopes of 64 rows before the first moves anything, the reference those of one."""
    losses = []
    for kernel in ("reference", "cpu"):
        config = config_of(little, tmp_path / kernel, optimizer, kernel=kernel, epochs=2)
        train.be_a_rank(config)
        summary = json.loads((tmp_path / kernel / "summary.json").read_text())
        losses.append([epoch["loss"] for epoch in summary["epochs"]])
    assert losses[0] != losses[1]
    np.testing.assert_allclose(losses[0], losses[1], atol=0.02)


def test_tables_in_place_begin_as_in_word2vec() -> None:
    """Centers uniform in 0.5/D either way, contexts 0, so that the first loss is ln 2."""
    model = SkipGram(500, 20, in_place=True)
    assert 0.5 / 20 * 0.99 < model.center.weight.abs().max() <= 0.5 / 20
    assert not model.context.weight.any()
    assert not model.center.weight[0].any()


def test_the_rate_decays_linearly_to_a_floor() -> None:
    assert [linear_decay(0.5, seen, 100) for seen in (0, 25, 50, 100, 1000)] == [0.5, 0.375, 0.25, 0.002, 0.002]
    assert linear_decay(0.5, 0, 0) == 0.5
