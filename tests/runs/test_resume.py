"""Laws of --resume: a run that was stopped ends as if it had not been, or is refused; nothing is lost.

Runs are stopped by a SIGTERM of this process to itself, after a given number of batches.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command, Ended, Stop, Threads
from safetensors.numpy import load_file
from tiny import write_tiny_dataset

from pipeline.dataset.manifest_file import Manifest
from training import train
from training.distributed import World
from training.model.batch import Batch
from training.model.blocks import initial_tables
from training.model.skip_gram import SkipGram
from training.model.steps import make_step
from training.runs import checkpoint, recorder, run_folder
from training.runs.checkpoint import newest, steps
from training.train_config import TrainConfig
from training.vectors.run_files import REPORT

FLAGS = "--dim 40 --epochs 3 --device cpu --global-batch 64 --log-every 7 --threads 1"
IN_PLACE = "--sync-every 4"
MODES = {
    "adam": "",
    "adam, by torch": "--kernel reference",
    "adagrad": "--optimizer adagrad --kernel cpu",
    "sgd": "--optimizer sgd",
    "in place": IN_PLACE,
    "in place, adagrad": f"{IN_PLACE} --optimizer rowwise_adagrad",
    "in place, reference": f"{IN_PLACE} --kernel reference",
}


pytestmark = pytest.mark.usefixtures("no_pages")


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch: pytest.MonkeyPatch, threads: Threads) -> None:
    """``--threads 1`` of a run in this process is not to stay."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=300, epochs=2)
    return folder


@pytest.fixture
def training(call: Command, data: Path, tmp_path: Path) -> Command:
    """Trains into ``tmp_path / "run"``; flags are words of text."""

    def run(*flags: object) -> Ended:
        arguments = [word for flag in (FLAGS, *flags) for word in str(flag).split()]
        return call(train.main, "--data", data, "--output", tmp_path / "run", *arguments)

    return run


def tables(run: Path) -> np.ndarray:
    found = load_file(run / "vectors.safetensors")
    return np.stack([found["center"], found["context"]])


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name in ("kind", "epoch", "step", "lr")} for line in found]


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(run: Path, whole: Path) -> None:
    assert np.array_equal(tables(run), tables(whole))
    assert lines(run) == lines(whole)
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-12)
    found, expected = (json.loads((folder / "summary.json").read_text()) for folder in (run, whole))
    assert (found["steps"], found["examples"]) == (expected["steps"], expected["examples"])
    np.testing.assert_allclose(found["mean_loss"], expected["mean_loss"], rtol=1e-12)


@pytest.fixture(scope="module")
def wholes() -> dict[str, Path]:
    """Runs that nothing stopped, by their flags."""
    return {}


def whole(training: Command, tmp_path: Path, wholes: dict[str, Path], flags: str, keep: Path) -> Path:
    if flags not in wholes:
        assert training(flags).code == 0
        wholes[flags] = keep / f"whole{len(wholes)}"
        shutil.move(tmp_path / "run", wholes[flags])
    return wholes[flags]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wholes")


STOPS = [
    pytest.param(mode, batch, marks=[pytest.mark.long] if "reference" in flags and batch != 5 else [])
    for mode, flags in MODES.items()
    for batch in (1, 5, 30)
]
"""The reference is slow; what is saved when is the same code."""


@pytest.mark.parametrize(("mode", "batch"), STOPS)
def test_a_stopped_run_ends_as_if_it_had_not_been(
    training: Command,
    tmp_path: Path,
    wholes: dict[str, Path],
    kept: Path,
    stop_after: Stop,
    mode: str,
    batch: int,
) -> None:
    expected = whole(training, tmp_path, wholes, MODES[mode], kept)
    stop_after(batch)
    stopped = training(MODES[mode])
    assert stopped.code == 143
    step = newest(tmp_path / "run")
    assert f"stopped after step {step:,}; --resume goes on from there" in stopped.stderr
    assert not (tmp_path / "run" / "summary.json").exists()
    resumed = training(MODES[mode], "--resume")
    assert resumed.code == 0
    assert f"goes on after step {step:,}" in resumed.stdout
    assert_same_run(tmp_path / "run", expected)


