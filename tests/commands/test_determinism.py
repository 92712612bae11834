"""Laws of docs/determinism.md that concern whole runs: which of them end with the same bits, and which nearly do."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Threads
from ranks import train_here
from safetensors.numpy import load_file
from tiny import write_tiny_dataset

from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.errors import InputError
from training import train
from training.reading.epochs import plan_of
from training.runs.checkpoint import steps
from training.runs.progress import Progress, RunRecord, Settings, differences
from training.stopping import StopSignal
from training.train_config import NEWEST, TrainConfig

pytestmark = pytest.mark.usefixtures("no_pages")

IN_EPOCH = 13
"""Steps of an epoch; a run has two."""

WAYS: dict[str, dict[str, Any]] = {
    "adam": {},
    "adam by the reference": {"kernel": "reference"},
    "dense adagrad": {"optimizer": "adagrad"},
    "sgd in place": {"sync_every": 4, "optimizer": "sgd"},
    "adagrad in place": {"sync_every": 4, "optimizer": "rowwise_adagrad"},
}


long = partial(pytest.param, marks=pytest.mark.long)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    manifest = write_tiny_dataset(folder, num_sequences=400)
    assert -(-sum(shard.rows for shard in manifest.shards) // 256) == IN_EPOCH
    return folder


def config_of(data: Path, output: Path, **others: Any) -> TrainConfig:
    settings = {"epochs": 2, "global_batch": 256, "dim": 40, "log_every": 5, "threads": 1, "device": "cpu", **others}
    return TrainConfig(data=str(data), output=output, **settings)


def tables(output: Path) -> npt.NDArray[np.float32]:
    found = load_file(output / "vectors.safetensors")
    return np.stack([found["center"], found["context"]])


def metrics(output: Path, *names: str) -> list[list[Any]]:
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [[line.get(name, 0.0) for name in names] for line in lines]


def trained(data: Path, output: Path, **others: Any) -> Path:
    train.be_a_rank(config_of(data, output, **others))
    return output


def interrupted(run: Path, copy: Path) -> Path:
    """A copy of a finished run as if it had never come to its end."""
    shutil.copytree(run, copy)
    for name in ("summary.json", "vectors.safetensors"):
        (copy / name).unlink()
    return copy


def assert_same_run(found: Path, expected: Path) -> None:
    """To the bit, but for logged losses: their sums are added up in other parts."""
    assert np.array_equal(tables(found), tables(expected))
    exact = "kind", "epoch", "step", "lr", "examples"
    assert metrics(found, *exact) == metrics(expected, *exact)
    ours, theirs = (metrics(run, "loss", "mean_loss") for run in (found, expected))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> dict[str, Any]:
    return WAYS[request.param]


@pytest.fixture(scope="module")
def whole(data: Path, way: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts, with a checkpoint after every step."""
    output = tmp_path_factory.mktemp("whole") / "run"
    return trained(data, output, **way, checkpoint_every=1, keep=1000)


@pytest.mark.parametrize("checkpoint_every", [long(None), 7])
def test_when_checkpoints_are_written_changes_no_bit(
    data: Path, way: dict[str, Any], whole: Path, tmp_path: Path, checkpoint_every: int | None
) -> None:
    found = trained(data, tmp_path / "run", **way, checkpoint_every=checkpoint_every)
    assert steps(found) == ([IN_EPOCH, 2 * IN_EPOCH] if checkpoint_every is None else [21, 2 * IN_EPOCH])
    assert_same_run(found, whole)


@pytest.mark.parametrize("step", [1, IN_EPOCH, *map(long, (IN_EPOCH - 1, IN_EPOCH + 1, 2 * IN_EPOCH))])
def test_a_run_that_goes_on_ends_with_the_bits_of_one_that_was_not_interrupted(
    data: Path, way: dict[str, Any], whole: Path, tmp_path: Path, step: int
) -> None:
    """In mid-epoch, next to its border, and when only the vectors are still to be written."""
    run = interrupted(whole, tmp_path / "run")
    assert_same_run(trained(data, run, **way, resume=step), whole)


@pytest.mark.parametrize("step", [6, *map(long, (1, IN_EPOCH, 2 * IN_EPOCH - 1))])
def test_a_sigterm_after_any_step_changes_no_bit(
    data: Path, way: dict[str, Any], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "agreed", lambda self, done: done >= step)
        patch.setattr(StopSignal, "exit_code", 143)
        with pytest.raises(SystemExit) as end:
            trained(data, tmp_path / "run", **way, checkpoint_every=1)
    assert end.value.code == 143
    assert steps(tmp_path / "run")[-1] == step
    assert_same_run(trained(data, tmp_path / "run", **way, resume=NEWEST), whole)


def test_another_seed_begins_with_other_tables_and_reads_in_another_order(data: Path, tmp_path: Path) -> None:
    one, other = (trained(data, tmp_path / f"{seed}", seed=seed, lr=1e-9, epochs=1) for seed in (0, 1))
    assert np.abs(tables(one) - tables(other)).mean() > 0.01
    manifest = Manifest.load(data)
    assert len({str(plan_of(config_of(data, one, seed=seed), manifest, 0).lanes) for seed in (0, 1)}) == 2


# Ranks


def on_ranks(nproc: int, data: Path, output: Path, *flags: str) -> Path:
    """A run of ``config_of`` on ranks of one thread."""
    config = config_of(data, output)
    names = ("data", "output", "epochs", "global_batch", "dim", "log_every", "threads", "device")
    own = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    ended = train_here("--nproc", nproc, *own, *flags, logs=output.parent)
    assert ended.code == 0, ended.stderr
    return output


