"""Laws of training that is killed, starved or handed damaged files: it goes on as if nothing had been, or says why not.

The machine's own failures are played by SIGKILL.
"""

import os
import random
import resource
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import pytest
from conftest import ROOT, Ended
from launch import LIMIT_S, PYTHON, completed, in_a_write, launched, numbers, told, vectors
from ranks import Change, at_batch, begin_apart, train_here
from tiny import damage_page, flip, tree, write_tiny_dataset

from pipeline.shared import files
from training.reading.plan import plan_epoch
from training.runs import checkpoint
from training.runs.checkpoint import FOLDER, STATE, name_of, newest, read, steps
from training.runs.run_folder import LOCK

pytestmark = pytest.mark.usefixtures("no_pages")

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


def here(command: list[str], logs: Path, change: Change | None = None) -> Ended:
    """How a command ends in this process."""
    return train_here(*command[len(PYTHON) :], logs=logs, change=change)


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The run of a mode that nobody disturbs."""

    @cache
    def run(mode: str) -> Path:
        folder = tmp_path_factory.mktemp("uninterrupted")
        ended = here(command(data, folder / "run", *MODES[mode]), folder)
        assert ended.code == 0, ended.stderr
        assert told(folder / "run") == NUM_STEPS
        return folder / "run"

    return run


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
        yield Moment(step, writing=index % 2 == 0, delay_s=chance.uniform(0, 0.01))


def kill_at(moment: Moment, command: list[str], output: Path) -> int:
    """Starts a run and kills it; the last step that it had told of."""
    with launched(command, output.parent) as running:
        running.wait_for(lambda: told(output) >= moment.step)
        running.freeze_at(lambda: not moment.writing or in_a_write(output), moment.delay_s)
        running.kill()
    assert not moment.writing or in_a_write(output)
    named = newest(output)
    assert named is None or read(output, named), "what is named as the newest is whole at every moment"
    return told(output)


@pytest.mark.long  # quick are those below, of a run that stands still: what a kill leaves
@pytest.mark.parametrize(
    ("mode", "kills"),
    [("adam", 3), ("in place", 2)],
)
def test_a_run_that_is_killed_again_and_again_ends_with_the_bits_of_one_that_is_not(
    data: Path, uninterrupted: Callable[[str], Path], mode: str, kills: int, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    auto = command(data, output, *MODES[mode], "--resume", "auto")
    for moment in moments(5, kills):
        kill_at(moment, auto, output)
    done = newest(output)
    ended = here(auto, tmp_path)
    assert ended.code == 0, ended.stderr
    assert f"goes on after step {done}" in ended.stdout
    assert numbers(output) == numbers(uninterrupted(mode)), list(moments(5, kills))
    assert vectors(output) == vectors(uninterrupted(mode)), list(moments(5, kills))


@pytest.mark.long
@pytest.mark.parametrize("mode", MODES)
def test_a_run_killed_at_any_of_twenty_moments_ends_with_the_bits_of_one_that_is_not(
    data: Path, uninterrupted: Callable[[str], Path], mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    killed, failed = [], []
    for number, moment in enumerate(moments(seed=20, count=20)):
        output = tmp_path / str(number) / "run"
        auto = command(data, output, *MODES[mode], "--resume", "auto")
        step = kill_at(moment, auto, output)
        killed.append(f"{step}{' (writing)' if moment.writing else ''}")
        ended = here(auto, output.parent)
        if (
            ended.code
            or vectors(output) != vectors(uninterrupted(mode))
            or numbers(output) != numbers(uninterrupted(mode))
        ):
            failed.append((moment, ended))
    with capsys.disabled():
        print(f"\n{mode}: {20 - len(failed)} of 20 bit-equal, killed after steps {', '.join(killed)} of {NUM_STEPS}")
    assert not failed


@pytest.mark.long
def test_sigterm_saves_and_exits_with_143(data: Path, uninterrupted: Callable[[str], Path], tmp_path: Path) -> None:
    output = tmp_path / "run"
    with launched(command(data, output), tmp_path) as running:
        running.wait_for(lambda: told(output) >= 100)
        running.process.send_signal(signal.SIGTERM)
        ended = running.end(60)
    done = newest(output)
    assert (ended.code, ended.stderr) == (143, f"stopped after step {done:,}; --resume goes on from there\n")
    ended = here(command(data, output, "--resume"), tmp_path)
    assert f"goes on after step {done:,}\n" in ended.stdout
    assert vectors(output) == vectors(uninterrupted("adam"))


# Damaged checkpoints, other clocks, other runs


@pytest.fixture(scope="module")
def running_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The output of a run that stands still while tests look, in the middle of its fourth checkpoint's write."""
    output = tmp_path_factory.mktemp("running") / "run"
    logs = output.parent
    process = begin_apart(*command(data, output)[len(PYTHON) :], logs=logs, change=stand_still_in_the_fourth_write)
    try:
        deadline = time.monotonic() + LIMIT_S
        while not in_a_write(output) or _state(process.pid) != "T":
            assert process.exitcode is None, (logs / "stderr").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert (newest(output), len(steps(output))) == (3 * EVERY, 2)
        yield output
    finally:
        process.kill()
        process.join()


