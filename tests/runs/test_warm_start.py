"""Laws of --init-from and --freeze-epochs: words begin with the rows that they had under any id, and stay if told to.

The old vocabulary and the new one share words under other ids; each has words of its own.
"""

import json
import random
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from conftest import Command, Ended, Stop, Threads
from ranks import train_here
from safetensors.numpy import save_file
from tiny import copies, write_run, write_tiny_dataset

from pipeline.dataset.manifest_file import Manifest
from training import train
from training.distributed import World
from training.model.blocks import initial_tables
from training.model.kernels import reference
from training.model.skip_gram import SkipGram
from training.reading.epochs import stream_of
from training.run import Run
from training.runs.warm_start import warm_start
from training.train_config import TrainConfig
from training.vectors.compare import growth
from training.vectors.word_vectors import Tables

FLAGS = "--dim 40 --epochs 3 --device cpu --global-batch 64 --threads 1"
IN_PLACE = "--sync-every 4"
MODES = {
    "adam": "",
    "adam, by torch": "--kernel reference",
    "adagrad": "--optimizer adagrad --kernel cpu",
    "sgd": "--optimizer sgd",
    "in place": IN_PLACE,
    "in place, adagrad": f"{IN_PLACE} --optimizer rowwise_adagrad",
    "in place, reference": f"{IN_PLACE} --kernel reference --optimizer rowwise_adagrad",
}
EACH_MODE = pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.long] if mode == "in place, reference" else []) for mode in MODES],
)
"""In place the reference takes a millisecond a row; test_kernels.py has its frozen rows."""

ALONE = World(0, 1, 0, 1)

pytestmark = pytest.mark.usefixtures("no_pages")


@pytest.fixture(autouse=True)
def threads_stay(threads: Threads) -> None:
    """``--threads 1`` of a run in this process is not to stay."""


@pytest.fixture(scope="module")
def old_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("old")
    write_tiny_dataset(folder, num_sequences=200, num_words=50)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new")
    write_tiny_dataset(folder, num_sequences=300, num_words=70, min_count=9, seed=1)
    return folder


