"""Laws of runs whose ranks come and go: stopped, killed, started again, as many as before or others."""

import json
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from conftest import Ended, free_port
from launch import PYTHON, TORCHRUN, TRAIN, launched, numbers, told, vectors
from ranks import signal_at, train_here
from tiny import write_tiny_dataset

from training.runs.checkpoint import newest, read_record

pytestmark = pytest.mark.usefixtures("no_pages")

ENDLESS = 1000
"""Epochs of a run that is to be stopped."""

ADAGRAD = ["--sync-every", "7", "--optimizer", "rowwise_adagrad", "--sharding", "replicated"]
"""In place on each rank's own tables, with a rate that does not depend on how many epochs there will be. Epochs are no
multiple of 7 steps."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=1000, epochs=2)
    return folder


def flags(data: Path, output: Path, epochs: int) -> list[str]:
    settings = {"epochs": epochs, "global-batch": 128, "dim": 40, "threads": 1, "device": "cpu", "log-every": 5}
    arguments = {"data": data, "output": output, **settings, "checkpoint-every": 20}
    return [*(text for name, value in arguments.items() for text in (f"--{name}", str(value))), "--deterministic"]


def copied(begun: Path, output: Path) -> Path:
    return Path(shutil.copytree(begun, output, ignore=shutil.ignore_patterns(".train.lock")))


def assert_same_lines(found: Path, expected: Path) -> None:
    """The same lines of metrics.jsonl; losses but for rounding, since a stop adds up what there is of them.

    Ranks also cut a batch in other places than one process does, and where a cut ends within a processor's vector, a
    reported loss may differ in its last bit; slopes, and so the vectors, do not.
    """
    ours, others = numbers(found), numbers(expected)
    for line in (*ours, *others):
        for name in ("loss", "mean_loss"):
            if name in line:
                line[name] = pytest.approx(line[name], rel=1e-8) if line in ours else line[name]
    assert ours == others


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The run of one process, which nobody disturbs, of as many epochs."""

    @cache
    def run(epochs: int) -> Path:
        folder = tmp_path_factory.mktemp("alone")
        assert train_here(*flags(data, folder / "run", epochs), logs=folder).code == 0
        return folder / "run"

    return run


def assert_stopped(output: Path, ended: Ended) -> None:
    """By a SIGTERM, with nothing lost."""
    assert (ended.code, ended.stderr) == (143, f"stopped after step {newest(output):,}; --resume goes on from there\n")
    assert not (output / "summary.json").exists()
    assert not (output / ".train.lock").exists()


def enough(output: Path) -> int:
    """Epochs for a run that goes on to get beyond the next epoch's edge."""
    step = newest(output)
    assert step is not None
    return int(read_record(output, step)["progress"]["epoch"]) + 2


# Synchronous