def _state(pid: int | None) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def stand_still_in_the_fourth_write(patch: pytest.MonkeyPatch) -> None:
    def stop_there(path: Path) -> None:
        if path.name == f".{name_of(4 * EVERY)}":
            signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)  # to the process, this thread might go on
        files.fsync(path)

    patch.setattr(checkpoint, "fsync", stop_there)


@pytest.fixture
def mine(running_run: Path, tmp_path: Path) -> Path:
    """What a kill would leave of it, with two checkpoints."""
    return Path(shutil.copytree(running_run, tmp_path / "run"))


def test_a_checkpoint_with_a_flipped_byte_is_refused_and_the_one_before_offered(
    data: Path, mine: Path, tmp_path: Path
) -> None:
    earlier, last = steps(mine)
    flip(mine / FOLDER / name_of(last) / STATE, 5000)
    (mine / LOCK).unlink()  # it is the dead run's
    before = tree(mine)
    ended = here(command(data, mine, "--resume"), tmp_path)
    ended.assert_refused(f"{name_of(last)}/{STATE}", "damaged", f"--resume {earlier}")
    assert tree(mine) == before


def test_auto_goes_on_from_the_checkpoint_before_a_damaged_one_and_says_so(
    data: Path, mine: Path, uninterrupted: Callable[[str], Path], tmp_path: Path
) -> None:
    earlier, last = steps(mine)
    flip(mine / FOLDER / name_of(last) / STATE, 5000)
    ended = here(command(data, mine, "--resume", "auto"), tmp_path)
    assert ended.code == 0, ended.stderr
    assert f"{name_of(last)}/{STATE}: damaged" in ended.stderr
    assert f"goes on after step {earlier:,}\n" in ended.stdout
    assert vectors(mine) == vectors(uninterrupted("adam"))
    assert numbers(mine) == numbers(uninterrupted("adam"))


@pytest.mark.parametrize("locale", [False, pytest.param(True, marks=pytest.mark.long)], ids=["", "and locale"])
def test_a_run_goes_on_under_another_clock(
    data: Path, mine: Path, uninterrupted: Callable[[str], Path], tmp_path: Path, locale: bool
) -> None:
    """Every file seems to be written in the future, and the older the later, as when a clock is set back."""
    for age, path in enumerate(sorted(mine.rglob("*"), reverse=True)):
        os.utime(path, (time.time() + 1e6 * (1 + age),) * 2)
    environment = {"LC_ALL": "tr_TR.UTF-8", "LANG": "tr_TR.UTF-8", "TZ": "Pacific/Kiritimati", "PYTHONUTF8": "0"}
    done = newest(mine)
    auto = command(data, mine, "--resume", "auto")
    ended = completed(auto, tmp_path, environment) if locale else here(auto, tmp_path)
    assert ended.code == 0, ended.stderr
    assert f"goes on after step {done:,}\n" in ended.stdout
    assert vectors(mine) == vectors(uninterrupted("adam"))
    assert numbers(mine) == numbers(uninterrupted("adam"))


@pytest.mark.parametrize("word", ["time.time", "datetime.now", "localtime", "strftime", "locale.", "st_mtime"])
def test_nothing_in_training_asks_for_the_date_or_the_locale(word: str) -> None:
    """But for the shard cache, which removes what was not used for longest, and the times of TensorBoard's points."""
    files = {path.name for path in (ROOT / "training").rglob("*.py") if word in path.read_text()}
    assert files <= {"shard_cache.py", "tensorboard.py"}


