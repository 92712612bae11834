"""Laws of training/train.py: the ways to start it, and what a run leaves behind."""

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Threads
from launch import PYTHON, TRAIN, completed, launched, told
from ranks import signal_at, train_here
from safetensors.numpy import load_file
from tiny import write_tiny_dataset

from training import train
from training.runs import recorder
from training.runs.run_folder import write_pages
from training.train_config import SYNCHRONOUS, TrainConfig

pytestmark = pytest.mark.usefixtures("no_pages")

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
LAST_LINE = re.compile(r"loss \d\.\d{3}, \d+\.\d tokens/sec on cpu")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=800, epochs=2)
    return folder


def flags(data: Path, output: Path) -> list[str]:
    settings = {"epochs": 3, "global-batch": 256, "dim": 40, "log-every": 5, "threads": 1, "device": "cpu"}
    arguments = {"data": data, "output": output, **settings}
    return ["--deterministic", *(text for name, value in arguments.items() for text in (f"--{name}", str(value)))]


def start(command: list[str], data: Path, output: Path) -> None:
    """Runs a training command to its end."""
    ended = completed([*command, *flags(data, output)], output.parent)
    assert ended.code == 0, ended.stderr
    assert LAST_LINE.fullmatch(ended.stdout.splitlines()[-1])


def losses(output: Path) -> list[float]:
    return [epoch["loss"] for epoch in json.loads((output / "summary.json").read_text())["epochs"]]