@pytest.fixture(scope="module")
def old_run(old_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose tables hold no zeros but row 0."""
    output = tmp_path_factory.mktemp("run") / "old"
    train.be_a_rank(TrainConfig(data=str(old_data), output=output, dim=40, epochs=2, device="cpu", threads=1))
    return output


@pytest.fixture
def training(call: Command, data: Path, tmp_path: Path) -> Command:
    """Trains on the new dataset into ``tmp_path / "run"``, unless another is named; flags are words of text."""

    def run(*flags: object) -> Ended:
        arguments = [word for flag in (FLAGS, *flags) for word in str(flag).split()]
        return call(train.main, "--data", data, "--output", tmp_path / "run", *arguments)

    return run


def pairs(new: list[str], old: list[str]) -> list[tuple[int, int]]:
    """Rows of each word that both have, one by one."""
    return [(row, old.index(word, 1)) for row, word in enumerate(new) if row and word in old[1:]]


def words_of(data: Path) -> list[str]:
    return list(pq.read_table(data / Manifest.load(data).vocab_path)["word"].to_pylist())


def kept_and_new(found: Tables, before: Tables) -> tuple[list[int], list[int], list[int]]:
    """Rows of kept words in both, and of new ones."""
    kept, old = (list(column) for column in zip(*pairs(found.words, before.words), strict=True))
    return kept, old, sorted({*range(1, len(found.words))} - {*kept})


def both(tables: Tables) -> npt.NDArray[np.float32]:
    return np.stack([tables.center_VD, tables.context_VD])


# What a run begins with


@pytest.mark.parametrize("in_place", [False, True], ids=["Xavier", "in place"])
def test_words_begin_with_their_rows_in_both_tables_and_new_words_as_any(
    data: Path, old_run: Path, tmp_path: Path, in_place: bool
) -> None:
    settings = {"sync_every": 4} if in_place else {}
    config = TrainConfig(data=str(data), output=tmp_path, dim=40, init_from=old_run, **settings)  # type: ignore[arg-type]
    words, before = words_of(data), Tables.load(old_run)
    cold = SkipGram(len(words), 40, 0, in_place)
    run = Run(config, Manifest.load(data), ALONE, torch.device("cpu"))
    start, tables = warm_start(run, initial_tables(len(words), 40, 0, in_place))
    model = SkipGram(len(words), 40, tables=tables)
    shared = pairs(words, before.words)
    assert start is not None
    assert start.kept_K.tolist() == [row for row, _ in shared]
    assert sum(row != old for row, old in shared) > 10, "ids are to differ"
    assert {len(shared), len(words) - 1, len(before.words) - 1} > {len(shared)}, "each has words of its own"
    for name, table_VD in (("center", before.center_VD), ("context", before.context_VD)):
        expected_VD = getattr(cold, name).weight.detach().clone()
        for row, old in shared:
            expected_VD[row] = torch.from_numpy(table_VD[old].copy())
        assert torch.equal(getattr(model, name).weight.detach(), expected_VD)


def test_a_run_on_the_same_text_begins_at_the_loss_the_old_one_ended_with(
    call: Command, old_data: Path, old_run: Path, tmp_path: Path
) -> None:
    """Whose words are all kept and frozen: an epoch's loss is that of the old tables. Their order is another one."""
    before = Tables.load(old_run)
    order = [0, *random.Random(0).sample(range(1, len(before.words)), len(before.words) - 1)]
    write_run(tmp_path / "shuffled", [before.words[row] for row in order], before.center_VD[order])
    tables = {"center": before.center_VD[order], "context": before.context_VD[order]}
    save_file(tables, tmp_path / "shuffled" / "vectors.safetensors")
    flags = f"--dim 40 --epochs 1 --freeze-epochs 1 --device cpu --threads 1 --init-from {tmp_path / 'shuffled'}"
    ended = call(train.main, "--data", old_data, "--output", tmp_path / "run", *flags.split())
    assert ended.code == 0
    assert ended.stderr.splitlines() == ["warning: --freeze-epochs trains nothing: there is no new word; leave it out"]

    config, manifest = TrainConfig(data=str(old_data), device="cpu"), Manifest.load(old_data)
    batches = copies(stream_of(config, manifest, 0).batches(0, 1))
    rows = [torch.cat(columns) for columns in zip(*(batch.tensors() for batch in batches), strict=True)]
    old_tables = torch.from_numpy(before.center_VD), torch.from_numpy(before.context_VD)
    losses_B = reference.row_losses((rows[0], rows[1], rows[2]), old_tables, manifest.config.negatives)
    expected = losses_B[rows[2] > 0].double().mean().item()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["loss"] == pytest.approx(expected, abs=1e-6)
    assert expected < json.loads((old_run / "summary.json").read_text())["loss"]
    assert np.array_equal(both(Tables.load(tmp_path / "run")), both(before))


@pytest.mark.parametrize("ranks", [2, 4])
def test_any_number_of_ranks_begins_with_them_and_ends_with_the_same_bits(
    data: Path, old_run: Path, tmp_path: Path, training: Command, ranks: int
) -> None:
    warm = f"--epochs 2 --init-from {old_run} --freeze-epochs 1 --deterministic"
    train_ranks(data, tmp_path / "ranks", f"{warm} --nproc {ranks}")
    assert training(warm).code == 0
    assert np.array_equal(both(Tables.load(tmp_path / "ranks")), both(Tables.load(tmp_path / "run")))


def train_ranks(data: Path, output: Path, flags: str) -> None:
    ended = train_here(*FLAGS.split(), "--data", data, "--output", output, *flags.split(), logs=output.parent)
    assert ended.code == 0, ended.stderr


# Growth


def test_a_run_says_how_its_vocabulary_has_grown(training: Command, old_run: Path, tmp_path: Path) -> None:
    ended = training(f"--epochs 1 --init-from {old_run}")
    assert ended.code == 0
    found, before = Tables.load(tmp_path / "run"), Tables.load(old_run)
    grown = growth(found.words, found.counts_V, before.words, before.counts_V)
    assert f"warm start from {old_run}: {grown}" in ended.stdout.splitlines()
    assert grown.kept > 20 < len(before.words)
    assert grown.new > 0 < grown.lost
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["vocabulary_growth"] == asdict(grown)


def test_a_cold_run_has_grown_out_of_nothing(training: Command, tmp_path: Path) -> None:
    ended = training("--epochs 1")
    assert "warm start" not in ended.stdout
    assert "vocabulary_growth" not in json.loads((tmp_path / "run" / "summary.json").read_text())


# Frozen epochs


@EACH_MODE
def test_frozen_rows_stay_to_the_bit_and_move_afterwards(
    training: Command, old_run: Path, tmp_path: Path, mode: str
) -> None:
    before = Tables.load(old_run)
    start = SkipGram(len(words_of_run(training, tmp_path)), 40, 0, IN_PLACE in MODES[mode])
    cold = np.stack([table.detach().numpy() for table in start.parameters()])
    for epochs, freeze, stays in ((1, 1, True), (2, 2, True), (2, 1, False)):
        flags = f"--epochs {epochs} --freeze-epochs {freeze} --init-from {old_run} --overwrite"
        assert training(MODES[mode], flags).code == 0
        found = Tables.load(tmp_path / "run")
        kept, old, new = kept_and_new(found, before)
        assert np.array_equal(both(found)[:, kept], both(before)[:, old]) is stays
        assert (both(found)[:, new] != cold[:, new]).any(axis=2).all()
        if not stays:
            assert (both(found)[:, kept] != both(before)[:, old]).any(axis=2).mean() > 0.9


def words_of_run(training: Command, tmp_path: Path) -> list[str]:
    assert training("--epochs 1").code == 0
    return Tables.load(tmp_path / "run").words


@pytest.mark.parametrize(
    ("ranks", "flags"),
    [
        (2, "--optimizer sgd"),
        (2, f"{IN_PLACE} --optimizer rowwise_adagrad --sharding replicated"),
        (2, f"{IN_PLACE} --sharding columns"),
        (3, f"{IN_PLACE} --lanes 3 --global-batch 63"),
    ],
)
def test_ranks_leave_frozen_rows_to_the_bit(data: Path, old_run: Path, tmp_path: Path, ranks: int, flags: str) -> None:
    """Also where the average of as many equal numbers is not always the number."""
    frozen = f"--epochs 1 --freeze-epochs 1 --init-from {old_run} --nproc {ranks}"
    train_ranks(data, tmp_path / "run", f"{flags} {frozen}")
    found, before = Tables.load(tmp_path / "run"), Tables.load(old_run)
    kept, old, _ = kept_and_new(found, before)
    assert np.array_equal(both(found)[:, kept], both(before)[:, old])


# Going on


@EACH_MODE
def test_a_run_stopped_in_a_frozen_epoch_ends_as_if_it_had_not_been(
    training: Command, old_run: Path, tmp_path: Path, stop_after: Stop, mode: str
) -> None:
    """The second time without the vectors that it began with: they are gone."""
    flags = f"{MODES[mode]} --log-every 7 --freeze-epochs 2"
    shutil.copytree(old_run, tmp_path / "old")
    assert training(flags, f"--init-from {tmp_path / 'old'}").code == 0
    expected = both(Tables.load(tmp_path / "run"))
    growths = [json.loads((tmp_path / "run" / "summary.json").read_text())["vocabulary_growth"]]
    stop_after(5)
    assert training(flags, f"--init-from {tmp_path / 'old'} --overwrite").code == 143
    stop_after(4)
    assert training(flags, f"--init-from {tmp_path / 'old'} --resume").code == 143
    shutil.rmtree(tmp_path / "old")
    training(flags, f"--init-from {tmp_path / 'old'} --resume").assert_refused("--init-from", "leave it out")
    resumed = training(flags, "--resume")
    assert resumed.code == 0
    growths += [json.loads((tmp_path / "run" / "summary.json").read_text())["vocabulary_growth"]]
    assert np.array_equal(both(Tables.load(tmp_path / "run")), expected)
    assert growths[1] == growths[0]
    assert "these stay for 2 epoch(s)" in resumed.stdout


def test_resume_auto_begins_with_them_where_there_is_no_checkpoint(
    training: Command, old_run: Path, tmp_path: Path
) -> None:
    assert training(f"--init-from {old_run}").code == 0
    expected = both(Tables.load(tmp_path / "run"))
    shutil.rmtree(tmp_path / "run")
    assert training(f"--init-from {old_run} --resume auto").code == 0
    assert np.array_equal(both(Tables.load(tmp_path / "run")), expected)


def test_other_vectors_are_refused_by_what_they_are_not_where_they_lie(
    training: Command, old_run: Path, tmp_path: Path, stop_after: Stop
) -> None:
    link = tmp_path / "current"
    link.symlink_to(old_run)
    before = Tables.load(old_run)
    write_run(tmp_path / "other", before.words, before.center_VD + np.float32(0))
    stop_after(3)
    assert training(f"--init-from {link}").code == 143
    link.unlink()
    link.symlink_to(tmp_path / "other")
    training(f"--init-from {link} --resume").assert_refused("--init-from", str(link), "expected vectors", "--output")
    shutil.copytree(old_run, tmp_path / "moved")
    assert training(f"--init-from {tmp_path / 'moved'} --resume").code == 0


def test_a_cold_run_does_not_go_on_with_others_vectors(training: Command, old_run: Path, stop_after: Stop) -> None:
    stop_after(3)
    assert training().code == 143
    training(f"--init-from {old_run} --resume").assert_refused("--init-from", "expected none")
    training("--freeze-epochs 1 --resume").assert_refused("--freeze-epochs 1", "--freeze-epochs 0")


# Input that cannot be


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--init-from OLD --dim 41", "--init-from OLD 40 dimensions --dim 41 --dim 40"),
        ("--init-from NOWHERE", "--init-from NOWHERE no summary.json"),
        ("--init-from OTHER", "--init-from OTHER none of its 3 words"),
        ("--init-from OLD --output OLD --overwrite", "--init-from OLD --output"),
        ("--init-from OLD --output LINK --overwrite", "--init-from OLD --output"),
        ("--freeze-epochs 1", "--freeze-epochs found 1 --init-from"),
        ("--freeze-epochs 1 --resume auto", "--freeze-epochs found 1 --init-from no checkpoint"),
        ("--init-from OLD --freeze-epochs 4", "--freeze-epochs found 4 --epochs 3"),
        ("--init-from OLD --freeze-epochs -1", "--freeze-epochs found -1"),
    ],
)
def test_what_no_run_can_begin_with_is_refused_and_named_before_processes_are_made(
    training: Command,
    old_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: str,
    words: str,
) -> None:
    def must_not_run(*_: object) -> None:
        raise AssertionError("this is too late for the error")

    monkeypatch.setattr(train, "spawn", must_not_run)
    (tmp_path / "link").symlink_to(old_run)
    write_run(tmp_path / "other", ["<unk>", "a", "b", "c"], np.zeros((4, 40), np.float32))
    places = {"OLD": old_run, "NOWHERE": tmp_path / "nowhere", "OTHER": tmp_path / "other", "LINK": tmp_path / "link"}
    for name, place in places.items():
        flags, words = flags.replace(name, str(place)), words.replace(name, str(place))
    before = (old_run / "summary.json").read_bytes()
    training(flags, "--nproc 2").assert_refused(*words.split())
    assert (old_run / "summary.json").read_bytes() == before
    assert not (tmp_path / "run").exists()
