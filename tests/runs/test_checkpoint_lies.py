"""A checkpoint whose checksums fit but whose content no run writes is refused in one line, and nothing is changed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command, Ended, Stop, Threads
from safetensors.torch import load_file, save
from tiny import tree, write_tiny_dataset
from torch import Tensor
from xxhash import xxh3_64_hexdigest

from training import train
from training.runs.checkpoint import RECORD, STATE, _digest, _text, name_of, newest

FLAGS = "--dim 24 --epochs 3 --device cpu --global-batch 64 --log-every 7 --threads 1"
MODES = {
    "adam": "",
    "adam, by torch": "--kernel reference",
    "adagrad": "--optimizer adagrad --kernel cpu",
    "in place": "--sync-every 4",
    "in place, adagrad": "--sync-every 4 --optimizer rowwise_adagrad",
}
STOPPED_AFTER = 30

pytestmark = pytest.mark.usefixtures("no_pages")

Record = dict[str, Any]
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def threads_stay(threads: Threads) -> None:
    """``--threads 1`` of a run in this process is not to stay."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=300)
    return folder


@pytest.fixture(scope="module")
def stopped_runs() -> dict[str, Path]:
    """Runs that were stopped after STOPPED_AFTER batches, by their mode."""
    return {}


@pytest.fixture
def run(
    request: pytest.FixtureRequest,
    call: Command,
    data: Path,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    stop_after: Stop,
    stopped_runs: dict[str, Path],
) -> Callable[[str], Path]:
    """A copy of a stopped run of a mode."""

    def copied(mode: str) -> Path:
        if mode not in stopped_runs:
            stopped_runs[mode] = tmp_path_factory.mktemp("stopped") / "run"
            stop_after(STOPPED_AFTER)
            assert train_into(call, data, stopped_runs[mode], mode).code == 143
            stop_after(0)
        return Path(shutil.copytree(stopped_runs[mode], tmp_path / "run"))

    return copied


def train_into(call: Command, data: Path, output: Path, mode: str, *flags: str) -> Ended:
    return call(train.main, "--data", data, "--output", output, *f"{FLAGS} {MODES[mode]}".split(), *flags)


def rewrite(run: Path, change_state: Callable[[State], object], change_record: Callable[[Record], object]) -> None:
    """Changes a checkpoint, and makes its checksums right again."""
    step = newest(run)
    assert step is not None
    folder = run / "checkpoints" / name_of(step)
    state = {name: tensor.clone() for name, tensor in load_file(folder / STATE).items()}
    change_state(state)
    body = json.loads((folder / RECORD).read_bytes())
    body.pop("xxh3")
    content = save(state)
    (folder / STATE).write_bytes(content)
    body["state_xxh3"] = xxh3_64_hexdigest(content)
    change_record(body)
    (folder / RECORD).write_text(_text({**body, "xxh3": _digest(body)}))


def unchanged(_: object) -> None:
    """No lie."""


def tensor_lies(state: State) -> dict[str, Callable[[State], object]]:
    """Lies about every tensor of this state."""

    def put(name: str, value: float) -> Callable[[State], object]:
        return lambda found: found[name].view(-1)[-1:].fill_(value)

    def replace(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[State], object]:
        return lambda found: found.update({name: change(found[name]).contiguous()})

    lies: dict[str, Callable[[State], object]] = {"a tensor more": lambda found: found.update(more=torch.zeros(3))}
    for name, tensor in state.items():
        lies[f"no {name}"] = lambda found, name=name: found.pop(name)  # type: ignore[misc]
        other = torch.int32 if tensor.dtype == torch.float32 else torch.float32
        lies[f"{name} of another type"] = replace(name, lambda found, other=other: found.to(other))  # type: ignore[misc]
        lies[f"{name} with a dimension more"] = replace(name, lambda found: found[None])
        if tensor.dim():
            lies[f"{name} that is shorter"] = replace(name, lambda found: found[..., :-1])
            lies[f"{name} that is longer"] = replace(name, lambda found: torch.cat([found, found], -1))
            lies[f"{name} that is empty"] = replace(name, lambda found: found[:0])
        wrong = (
            [torch.nan, torch.inf, -torch.inf]
            if tensor.dtype == torch.float32
            else [1_500_000_000, -1_500_000_000, -1, 31]
        )
        for value in wrong:
            lies[f"{value} in {name}"] = put(name, value)
    return lies


@pytest.mark.parametrize(
    "mode",
    [pytest.param(mode, marks=[pytest.mark.long] if mode in ("adam, by torch", "adagrad") else []) for mode in MODES],
)
def test_a_lie_about_tensors_is_refused(call: Command, data: Path, run: Callable[[str], Path], mode: str) -> None:
    folder = run(mode)
    step = newest(folder)
    assert step is not None
    honest = tree(folder)
    for name, lie in tensor_lies(load_file(folder / "checkpoints" / name_of(step) / STATE)).items():
        rewrite(folder, lie, unchanged)
        before = tree(folder)
        ended = train_into(call, data, folder, mode, "--resume")
        assert ended.code == 2, (name, ended)
        ended.assert_refused(STATE, "damaged or unreadable")
        assert_kept(folder, before)
        restore(folder, honest)
    assert train_into(call, data, folder, mode, "--resume").code == 0