def test_a_run_may_be_stopped_at_every_batch(
    training: Command, tmp_path: Path, wholes: dict[str, Path], kept: Path, stop_after: Stop
) -> None:
    """Also where an epoch ends, and where nothing but empty rows are left."""
    flags = "--global-batch 256 --epochs 2 --log-every 3 --checkpoint-every 2"
    expected = whole(training, tmp_path, wholes, flags, kept)
    code, starts = 143, 0
    while code == 143:
        stop_after(1)
        code = training(flags, "--resume auto").code
        starts += 1
    stop_after(0)
    assert code == 0
    assert starts > 5
    assert_same_run(tmp_path / "run", expected)


def test_checkpoints_change_no_bit(training: Command, tmp_path: Path, wholes: dict[str, Path], kept: Path) -> None:
    expected = whole(training, tmp_path, wholes, "", kept)
    assert training("--checkpoint-every 3 --keep 1000000").code == 0
    last = steps(tmp_path / "run")[-1]
    per_epoch = {record["step"] for record in lines(tmp_path / "run") if record["kind"] == "epoch"}
    assert steps(tmp_path / "run") == sorted({*range(3, last + 1, 3), *per_epoch})
    assert np.array_equal(tables(tmp_path / "run"), tables(expected))


def test_any_checkpoint_can_be_gone_back_to(
    training: Command, tmp_path: Path, wholes: dict[str, Path], kept: Path
) -> None:
    flags = "--checkpoint-every 10 --keep 100"
    expected = whole(training, tmp_path, wholes, flags, kept)
    shutil.copytree(expected, tmp_path / "run")
    for step in (20, 10):
        assert training(flags, f"--resume {step}").code == 0
        assert_same_run(tmp_path / "run", expected)
    assert steps(tmp_path / "run") == steps(expected)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_offered_or_taken(
    training: Command, tmp_path: Path, stop_after: Stop, wholes: dict[str, Path], kept: Path
) -> None:
    expected = whole(training, tmp_path, wholes, "", kept)
    stop_after(30)
    assert training("--checkpoint-every 10").code == 143
    before, last = steps(tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / checkpoint.name_of(last) / "state.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)
    training("--resume").assert_refused(str(path), "damaged", f"--resume {before}")
    taken = training("--resume auto")
    assert taken.code == 0
    assert taken.stderr.startswith(f"warning: {path}: damaged")
    assert f"goes on after step {before}" in taken.stdout
    assert_same_run(tmp_path / "run", expected)


def test_without_any_good_checkpoint_nothing_is_begun_anew(training: Command, tmp_path: Path, stop_after: Stop) -> None:
    stop_after(5)
    assert training().code == 143
    (path,) = (tmp_path / "run" / "checkpoints").glob("*/state.safetensors")
    path.write_bytes(b"")
    before = sorted((tmp_path / "run").rglob("*"))
    training("--resume auto").assert_refused(str(path), "there is none before it")
    assert sorted((tmp_path / "run").rglob("*")) == before


@pytest.mark.parametrize("saved_after", range(1, 5))
def test_ranks_that_go_on_are_averaged_when_they_would_have_been(
    saved_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Saved by one rank, at any step; on several ranks the next average comes with the fourth step all the same."""
    averages: list[int] = []
    made = 0
    monkeypatch.setattr("torch.distributed.all_reduce", lambda *_, **__: averages.append(made))
    config = TrainConfig(global_batch=16, lanes=1, dim=8, sync_every=4, device="cpu")
    alone, one_of_two = (
        make_step(config, initial_tables(20, 8, in_place=True), 2, 8, World(0, ranks, 0, ranks)) for ranks in (1, 2)
    )
    for made in range(1, 9):
        if made == saved_after + 1:
            state: Any = alone.state_dict()
            one_of_two.load_state_dict(state, 0)
        (alone if made <= saved_after else one_of_two)(Batch.empty(16, 12), 0.025)
    assert sorted({*averages}) == [made for made in (4, 8) if made > saved_after]


# Which runs may go on


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--dim 41", ["--dim 41", "--dim 40"]),
        ("--lr 0.1 --seed 3", ["--lr 0.1 --seed 3", "--lr 0.002 --seed 0"]),
        ("--global-batch 128", ["--global-batch 128", "--global-batch 64"]),
        ("--optimizer sgd --lr 0.002", ["--optimizer sgd", "--optimizer adam"]),
        ("--sync-every 4 --lr 0.002", ["--sync-every 4", "--sync-every 1"]),
        ("--kernel reference", ["--kernel reference", "--kernel cpu"]),
        ("--lanes 8", ["--lanes 8", "--lanes 16"]),
    ],
)
def test_other_settings_are_refused_and_named(
    training: Command, tmp_path: Path, stop_after: Stop, flags: str, words: list[str]
) -> None:
    stop_after(2)
    assert training().code == 143
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for resume in ("--resume", "--resume auto"):
        training(flags, resume).assert_refused(str(tmp_path / "run"), *words)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_another_dataset_is_refused_and_named(
    call: Command, training: Command, data: Path, tmp_path: Path, stop_after: Stop
) -> None:
    stop_after(2)
    assert training().code == 143
    write_tiny_dataset(tmp_path / "other", num_sequences=300, epochs=2, seed=1)
    ids = [Manifest.load(folder).dataset_id for folder in (data, tmp_path / "other")]
    arguments = [*FLAGS.split(), "--data", tmp_path / "other", "--output", tmp_path / "run", "--resume"]
    call(train.main, *arguments).assert_refused("--data", *ids)
    shutil.copytree(data, tmp_path / "moved")
    arguments = [*FLAGS.split(), "--data", tmp_path / "moved", "--output", tmp_path / "run", "--resume"]
    assert call(train.main, *arguments).code == 0


def test_more_epochs_go_on_where_fewer_ended(
    training: Command, tmp_path: Path, wholes: dict[str, Path], kept: Path
) -> None:
    expected = whole(training, tmp_path, wholes, "", kept)
    assert training("--epochs 2").code == 0
    vectors = tables(tmp_path / "run")
    assert training("--epochs 2 --resume").code == 0  # nothing is left to do
    assert np.array_equal(tables(tmp_path / "run"), vectors)
    assert training("--resume").code == 0
    assert_same_run(tmp_path / "run", expected)
    training("--epochs 2 --resume").assert_refused("--epochs 2", "--epochs 3")


def test_a_rate_that_falls_to_its_runs_end_takes_no_more_epochs(training: Command) -> None:
    assert training(IN_PLACE, "--epochs 2").code == 0
    training(IN_PLACE, "--resume").assert_refused("--epochs 3", "--epochs 2")


def test_resume_needs_a_checkpoint_and_auto_does_not(
    training: Command, tmp_path: Path, wholes: dict[str, Path], kept: Path
) -> None:
    expected = whole(training, tmp_path, wholes, "", kept)
    training("--resume").assert_refused("no checkpoint", "--resume auto")
    training("--resume 12").assert_refused("--resume 12", "there are: none")
    training("--resume soon").assert_refused("--resume", "soon")
    training("--resume --overwrite").assert_refused("--overwrite", "--resume")
    assert training("--resume auto").code == 0
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize(("flags", "words"), [("--checkpoint-every 0", "1 to"), ("--keep 0", "1 to")])
def test_a_number_of_checkpoints_that_cannot_be_is_named(training: Command, flags: str, words: str) -> None:
    training(flags).assert_refused(flags.split()[0], words)


def test_a_stopped_run_is_neither_overwritten_nor_begun_anew_by_accident(
    training: Command, tmp_path: Path, stop_after: Stop, wholes: dict[str, Path], kept: Path
) -> None:
    expected = whole(training, tmp_path, wholes, "", kept)
    stop_after(20)
    assert training().code == 143
    training().assert_refused("interrupted", f"step {newest(tmp_path / 'run')}", "--resume", "--overwrite")
    assert training("--overwrite").code == 0
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize("flag", ["--resume", "--resume auto"])
def test_a_first_checkpoint_that_no_run_lived_to_name_is_gone_on_from(
    training: Command, tmp_path: Path, stop_after: Stop, wholes: dict[str, Path], kept: Path, flag: str
) -> None:
    expected = whole(training, tmp_path, wholes, "", kept)
    stop_after(20)
    assert training().code == 143
    step = newest(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "latest").unlink()
    training().assert_refused("interrupted", f"step {step}", "--resume")
    resumed = training(flag)
    assert f"goes on after step {step:,}" in resumed.stdout
    assert_same_run(tmp_path / "run", expected)


def test_metrics_that_are_gone_are_refused(training: Command, tmp_path: Path, stop_after: Stop) -> None:
    stop_after(20)
    assert training().code == 143
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    training("--resume").assert_refused("metrics.jsonl", "0 bytes")


def test_other_threads_are_told_of_or_refused(training: Command, stop_after: Stop, threads: Threads) -> None:
    stop_after(5)
    assert training("--dim 64").code == 143
    other = "parts of their columns: 16 columns each instead of 1"
    training("--dim 64 --deterministic --resume").assert_refused(other, "leave --deterministic out")
    resumed = training("--dim 64 --threads 2 --resume")
    assert resumed.code == 0
    assert "threads a rank: 2 instead of 1: the vectors will be the same but for rounding" in resumed.stdout


def test_deterministic_refuses_the_kernel_that_is_not(training: Command) -> None:
    training("--deterministic --device auto --kernel cuda").assert_refused("--kernel", "reference")


# Overwriting


def test_a_run_that_overwrites_can_be_stopped_too(
    training: Command, tmp_path: Path, stop_after: Stop, wholes: dict[str, Path], kept: Path
) -> None:
    expected = whole(training, tmp_path, wholes, "", kept)
    assert training("--seed 1").code == 0
    old = tables(tmp_path / "run")
    stop_after(20)
    assert training("--overwrite").code == 143
    assert np.array_equal(tables(tmp_path / "run"), old)
    training().assert_refused("finished run")
    assert training("--resume").code == 0
    assert_same_run(tmp_path / "run", expected)
    assert not (tmp_path / "run" / ".new").exists()


def test_a_new_run_that_was_killed_while_it_took_the_old_ones_place_takes_it_later(
    training: Command,
    tmp_path: Path,
    wholes: dict[str, Path],
    kept: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pages = ("loss.png", REPORT)
    monkeypatch.setattr(recorder, "write_pages", lambda folder, *_: [(folder / page).touch() for page in pages])
    expected = whole(training, tmp_path, wholes, "", kept)
    replace = Path.replace
    for moment in range(len(run_folder.OWN_FILES) + 3):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        assert training("--seed 1").code == 0
        left = moment

        def killed(self: Path, to: Path) -> Path:
            nonlocal left
            if self.parent.name == ".new" != to.parent.name:
                left -= 1
                if left < 0:
                    raise RuntimeError("killed")
            return replace(self, to)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", killed)
            ended = training("--overwrite")
        if ended.code == 0:
            break
        assert "RuntimeError: killed" in ended.stderr
        training().assert_refused("finished run")
        assert training("--resume").code == 0
        assert_same_run(tmp_path / "run", expected)
        assert not (tmp_path / "run" / ".new").exists()
    assert moment == len(run_folder.OWN_FILES) + 2


def test_a_loss_that_is_no_number_names_the_last_good_checkpoint(
    training: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = train.timed
    batches_seen = 0

    def spoiled(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
        nonlocal batches_seen
        for batch, wait_s in timed(batches):
            batches_seen += 1
            if batches_seen == 25:
                with torch.no_grad():
                    model[0].center.weight[1:] = float("nan")
            yield batch, wait_s

    model: list[SkipGram] = []  # of the run, then of its warm-up

    def keep(*arguments: Any, **options: Any) -> SkipGram:
        model.append(SkipGram(*arguments, **options))
        return model[-1]

    monkeypatch.setattr(train, "timed", spoiled)
    monkeypatch.setattr("training.model.steps.SkipGram", keep)
    ended = training("--kernel reference --checkpoint-every 10")
    ended.assert_refused("by step 28", "the last checkpoint, of step 20, is good")
    assert newest(tmp_path / "run") == 20