def test_adam_goes_on_with_the_same_bits_on_other_ranks(data: Path, tmp_path: Path) -> None:
    """From one process to two and back; each rank has as many threads."""
    alone = trained(data, tmp_path / "alone", checkpoint_every=1, keep=1000)
    two = interrupted(alone, tmp_path / "two")
    shutil.rmtree(two / "checkpoints" / f"step-{2 * IN_EPOCH:08d}")
    on_ranks(2, data, two, "--resume", "5", "--keep", "1000", "--checkpoint-every", "1", "--sharding", "replicated")
    assert np.array_equal(tables(two), tables(alone))
    back = interrupted(two, tmp_path / "back")
    assert_same_run(trained(data, back, resume=IN_EPOCH + 2), alone)


@pytest.mark.parametrize("flags", ["--optimizer sgd --dim 8192 --global-batch 1024 --epochs 1", long("--sync-every 4")])
def test_ranks_that_go_on_end_with_the_same_bits(data: Path, tmp_path: Path, flags: str) -> None:
    """Four of them, so that the order matters in which numbers are added up; tables that take more than one message."""
    given = *flags.split(), "--sharding", "replicated", "--deterministic"
    whole = on_ranks(4, data, tmp_path / "whole", *given, "--checkpoint-every", "1", "--keep", "1000")
    run = interrupted(whole, tmp_path / "run")
    on_ranks(4, data, run, *given, "--resume", str(steps(whole)[0]))
    assert_same_run(run, whole)


# Threads


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad"])
def test_machine_code_with_dense_gradients_has_the_same_bits_with_any_number_of_threads(
    data: Path, tmp_path: Path, threads: Threads, optimizer: str
) -> None:
    one, two = (trained(data, tmp_path / f"{n}", optimizer=optimizer, dim=64, threads=n) for n in (1, 2))
    assert np.array_equal(tables(two), tables(one))


@pytest.mark.parametrize("way", ["adam", "sgd in place", "adagrad in place"], indirect=True)
def test_another_number_of_threads_gives_the_same_but_for_rounding(
    data: Path, tmp_path: Path, threads: Threads, way: dict[str, Any]
) -> None:
    one, two, again = (trained(data, tmp_path / name, **way, dim=64, threads=int(name[0])) for name in ("1", "2", "2b"))
    np.testing.assert_allclose(tables(two), tables(one), atol=1e-4)
    assert not np.array_equal(tables(two), tables(one))
    assert np.array_equal(tables(two), tables(again))


def test_going_on_with_other_threads_is_refused_where_bits_must_stay(
    data: Path, tmp_path: Path, threads: Threads, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = trained(data, tmp_path / "whole", dim=64, checkpoint_every=1, keep=1000)
    run = interrupted(whole, tmp_path / "run")
    with pytest.raises(InputError, match="16 columns each instead of 1, which changes the bits"):
        trained(data, run, dim=64, resume=5, deterministic=True)
    trained(data, run, dim=64, threads=2, resume=5)
    assert "threads a rank: 2 instead of 1: the vectors will be the same but for rounding" in capsys.readouterr().out
    np.testing.assert_allclose(tables(run), tables(whole), atol=1e-4)


def test_threads_that_a_dim_does_not_employ_are_none(data: Path, tmp_path: Path, threads: Threads) -> None:
    """40 columns are one thread's, however many there are."""
    whole = trained(data, tmp_path / "whole", checkpoint_every=1, keep=1000)
    run = interrupted(whole, tmp_path / "run")
    assert_same_run(trained(data, run, threads=4, resume=5), whole)


@pytest.mark.parametrize(
    ("flags", "any_world", "changed", "said"),
    [
        ({}, True, {"world_size": 2}, None),
        ({}, True, {"threads": 2}, "but for rounding"),
        ({}, True, {"world_size": 2, "threads": 2}, "but for rounding"),
        ({}, False, {"world_size": 4, "sharding": "columns", "group_size": 4}, "of their columns: 4 instead of 1"),
        ({"sync_every": 4}, False, {"world_size": 4, "sharding": "columns", "group_size": 4}, "but for rounding"),
        ({"sync_every": 4}, False, {"world_size": 4, "sharding": "columns", "group_size": 2}, "will be others"),
        ({"optimizer": "sgd"}, False, {"world_size": 2}, "but for rounding"),
        ({"sync_every": 4}, False, {"threads": 2}, "but for rounding"),
        ({"sync_every": 4}, False, {"world_size": 2}, "will be others"),
    ],
)
def test_ranks_and_threads_that_change_the_bits_are_said_or_refused(
    flags: dict[str, Any], any_world: bool, changed: dict[str, int], said: str | None
) -> None:
    settings = Settings(512, "adam", 0.002, 100, 1, 0, 16, "arrow", 5)
    before = RunRecord(
        "0" * 32, settings, world_size=1, threads=1, kernel="cpu", start=None, progress=Progress(), metrics_bytes=0
    )
    now = {"world_size": 1, "threads": 1, "kernel": "cpu", "sharding": "replicated", "group_size": 1, **changed}
    found = list(differences(before, now, TrainConfig(**flags), any_world))
    assert [said is not None and said in line for line in found] == ([True] if said else [])
    if said:
        with pytest.raises(InputError, match="changes the bits"):
            list(differences(before, now, TrainConfig(**flags, deterministic=True), any_world))


def test_on_a_gpu_the_same_bits_are_the_references_alone() -> None:
    assert TrainConfig(deterministic=True).kernel_on("cuda") == "reference"
    assert TrainConfig(deterministic=True).kernel_on("cpu") == "cpu"
    with pytest.raises(InputError, match="--kernel: found cuda"):
        TrainConfig(deterministic=True, kernel="cuda")