def assert_kept(folder: Path, before: dict[str, bytes]) -> None:
    """Every file that a run needs to go on is as it was; config.json is written when a run begins."""
    now = tree(folder)
    assert {name: now.get(name) for name in before if name != "config.json"} == {
        name: content for name, content in before.items() if name != "config.json"
    }


def restore(folder: Path, content: dict[str, bytes]) -> None:
    for name, old in content.items():
        if (folder / name).is_file():
            (folder / name).write_bytes(old)


def of_progress(**change: object) -> Callable[[Record], object]:
    return lambda body: body["progress"].update(change)


RECORD_LIES: dict[str, Callable[[Record], object]] = {
    "a negative epoch": of_progress(epoch=-1),
    "an epoch to come": of_progress(epoch=2),
    "an epoch after the last": of_progress(epoch=4),
    "epoch 2^53": of_progress(epoch=2**53),
    "an epoch as text": of_progress(epoch="0"),
    "a negative step": of_progress(step=-1),
    "a step beyond the epoch": of_progress(step=10**6),
    "another step of the run": of_progress(done=29),
    "steps as a float": of_progress(done=30.0),
    "negative examples": of_progress(examples=-1),
    "no progress": lambda body: body.pop("progress"),
    "a progress of null": lambda body: body.update(progress=None),
    "a moment of null": of_progress(now=None),
    "a moment that ran backwards": lambda body: body["progress"]["now"].update(clock_s=-1.0),
    "another step": lambda body: body.update(step=29),
    "a negative length of metrics.jsonl": lambda body: body.update(metrics_bytes=-1),
    "a length of metrics.jsonl beyond its end": lambda body: body.update(metrics_bytes=2**40),
    "no settings": lambda body: body.pop("settings"),
    "a setting less": lambda body: body["settings"].pop("dim"),
    "a setting more": lambda body: body["settings"].update(colour="red"),
    "a setting of another type": lambda body: body["settings"].update(dim="24"),
    "no ranks": lambda body: body.update(world_size=0),
    "ranks as text": lambda body: body.update(world_size="1"),
    "threads of null": lambda body: body.update(threads=None),
    "another kernel": lambda body: body.update(kernel="red"),
    "a dataset as a number": lambda body: body.update(dataset_id=7),
    "a start without vectors": lambda body: body.update(start={"growth": {}}),
    "a start as text": lambda body: body.update(start="x"),
    "a field more": lambda body: body.update(colour="red"),
    "no digest of the tensors": lambda body: body.pop("state_xxh3"),
    "a digest as a number": lambda body: body.update(state_xxh3=3),
    "another format": lambda body: body.update(format_version=2),
    "a format of a list": lambda body: body.update(format_version=[1]),
}


@pytest.mark.parametrize("resume", ["--resume", "--resume=30"])
def test_a_lie_in_the_record_is_refused(call: Command, data: Path, run: Callable[[str], Path], resume: str) -> None:
    folder = run("adam")
    honest = tree(folder)
    for name, lie in RECORD_LIES.items():
        rewrite(folder, unchanged, lie)
        before = tree(folder)
        ended = train_into(call, data, folder, "adam", resume)
        assert ended.code == 2, (name, ended)
        ended.assert_refused("run")
        assert_kept(folder, before)
        restore(folder, honest)
    assert train_into(call, data, folder, "adam", resume).code == 0


def test_a_vector_of_the_unknown_word_is_refused(call: Command, data: Path, run: Callable[[str], Path]) -> None:
    folder = run("in place")
    rewrite(folder, lambda state: state["center"][0].fill_(0.5), unchanged)
    train_into(call, data, folder, "in place", "--resume").assert_refused("row 0")


def test_a_folder_in_place_of_lines_is_refused(call: Command, data: Path, run: Callable[[str], Path]) -> None:
    folder = run("adam")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    train_into(call, data, folder, "adam", "--resume").assert_refused("metrics.jsonl", "s a directory")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"kind": "step"}', '{"kind": "other"}', "null"])
def test_lines_that_training_does_not_write_are_refused(
    call: Command, data: Path, run: Callable[[str], Path], content: str
) -> None:
    folder = run("adam")
    path = folder / "metrics.jsonl"
    size = path.stat().st_size
    path.write_text(f"{content}\n".ljust(size - 1) + "\n")
    train_into(call, data, folder, "adam", "--resume").assert_refused("metrics.jsonl", "line 1")