@pytest.mark.parametrize("more", [[], ["--resume", "auto"], ["--overwrite"]], ids=["anew", "resume", "overwrite"])
def test_a_second_run_on_one_output_is_refused_and_touches_nothing(
    data: Path, running_run: Path, tmp_path: Path, more: list[str]
) -> None:
    before = tree(running_run)
    ended = here(command(data, running_run, *more), tmp_path)
    ended.assert_refused(f"--output {running_run}")
    assert not more or "another run is writing there" in ended.stderr
    assert tree(running_run) == before


LARGEST = 1 << 20
"""Bytes of a file on a disk that is nearly full: more than metrics.jsonl will have, less than a checkpoint."""


def test_a_disk_that_is_full_ends_a_run_in_one_line_and_its_last_checkpoint_is_good(data: Path, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    fill = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (LARGEST, before[1]))
    try:
        ended = here(command(data, tmp_path / "run"), tmp_path, partial(at_batch, 10, 0, fill))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert_good(tmp_path / "run", ended)


@pytest.mark.long
def test_a_disk_that_is_full_ends_a_process_too(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with launched(command(data, output), tmp_path) as running:
        running.wait_for(lambda: newest(output))
        resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (LARGEST, LARGEST))
        ended = running.end(60)
    assert_good(output, ended)


def assert_good(output: Path, ended: Ended) -> None:
    good = newest(output)
    assert good is not None
    ended.assert_refused("cannot be written", "File too large", f"the one of step {good} is good", "--resume")
    assert read(output, good).record["step"] == good
    assert not in_a_write(output)


# Ranks


FOUR = ["--nproc", "4", "--dim", "8"]
LOST = "error: process 2 was killed (SIGKILL); with --resume it goes on from the last checkpoint\n"


def test_a_rank_that_is_killed_ends_all_four_and_is_named_and_they_go_on(data: Path, tmp_path: Path) -> None:
    arguments = command(data, tmp_path / "run", *FOUR, epochs=1)
    ended = here(arguments, tmp_path, partial(at_batch, 2 * EVERY + 5, 2, kill_this_process))
    assert ended.stderr == LOST
    assert ended.code not in (0, 143)
    assert not (tmp_path / "run" / "vectors.safetensors").exists()
    ended = here([*arguments, "--resume"], tmp_path)
    assert f"goes on after step {2 * EVERY}\n" in ended.stdout
    assert here(command(data, tmp_path / "whole", "--dim", "8", epochs=1), tmp_path).code == 0
    assert vectors(tmp_path / "run") == vectors(tmp_path / "whole")


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
def test_a_launched_rank_that_is_killed_ends_all_four_and_is_named(data: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    with launched(command(data, output, *FOUR), tmp_path) as running:
        running.wait_for(lambda: told(output) >= 5)
        os.kill(running.ranks()[2], signal.SIGKILL)
        ended = running.end(60)
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: ")] == [LOST.strip()]
    assert ended.code not in (0, 143)
    assert not (output / "vectors.safetensors").exists()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_one_byte(path: Path) -> None:
    damage_page(path, "contexts_negatives")


@pytest.mark.parametrize("damage", [Path.unlink, truncate, change_one_byte], ids=lambda damage: damage.__name__)
def test_a_shard_that_is_damaged_while_ranks_train_is_named_by_the_rank_that_reads_it(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """With two lanes each rank reads the half of an epoch; the last shard of rank 1's. What is read
    ahead is not damaged yet: one of the many epochs after it is.
    """
    data, output = tmp_path / "data", tmp_path / "run"
    manifest = write_tiny_dataset(data, num_sequences=1000, epochs=2)
    plan = plan_epoch(manifest.select(1), manifest.row_group_rows, 0, 1, 2, 256)
    path = data / manifest.select(1)[plan.lanes[1][-1].shard].path
    arguments = command(data, output, "--nproc", "2", "--lanes", "2", "--dim", "8", epochs=40)
    ended = here(arguments, tmp_path, partial(at_batch, 5, 0, partial(damage, path)))
    errors = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert ended.code == 2
    assert [line.startswith(f"error: rank 1: {path}: ") for line in errors] == [True], ended.stderr
    assert not (output / "vectors.safetensors").exists()
