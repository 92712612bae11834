"""Laws of training.reading.petastorm_stream alone, beyond those of every reader; in petastorm's environment."""

import json
import os
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Command, Ended
from test_readers import EPOCHS, GLOBAL_BATCH, IS_PETASTORMS, Dataset, real, rows_in, written

from pipeline.dataset.manifest_file import Manifest, ManifestError, ShardInfo
from training import train
from training.model.batch import Batch
from training.reading import petastorm_stream
from training.reading.petastorm_stream import petastorm_epochs, shares_of_epoch

if not IS_PETASTORMS:
    pytest.skip("for petastorm's environment: make test runs it there", allow_module_level=True)

TRAIN = str(ROOT / "training" / "train.py")


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return written(tmp_path / "data", 3, 100)


def epochs_of(dataset: Dataset, epochs: range, rank: int = 0, world_size: int = 1, first_step: int = 0) -> list[Any]:
    """The rows of every batch of each epoch."""
    shape = GLOBAL_BATCH, rank, world_size
    read = petastorm_epochs(dataset.folder, dataset.manifest, 0, epochs, *shape, first_step=first_step)
    return [[rows_in([batch]) for batch in batches] for batches in read]


@pytest.mark.parametrize("block_rows", [1, 100, 1 << 17])
def test_a_start_in_mid_epoch_goes_on_exactly(
    dataset: Dataset, block_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the next epoch begins with its first step. A rank's last steps may be empty rows alone."""
    monkeypatch.setattr(petastorm_stream, "BLOCK_ROWS", block_rows)
    for rank, world_size in ((0, 1), (0, 2), (1, 2)):
        whole = epochs_of(dataset, range(2), rank, world_size)
        for first_step in (0, 1, 7, len(whole[0]) - 1, len(whole[0])):
            assert epochs_of(dataset, range(2), rank, world_size, first_step) == [whole[0][first_step:], whole[1]]


def test_every_epoch_has_a_reader_with_a_seed_of_its_own(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one thread: petastorm's order would depend on timing with more. No seed is 0, which would mean none."""
    import petastorm

    make, made = petastorm.make_batch_reader, []

    def noted(*args: Any, **options: Any) -> Any:
        made.append(options)
        return make(*args, **options)

    monkeypatch.setattr(petastorm, "make_batch_reader", noted)
    epochs_of(dataset, range(4))
    epochs_of(dataset, range(4), rank=1, world_size=2)
    assert len({options["seed"] for options in made}) == 8
    assert all(options["seed"] > 0 and options["workers_count"] == 1 for options in made)
    monkeypatch.setattr(petastorm_stream, "stream", lambda *keys: 0)
    epochs_of(dataset, range(1))
    assert made[-1]["seed"] > 0


def test_a_rank_hashes_each_of_its_shards_once(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    verify, hashed = petastorm_stream._verify, []

    def noted(path: Path, shard: ShardInfo, manifest: Manifest) -> None:
        hashed.append(shard)
        verify(path, shard, manifest)

    monkeypatch.setattr(petastorm_stream, "_verify", noted)
    epochs_of(dataset, range(5), rank=1, world_size=2)
    own = set()
    for epoch in range(5):
        shards = dataset.manifest.select(epoch % EPOCHS)
        own |= set(shares_of_epoch(shards, dataset.manifest.row_group_rows, 0, epoch, 2)[1].shards)
    assert sorted(shard.path for shard in hashed) == sorted(shard.path for shard in own)


@pytest.mark.parametrize("offset", [4, -10])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_one_changed_byte_anywhere_is_named_before_the_first_batch(dataset: Dataset, number: int, offset: int) -> None:
    """Even in a column that is not read, or in the footer."""
    path = dataset.folder / dataset.manifest.select(0)[number].path
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    found: list[Batch] = []
    with (
        pytest.raises(ManifestError, match=rf"{path.name}: damaged \(SHA-256 .*run prepare again"),
        closing(petastorm_epochs(dataset.folder, dataset.manifest, 0, [0], GLOBAL_BATCH, 0, 1)) as epochs,
    ):
        found.extend(next(epochs))
    assert found == []


def test_a_shard_that_went_missing_is_named(dataset: Dataset) -> None:
    path = dataset.folder / dataset.manifest.select(0)[2].path
    path.unlink()
    with pytest.raises(ManifestError, match=f"{path.name}: unreadable"):
        epochs_of(dataset, range(1))


def test_row_groups_other_than_the_manifests_are_refused(dataset: Dataset) -> None:
    """The plan would make ranks wait for each other, or leave rows out."""
    other = replace(dataset.manifest, row_group_rows=150)
    for rank in range(6):
        with pytest.raises(ManifestError, match=r"found \d+ rows .* manifest implies \d+"):
            epochs_of(replace(dataset, manifest=other), range(1), rank, 6)


def test_blocks_have_whole_batches(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last batch of an epoch has empty rows, whatever the block."""
    monkeypatch.setattr(petastorm_stream, "BLOCK_ROWS", GLOBAL_BATCH + 1)
    (batches,) = epochs_of(dataset, range(1))
    assert all(row[1] for batch in batches[:-1] for row in batch)
    assert real(row for batch in batches for row in batch) == dataset.rows(0)


# Through training/train.py


@pytest.fixture
def training(dataset: Dataset, call: Command, monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    flags = (
        "--reader",
        "petastorm",
        "--dim",
        "4",
        "--epochs",
        "1",
        "--device",
        "cpu",
        "--output",
        dataset.folder.parent / "run",
    )
    return lambda *arguments: call(train.main, *flags, *arguments)


def test_what_petastorm_cannot_read_is_refused(dataset: Dataset, training: Command) -> None:
    training("--data", "s3://bucket/ptb").assert_refused("--data", "URI", "folder", "--reader arrow")
    training("--data", dataset.folder, "--cache", "device").assert_refused("--cache", "device", "auto or none")
    odd = dataset.folder.rename(dataset.folder.parent / "data #1")
    training("--data", odd).assert_refused("data #1", "#", "--reader arrow")
    good = odd.rename(dataset.folder.parent / "data 100%")
    assert training("--data", good).code == 0


@pytest.mark.parametrize(
    ("module", "found"), [("petastorm", "No module named"), ("petastorm.pytorch", "petastorm.pytorch")]
)
def test_a_petastorm_that_cannot_be_imported_is_refused(
    dataset: Dataset, training: Command, module: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    found = f"cannot be imported (import of {module} halted"
    training("--data", dataset.folder).assert_refused("--reader petastorm", found, "make setup-petastorm")


def run_of(dataset: Dataset, output: Path, nproc: int, *flags: str) -> Ended:
    given = ["--data", str(dataset.folder), "--output", str(output), "--nproc", str(nproc), *flags]
    command = [
        sys.executable,
        TRAIN,
        "--reader",
        "petastorm",
        "--dim",
        "8",
        "--device",
        "cpu",
        "--threads",
        "1",
        *given,
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=180, env={**os.environ, "PYTHONWARNINGS": ""}
    )
    return Ended(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize(
    ("nproc", "sync_every"), [(2, 3), *(pytest.param(nproc, 1, marks=pytest.mark.long) for nproc in (1, 4))]
)
def test_ranks_train_to_the_end_without_a_word_too_many(
    dataset: Dataset, tmp_path: Path, nproc: int, sync_every: int
) -> None:
    """Four ranks share three shards of unequal row groups."""
    ended = run_of(
        dataset, tmp_path / "run", nproc, "--global-batch", "32", "--epochs", "3", "--sync-every", str(sync_every)
    )
    assert (ended.code, ended.stderr) == (0, "")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [epoch["examples"] for epoch in summary["epochs"]] == [
        sum(shard.rows for shard in dataset.manifest.select(epoch % EPOCHS)) for epoch in range(3)
    ]
    steps = f"{summary['steps']:,} steps"
    assert steps in ended.stdout


def test_damage_ends_all_ranks_with_one_line(dataset: Dataset, tmp_path: Path) -> None:
    path = dataset.folder / dataset.manifest.select(0)[1].path
    path.write_bytes(path.read_bytes()[:-1] + b"2")
    ended = run_of(dataset, tmp_path / "run", 2)
    ended.assert_refused(str(path), "SHA-256", "run prepare again")
    assert not (tmp_path / "run" / "summary.json").exists()