@pytest.fixture(scope="module")
def four_ranks(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run of four ranks that SIGTERM has stopped, and how it ended."""
    output = tmp_path_factory.mktemp("four") / "run"
    arguments = [*flags(data, output, ENDLESS), "--nproc", "4"]
    return output, train_here(*arguments, logs=output.parent, change=signal_at(30))


def test_sigterm_saves_and_ends_four_ranks_with_143(four_ranks: tuple[Path, Ended]) -> None:
    assert_stopped(*four_ranks)


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "more"),
    [
        (PYTHON, ["--nproc", "4"]),
        ([*TORCHRUN, TRAIN], ["--nproc", "2"]),
        ([*TORCHRUN, "--nproc-per-node", "2", TRAIN], ADAGRAD),
    ],
    ids=["python", "literal torchrun", "torchrun's own ranks, in place"],
)
def test_sigterm_to_a_launcher_saves_and_ends_it_with_143(
    data: Path, tmp_path: Path, launcher: list[str], more: list[str]
) -> None:
    output = tmp_path / "run"
    with launched([*launcher, *flags(data, output, ENDLESS), *more], tmp_path) as running:
        running.wait_for(lambda: told(output) >= 30)
        running.process.send_signal(signal.SIGTERM)
        assert_stopped(output, running.end(60))


@pytest.mark.parametrize("ranks", [1, 2, pytest.param(8, marks=pytest.mark.long)])
def test_a_run_begun_on_four_ranks_ends_on_others_with_the_vectors_of_one(
    data: Path, four_ranks: tuple[Path, Ended], alone: Callable[[int], Path], tmp_path: Path, ranks: int
) -> None:
    output = copied(four_ranks[0], tmp_path / "run")
    epochs, step = enough(output), newest(output)
    ended = train_here(*flags(data, output, epochs), "--nproc", ranks, "--resume", logs=tmp_path)
    assert ended.code == 0, ended.stderr
    assert f"goes on after step {step:,}\n" in ended.stdout
    assert json.loads((output / "summary.json").read_text())["world_size"] == ranks
    assert_same_lines(output, alone(epochs))
    assert vectors(output) == vectors(alone(epochs))


@pytest.mark.long
def test_torchrun_brings_back_a_run_whose_worker_was_killed(
    data: Path, alone: Callable[[int], Path], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    torchrun = [*TORCHRUN, "--nproc-per-node", "2", "--max-restarts", "3", *rendezvous]
    with launched([*torchrun, TRAIN, *flags(data, output, epochs=6), "--resume", "auto"], tmp_path) as running:
        running.wait_for(lambda: told(output) >= 30)
        os.kill(running.workers()[1], signal.SIGKILL)
        ended = running.end()
    assert ended.code == 0, ended.stderr
    assert "goes on after step" in ended.stdout
    assert vectors(output) == vectors(alone(6))
    assert_same_lines(output, alone(6))


@pytest.mark.long
def test_two_agents_of_which_one_is_lost_go_on_when_it_is_back(
    data: Path, alone: Callable[[int], Path], tmp_path: Path
) -> None:
    """The agent that is lost is not the one where agents meet. What takes time then: up to PEER_GRACE_S, torchrun's
    keep-alive (it believes that an agent is gone after three times 5 s), and the start of four ranks.
    """
    output, port = tmp_path / "run", free_port()
    rendezvous = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "tests"]
    torchrun = [*TORCHRUN, "--nnodes", "2", "--nproc-per-node", "2", "--max-restarts", "3", *rendezvous]
    command = [*torchrun, TRAIN, *flags(data, output, epochs=6), "--resume", "auto"]
    # Else an agent that comes back waits in vain for an address that the others publish once (pytorch issue 135712).
    environment = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with launched(command, tmp_path, environment) as host:
        host.wait_for(lambda: answers(port))
        with launched(command, tmp_path, environment) as lost:
            host.wait_for(lambda: told(output) >= 30)
            lost.kill()
        begin, before = time.monotonic(), told(output)
        with launched(command, tmp_path, environment) as back:
            host.wait_for(lambda: told(output) > before)
            waited_s = time.monotonic() - begin
            ended = [host.end(), back.end()]
    assert [agent.code for agent in ended] == [0, 0], ended
    assert any("goes on after step" in agent.stdout for agent in ended)
    assert vectors(output) == vectors(alone(6))
    assert_same_lines(output, alone(6))
    assert waited_s < 120


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


# In place


@pytest.fixture(scope="module")
def in_place(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Ended]:
    """A run of two ranks that SIGTERM has stopped somewhere in a period, and how it ended."""
    output = tmp_path_factory.mktemp("two") / "run"
    arguments = [*flags(data, output, ENDLESS), *ADAGRAD, "--nproc", "2"]
    return output, train_here(*arguments, logs=output.parent, change=signal_at(30))


def test_sigterm_saves_at_the_end_of_an_averaging_period(in_place: tuple[Path, Ended]) -> None:
    assert_stopped(*in_place)
    step = newest(in_place[0])
    assert step is not None
    assert read_record(in_place[0], step)["progress"]["step"] % 7 == 0


def test_ranks_that_average_tables_go_on_as_if_they_had_never_stopped(
    data: Path, in_place: tuple[Path, Ended], tmp_path: Path
) -> None:
    output = copied(in_place[0], tmp_path / "run")
    epochs = enough(output)
    for folder, more in ((output, ["--resume"]), (tmp_path / "whole", [])):
        ended = train_here(*flags(data, folder, epochs), *ADAGRAD, "--nproc", "2", *more, logs=tmp_path)
        assert ended.code == 0, ended.stderr
    assert vectors(output) == vectors(tmp_path / "whole")
    assert_same_lines(output, tmp_path / "whole")


def test_ranks_that_average_tables_go_on_as_others_through_the_same_data_and_say_what_changes(
    data: Path, in_place: tuple[Path, Ended], tmp_path: Path
) -> None:
    output = copied(in_place[0], tmp_path / "run")
    arguments = [*flags(data, output, enough(output)), *ADAGRAD, "--resume"]
    ended = train_here(*arguments, logs=tmp_path)
    ended.assert_refused("ranks: 1 instead of 2", "--deterministic")
    ended = train_here(*(word for word in arguments if word != "--deterministic"), logs=tmp_path)
    assert ended.code == 0, ended.stderr
    (said,) = (line for line in ended.stdout.splitlines() if "goes on" in line)
    assert "ranks: 1 instead of 2" in said
    assert "the average is another, so the vectors will be others" in said
    lines = numbers(output)
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    rows = [line["examples"] for line in lines if line["kind"] == "epoch"]
    assert steps == list(range(5, steps[-1] + 1, 5))
    shards = json.loads((data / "manifest.json").read_text())["shards"]
    sizes = [sum(shard["rows"] for shard in shards if shard["epoch"] == sampled) for sampled in (0, 1)]
    assert rows == [sizes[epoch % 2] for epoch in range(len(rows))]
