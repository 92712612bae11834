"""Laws of training that is killed, starved or handed damaged files: it goes on as if nothing had been, or says why not.

Real processes and files throughout; the machine's own failures are played by SIGKILL.
"""

import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from launch import PYTHON, completed, in_a_write, launched, numbers, told, vectors
from tiny import write_tiny_dataset

from training.checkpoint import newest

MODES = {"adam": [], "in place": ["--sync-every", "7", "--global-batch", "256"]}
"""Of one rank and thread; the averaging period does not divide ``EVERY``."""

EVERY = 20
NUM_STEPS = 630


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough words that a checkpoint takes some time to write: 9 MB with Adam's."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=4000, num_words=5000)
    return folder


def command(data: Path, output: Path, *more: str, epochs: int = 5) -> list[str]:
    settings = {"epochs": epochs, "global-batch": 256, "threads": 1, "device": "cpu", "log-every": 5}
    arguments = {"data": data, "output": output, **settings, "checkpoint-every": EVERY}
    pairs = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    return [*PYTHON, *pairs, "--deterministic", *more]


@pytest.fixture(scope="module", params=MODES)
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, mode: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted")
    ended = completed(command(data, folder / "run", *MODES[mode]), folder)
    assert ended.code == 0, ended.stderr
    assert told(folder / "run") == NUM_STEPS
    return folder / "run"


@dataclass(frozen=True)
class Moment:
    """When to kill a run: some time after the line of a step, or then while the next checkpoint is being written."""

    step: int
    writing: bool
    delay_s: float


def moments(seed: int, count: int) -> Iterator[Moment]:
    """In rising order, over the first four fifths of a run: what is left must take longer than our own delays."""
    chance = random.Random(seed)
    for index, step in enumerate(sorted(chance.sample(range(NUM_STEPS * 4 // 5), count))):
        yield Moment(step, writing=index % 2 == 1, delay_s=chance.uniform(0, 0.01))


def kill_at(moment: Moment, command: list[str], output: Path) -> int:
    """Starts a run and kills it; the last step that it had told of."""
    with launched(command, output.parent) as running:
        running.wait_for(lambda: told(output) >= moment.step)
        while True:
            if moment.writing:
                running.wait_for(lambda: in_a_write(output))
            time.sleep(moment.delay_s)
            running.freeze()
            if not moment.writing or in_a_write(output):
                break
            running.thaw()
        running.kill()
    assert not moment.writing or in_a_write(output)
    return told(output)


def test_a_run_that_is_killed_again_and_again_ends_with_the_bits_of_one_that_is_not(
    data: Path, uninterrupted: Path, mode: str, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    auto = command(data, output, *MODES[mode], "--resume", "auto")
    for moment in moments(seed=5, count=3):
        kill_at(moment, auto, output)
    done = newest(output)
    ended = completed(auto, tmp_path)
    assert ended.code == 0, ended.stderr
    assert f"goes on after step {done}" in ended.stdout
    assert numbers(output) == numbers(uninterrupted), list(moments(5, 3))
    assert vectors(output) == vectors(uninterrupted), list(moments(5, 3))


@pytest.mark.long
def test_a_run_killed_at_any_of_twenty_moments_ends_with_the_bits_of_one_that_is_not(
    data: Path, uninterrupted: Path, mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, failed = [], []
    for number, moment in enumerate(moments(seed=20, count=20)):
        output = tmp_path / str(number) / "run"
        auto = command(data, output, *MODES[mode], "--resume", "auto")
        step = kill_at(moment, auto, output)
        killed.append(f"{step}{' (writing)' if moment.writing else ''}")
        ended = completed(auto, output.parent)
        if ended.code or vectors(output) != vectors(uninterrupted) or numbers(output) != numbers(uninterrupted):
            failed.append((moment, ended))
    with capsys.disabled():
        print(f"\n{mode}: {20 - len(failed)} of 20 bit-equal, killed after steps {', '.join(killed)} of {NUM_STEPS}")
    assert not failed