def tables(output: Path) -> np.ndarray:
    found = load_file(output / "vectors.safetensors")
    return np.stack([found["center"], found["context"]])


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a single process that the others are held against, with its pages."""
    output = tmp_path_factory.mktemp("alone") / "run"
    ended = train_here(*flags(data, output), logs=output.parent, change=with_pages)
    assert ended.code == 0, ended.stderr
    assert LAST_LINE.fullmatch(ended.stdout.splitlines()[-1])
    return output


def with_pages(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recorder, "write_pages", write_pages)


def assert_as_alone(output: Path, alone: Path, ranks: int) -> None:
    assert json.loads((output / "summary.json").read_text())["world_size"] == ranks
    np.testing.assert_allclose(losses(output), losses(alone), atol=1e-5)
    assert np.array_equal(tables(output), tables(alone))


@pytest.mark.parametrize(
    ("ranks", "command"),
    [
        pytest.param(1, PYTHON, id="python, alone", marks=pytest.mark.long),
        pytest.param(2, [*PYTHON, "--nproc", "2"], id="python", marks=pytest.mark.long),
        pytest.param(2, [TORCHRUN, TRAIN, "--nproc", "2"], id="literal torchrun"),
        pytest.param(2, [TORCHRUN, "--nproc-per-node", "2", TRAIN], id="torchrun's own ranks", marks=pytest.mark.long),
        pytest.param(4, [TORCHRUN, TRAIN, "--nproc", "4"], id="literal torchrun, 4", marks=pytest.mark.long),
        pytest.param(
            4, [TORCHRUN, "--nproc-per-node", "4", TRAIN], id="torchrun's own ranks, 4", marks=pytest.mark.long
        ),
        pytest.param(
            2, [TORCHRUN, "--nproc-per-node", "2", TRAIN, "--nproc", "2"], id="both agree", marks=pytest.mark.long
        ),
    ],
)
def test_launched_ranks_train_what_one_process_trains(
    data: Path, alone: Path, tmp_path: Path, ranks: int, command: list[str]
) -> None:
    start(command, data, tmp_path / "run")
    assert_as_alone(tmp_path / "run", alone, ranks)


@pytest.mark.parametrize("ranks", [4, pytest.param(16, marks=pytest.mark.long)])
def test_any_number_of_ranks_trains_what_one_process_trains(
    data: Path, alone: Path, tmp_path: Path, ranks: int
) -> None:
    ended = train_here(*flags(data, tmp_path / "run"), "--nproc", ranks, logs=tmp_path)
    assert ended.code == 0, ended.stderr
    assert_as_alone(tmp_path / "run", alone, ranks)


@pytest.mark.long
def test_two_agents_train_together(data: Path, alone: Path, tmp_path: Path) -> None:
    """Two torchruns as on two nodes; each makes one process, which ``--nproc 2`` turns into two."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    nodes = ["--nnodes", "2", "--master-addr", "127.0.0.1", "--master-port", str(port)]
    agents = [
        subprocess.Popen(
            [TORCHRUN, *nodes, "--node-rank", str(rank), TRAIN, "--nproc", "2", *flags(data, tmp_path / "run")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        printed = [agent.communicate(timeout=180) for agent in agents]
    finally:
        for agent in agents:
            agent.kill()
    assert [agent.returncode for agent in agents] == [0, 0], printed
    assert_as_alone(tmp_path / "run", alone, 4)


@pytest.mark.parametrize("setting", [("optimizer", "sgd"), ("kernel", "reference")], ids=" ".join)
def test_ranks_that_average_gradients_train_what_one_process_trains(
    data: Path, tmp_path: Path, setting: tuple[str, str]
) -> None:
    """Gradients are added up rank by rank here, not row by row: the same but for rounding."""
    name, value = setting
    for ranks, folder in ((2, "two"), (1, "one")):
        more = ["--nproc", ranks, f"--{name}", value]
        ended = train_here(*flags(data, tmp_path / folder), *more, logs=tmp_path)
        assert ended.code == 0, ended.stderr
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), atol=1e-5)
    np.testing.assert_allclose(tables(tmp_path / "two"), tables(tmp_path / "one"), atol=1e-4)


@pytest.mark.parametrize("optimizer", SYNCHRONOUS)
def test_machine_code_costs_what_the_reference_costs(
    data: Path, tmp_path: Path, threads: Threads, optimizer: str
) -> None:
    steps, epochs = [], []
    for kernel in ("reference", "cpu"):
        output = tmp_path / kernel
        options = {"optimizer": optimizer, "global_batch": 64, "dim": 40, "log_every": 1, "epochs": 2, "threads": 1}
        config = TrainConfig(data=str(data), output=output, kernel=kernel, device="cpu", **options)  # type: ignore[arg-type]
        train.be_a_rank(config)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        steps.append([line["loss"] for line in lines if line["kind"] == "step"][:100])
        epochs.append(losses(output))
    assert len(steps[0]) == 100
    np.testing.assert_allclose(steps[1], steps[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(epochs[1], epochs[0], rtol=0, atol=5e-4)


def test_a_run_leaves_what_the_design_lists(data: Path, alone: Path) -> None:
    names = {
        *[
            "config.json",
            "metrics.jsonl",
            "summary.json",
            "vectors.safetensors",
            "vocab.parquet",
            "loss.png",
            "report.html",
            "tensorboard",
            "checkpoints",
        ]
    }
    assert {path.name for path in alone.iterdir()} == {*names, "checkpoints"}
    assert (alone / "loss.png").read_bytes().startswith(b"\x89PNG")
    words = pq.read_table(alone / "vocab.parquet")["word"].to_pylist()
    found = tables(alone)
    assert found.shape == (2, len(words), 40)
    assert found.dtype == np.float32
    assert not found[:, 0].any()

    lines = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    steps, epochs = ([line for line in lines if line["kind"] == kind] for kind in ("step", "epoch"))
    assert [line["step"] for line in steps] == list(range(5, epochs[-1]["step"] + 1, 5))
    assert [set(line) for line in steps] == [
        {"kind", "epoch", "step", "loss", "lr", "tokens_per_s", "wait_share"}
    ] * len(steps)
    manifest = json.loads((data / "manifest.json").read_text())
    rows = [sum(s["rows"] for s in manifest["shards"] if s["epoch"] == sampled) for sampled in (0, 1, 0)]
    assert [line["examples"] for line in epochs] == rows
    mean = sum(line["loss"] * line["examples"] for line in epochs) / sum(rows)
    assert epochs[-1]["mean_loss"] == pytest.approx(mean)
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["epochs"] == epochs
    assert summary["loss"] == epochs[-1]["loss"]
    assert summary["examples"] == sum(rows)
    assert summary["dataset_id"] == manifest["dataset_id"]


@pytest.mark.parametrize("optimizer", SYNCHRONOUS)
def test_every_optimizer_learns_at_its_usual_rate(
    data: Path, tmp_path: Path, threads: Threads, optimizer: str, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"optimizer": optimizer, "global_batch": 64, "dim": 16, "device": "cpu", "threads": 1}
    config = TrainConfig(data=str(data), output=tmp_path / "run", **settings)  # type: ignore[arg-type]
    train.be_a_rank(config)
    found = losses(tmp_path / "run")
    assert found[-1] < found[0] - 0.02
    assert f"{optimizer}, lr {SYNCHRONOUS[optimizer]:g}" in capsys.readouterr().out


def test_an_interrupted_run_leaves_no_vectors(data: Path, tmp_path: Path) -> None:
    ended = train_here(*flags(data, tmp_path / "run"), logs=tmp_path, change=signal_at(2, signal.SIGINT))
    assert_interrupted(tmp_path / "run", ended.code, ended.stderr)


@pytest.mark.long
def test_interrupting_a_launcher_ends_its_ranks(data: Path, tmp_path: Path) -> None:
    command = [*PYTHON, "--nproc", "2", *flags(data, tmp_path / "run"), "--epochs", "100000"]
    with launched(command, tmp_path) as running:
        running.wait_for(lambda: told(tmp_path / "run") >= 5)
        running.process.send_signal(signal.SIGINT)
        ended = running.end(60)
    assert_interrupted(tmp_path / "run", ended.code, ended.stderr)


def assert_interrupted(output: Path, code: int, errors: str) -> None:
    """Ranks that end with their launcher may have said where they stopped."""
    said = "interrupted; there are no new vectors, --resume goes on from the last checkpoint\n"
    assert (code, said in errors, "Traceback" in errors) == (130, True, False), errors
    assert not (output / "summary.json").exists()
    assert not (output / "vectors.safetensors").exists()
