"""Laws of --sharding columns: ranks that share the tables train what as many threads of one process train."""

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import launch
import numpy as np
import pytest
from conftest import Threads
from launch import PYTHON, Launched
from ranks import Change, at_batch, train_here
from safetensors.numpy import load_file
from tiny import damage_page, write_held_out, write_tiny_dataset

from pipeline.shared.errors import InputError
from training import distributed, train
from training.distributed import World, launched
from training.model.limits import num_cores
from training.model.memory import check_memory
from training.runs.checkpoint import steps
from training.train_config import TrainConfig

pytestmark = pytest.mark.usefixtures("no_pages")

MODES = {
    "adam": (),
    "sgd in place": ("--sync-every", "4"),
    "adagrad in place": ("--sync-every", "4", "--optimizer", "rowwise_adagrad"),
}
SETTINGS = "--epochs=2", "--global-batch=256", "--dim=72", "--log-every=5", "--threads=1", "--device=cpu"
COLUMNS = "--sharding", "columns"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_held_out(folder)
    return folder


def run(nproc: int, data: Path, output: Path, *flags: str, change: Change | None = None) -> Path:
    given = "--nproc", nproc, "--data", data, "--output", output, *SETTINGS, *flags
    ended = train_here(*given, logs=output.parent, change=change)
    assert ended.code == 0, ended.stderr
    return output


def machines(places: Callable[[int], tuple[int, int]], patch: pytest.MonkeyPatch) -> None:
    """Lets ranks find other places: local_rank and local_world_size."""

    def as_launched() -> World:
        world = launched()
        if world.world_size == 1:
            return world
        local_rank, local_world_size = places(world.rank)
        return replace(world, local_rank=local_rank, local_world_size=local_world_size)

    for module in (distributed, train):
        patch.setattr(module, "launched", as_launched)


def each_two(rank: int) -> tuple[int, int]:
    return rank % 2, 2


def each_one(rank: int) -> tuple[int, int]:
    return 0, 1


def one_and_three(rank: int) -> tuple[int, int]:
    return (0, 1) if rank == 0 else (rank - 1, 3)


def in_turn(rank: int) -> tuple[int, int]:
    """Ranks 0 and 2 on one machine, 1 and 3 on another."""
    return rank // 2, 2


def assert_same_run(found: Path, expected: Path) -> None:
    """To the bit, but for logged losses: their sums are added up in other parts."""
    ours, theirs = (load_file(path / "vectors.safetensors") for path in (found, expected))
    assert all(np.array_equal(ours[name], theirs[name]) for name in ("center", "context"))
    lines = ((path / "metrics.jsonl").read_text().splitlines() for path in (found, expected))
    for our, their in zip(*(map(json.loads, of_run) for of_run in lines), strict=True):
        for name in ("kind", "step", "examples"):
            assert our.get(name) == their.get(name)
        assert our["loss"] == pytest.approx(their["loss"], rel=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_have_the_bits_of_two_threads(data: Path, tmp_path: Path, threads: Threads, mode: str) -> None:
    two_threads = run(1, data, tmp_path / "threads", *MODES[mode], "--threads=2")
    assert_same_run(run(2, data, tmp_path / "ranks", *MODES[mode], *COLUMNS), two_threads)


@pytest.mark.long
def test_four_ranks_have_the_bits_of_four_threads(data: Path, tmp_path: Path, threads: Threads) -> None:
    wide = "--dim", "128"
    four_threads = run(1, data, tmp_path / "threads", *wide, "--threads=4")
    assert_same_run(run(4, data, tmp_path / "ranks", *wide, *COLUMNS), four_threads)


# Groups, and machines


@pytest.mark.parametrize(
    "mode", ["adagrad in place", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("adam", "sgd in place"))]
)
def test_a_group_on_two_machines_has_the_bits_of_one_process(data: Path, tmp_path: Path, mode: str) -> None:
    """Also when it goes on from a checkpoint of which the second machine has no copy, and from a warm start."""
    flags = *MODES[mode], "--deterministic", "--checkpoint-every=1", "--keep=1000", "--epochs=1", "--dim=136"
    whole = run(1, data, tmp_path / "whole", *flags)
    on_two = partial(run, 4, data, change=partial(machines, each_two))
    ours = on_two(tmp_path / "ours", *flags, "--group-size=4")
    assert_same_run(ours, whole)
    assert json.loads((ours / "summary.json").read_text())["group_size"] == 4
    begun = interrupted(ours, tmp_path / "begun", 5)
    assert_same_run(on_two(begun, *flags, "--group-size=4", "--resume"), whole)
    warm = "--init-from", str(whole), "--freeze-epochs=1", "--epochs=2"
    again = run(1, data, tmp_path / "again", *flags, *warm)
    assert_same_run(on_two(tmp_path / "warm", *flags, *warm, "--group-size=4"), again)


def test_groups_on_several_machines_train_what_one_machine_trains(data: Path, tmp_path: Path) -> None:
    """Without --deterministic the machines' sums are added up, so only rounding differs."""
    flags = *MODES["adagrad in place"], "--dim=152", "--epochs=1"
    expected = load_file(run(1, data, tmp_path / "one", *flags) / "vectors.safetensors")
    for number, places in ((4, each_two), (2, each_one), (4, each_one)):
        output, group = tmp_path / f"{number} {places.__name__}", f"--group-size={number}"
        ours = run(number, data, output, *flags, group, change=partial(machines, places))
        for name, found_VD in load_file(ours / "vectors.safetensors").items():
            np.testing.assert_allclose(found_VD, expected[name], atol=1e-5)


@pytest.mark.parametrize(
    ("mode", "change"),
    [
        pytest.param("adam", None, marks=pytest.mark.long, id="adam, one machine"),
        pytest.param("adam", partial(machines, each_two), id="adam, two machines"),
        pytest.param("sgd in place", None, id="in place, one machine"),
        pytest.param("sgd in place", partial(machines, each_two), marks=pytest.mark.long, id="in place, two machines"),
    ],
)
def test_two_groups_have_the_bits_of_two_ranks_with_whole_tables(
    data: Path, tmp_path: Path, mode: str, change: Change | None
) -> None:
    flags = *MODES[mode], "--deterministic", "--checkpoint-every=1", "--keep=1000", "--epochs=1"
    two = run(2, data, tmp_path / "two", *flags, "--sharding=replicated")
    in_groups = partial(run, 4, data, change=change)
    ours = in_groups(tmp_path / "ours", *flags, "--group-size=2")
    assert_same_run(ours, two)
    begun = interrupted(ours, tmp_path / "begun", 8)
    assert_same_run(in_groups(begun, *flags, "--group-size=2", "--resume"), two)


@pytest.mark.parametrize(
    ("places", "found"),
    [
        (one_and_three, "machines: found 1 and 3 processes on a machine, expected as many on each"),
        (in_turn, "RANK: found ranks that are not numbered machine by machine, expected those of a machine in a row"),
    ],
)
def test_ranks_that_do_not_know_their_machines_share_no_columns(
    data: Path, tmp_path: Path, places: Callable[[int], tuple[int, int]], found: str
) -> None:
    """But train with whole tables, also from a checkpoint that their machine does not have."""
    flags, change = ("--checkpoint-every=1", "--keep=1000", "--epochs=1"), partial(machines, places)
    given = "--nproc", 4, "--data", data, "--output", tmp_path / "run", *SETTINGS, *flags
    ended = train_here(*given, logs=tmp_path, change=change)
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {found}, to share tables by columns; or take --sharding replicated\n"
    whole = run(4, data, tmp_path / "run", *flags, "--sharding=replicated", change=change)
    begun = interrupted(whole, tmp_path / "begun", 5)
    assert_same_run(run(4, data, begun, *flags, "--sharding=replicated", "--resume", change=change), whole)


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(("--optimizer=sgd",), marks=pytest.mark.long),
        ("--optimizer=adagrad",),
        pytest.param(("--sync-every=4",), marks=pytest.mark.long),
        ("--sync-every=4", "--optimizer=rowwise_adagrad"),
    ],
    ids=" ".join,
)
def test_ranks_share_columns_with_the_kernels_of_torch_as_well(tmp_path: Path, mode: tuple[str, ...]) -> None:
    """As on GPUs: in a kernel that knows nothing of others, but for a function that adds up. On two groups, too."""
    data = tmp_path / "few"
    write_tiny_dataset(data, num_sequences=40)
    flags = (
        *mode,
        *["--kernel=reference", "--epochs=1", "--dim=40", "--checkpoint-every=1", "--keep=1000", "--global-batch=64"],
    )
    in_columns = *flags, "--group-size=2"

    def assert_close(found: Path, expected: Path) -> None:
        losses = [json.loads((path / "summary.json").read_text())["loss"] for path in (found, expected)]
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        for name, expected_VD in load_file(expected / "vectors.safetensors").items():
            np.testing.assert_allclose(load_file(found / "vectors.safetensors")[name], expected_VD, atol=2e-5)

    one = run(1, data, tmp_path / "one", *flags)
    ours = run(2, data, tmp_path / "ours", *in_columns)
    assert_close(ours, one)
    assert_close(run(1, data, interrupted(ours, tmp_path / "by one", 4), *flags, "--resume"), one)
    assert_close(run(2, data, interrupted(one, tmp_path / "by two", 4), *in_columns, "--resume"), one)
    two = run(2, data, tmp_path / "two", *flags, "--sharding=replicated")
    assert_close(run(4, data, tmp_path / "groups", *in_columns), two)


# Faults


def interrupted(whole: Path, copy: Path, step: int) -> Path:
    """A copy of a finished run as if it had been stopped after a step."""
    shutil.copytree(whole, copy)
    for name in ("summary.json", "vectors.safetensors"):
        (copy / name).unlink()
    for later in steps(copy):
        if later > step:
            shutil.rmtree(copy / "checkpoints" / f"step-{later:08d}")
    (copy / "checkpoints" / "latest").write_text(f"step-{step:08d}\n")
    return copy


@pytest.mark.parametrize("mode", ["adam", pytest.param("sgd in place", marks=pytest.mark.long)])
def test_a_run_goes_on_with_the_same_bits_by_columns_or_by_threads(
    data: Path, tmp_path: Path, threads: Threads, mode: str
) -> None:
    saving = *MODES[mode], "--checkpoint-every", "1", "--keep", "1000"
    whole = run(2, data, tmp_path / "whole", *saving, *COLUMNS)
    ranks = interrupted(whole, tmp_path / "ranks", 5)
    assert_same_run(run(2, data, ranks, *saving, *COLUMNS, "--resume"), whole)
    one = interrupted(whole, tmp_path / "one", 5)
    assert_same_run(run(1, data, one, *saving, "--threads=2", "--resume"), whole)


@pytest.mark.parametrize(
    "mode", ["adagrad in place", *(pytest.param(mode, marks=pytest.mark.long) for mode in ("adam", "sgd in place"))]
)
def test_deterministic_runs_have_the_same_bits_on_any_number_of_ranks_and_threads(
    data: Path, tmp_path: Path, threads: Threads, mode: str
) -> None:
    """Also when they go on with others, and though rows have a rest of columns that is no whole chunk."""
    flags = *MODES[mode], "--deterministic", "--dim=152", "--checkpoint-every=1", "--keep=1000", "--epochs=1"
    whole = run(1, data, tmp_path / "whole", *flags)
    for ranks, number in ((1, 3), (2, 1), (2, 2), (4, 1)):
        ours = run(ranks, data, tmp_path / f"{ranks} {number}", *flags, *COLUMNS, f"--threads={number}")
        assert_same_run(ours, whole)
        assert json.loads((ours / "summary.json").read_text())["threads"] == number
    begun = interrupted(whole, tmp_path / "begun", 3)
    assert_same_run(run(4, data, begun, *flags, "--resume"), whole)


def test_auto_shares_columns_where_that_is_possible_and_else_says_why(data: Path, tmp_path: Path) -> None:
    for flags, sharding, said in (
        ((), "columns", "each rank trains all rows in its columns of the tables, 48 or fewer"),
        (("--sharding=replicated",), "replicated", "gradients averaged every step"),
        (("--optimizer=sgd",), "replicated", "whole tables on each rank: found --optimizer sgd, expected adam"),
    ):
        (tmp_path / str(flags)).mkdir()
        given = "--nproc", 2, "--data", data, "--output", tmp_path / str(flags) / "run", *SETTINGS, *flags
        ended = train_here(*given, "--epochs=1", logs=tmp_path / str(flags))
        assert (ended.code, ended.stderr) == (0, "")
        assert said in ended.stdout
        assert ("whole tables on each rank" in ended.stdout) == (flags == ("--optimizer=sgd",))
        assert json.loads((tmp_path / str(flags) / "run" / "summary.json").read_text())["sharding"] == sharding


def killed(rank: int, patch: pytest.MonkeyPatch) -> None:
    at_batch(5, rank, lambda: os.kill(os.getpid(), signal.SIGKILL), patch)


@pytest.mark.parametrize("rank", [1, pytest.param(0, marks=pytest.mark.long)])
def test_the_others_end_soon_when_one_is_killed_and_the_run_goes_on(data: Path, tmp_path: Path, rank: int) -> None:
    saving = "--checkpoint-every", "1", "--epochs", "1"
    whole = run(2, data, tmp_path / "whole", *saving, *COLUMNS)
    output, began = tmp_path / "run", time.monotonic()
    flags = "--nproc", 2, "--data", data, "--output", output, *SETTINGS, *saving, *COLUMNS
    ended = train_here(*flags, logs=tmp_path, change=partial(killed, rank))
    assert ended.code == 1
    killed_one = f"error: process {rank} was killed (SIGKILL); with --resume it goes on from the last checkpoint"
    assert killed_one in ended.stderr.splitlines()
    assert time.monotonic() - began < 30
    assert_same_run(run(2, data, output, *saving, *COLUMNS, "--resume", "auto"), whole)


@pytest.mark.long
def test_a_run_that_is_killed_at_twenty_moments_ends_with_the_bits_of_one_that_is_not(
    data: Path, tmp_path: Path
) -> None:
    """Any of four ranks, at any of its next batches, before or after a checkpoint."""
    saving = "--checkpoint-every", "2", "--keep", "3", "--epochs", "3"
    whole = run(4, data, tmp_path / "whole", *saving, *COLUMNS)
    output, made, shared = tmp_path / "run", random.Random(4), os.listdir("/dev/shm")
    kills = 0
    while kills < 20:
        flags = "--nproc", 4, "--data", data, "--output", output, *SETTINGS, *saving, *COLUMNS, "--resume", "auto"
        moment, rank = made.choice([1, 2, 2, 3, 4]), made.randrange(4)
        began = time.monotonic()
        ended = train_here(*flags, logs=tmp_path, change=partial(at_batch, moment, rank, kill_this))
        assert time.monotonic() - began < 60
        assert ended.code == 1, ended.stderr
        assert f"error: process {rank} was killed (SIGKILL)" in ended.stderr
        kills += 1
    assert os.listdir("/dev/shm") == shared
    assert_same_run(run(4, data, output, *saving, *COLUMNS, "--resume", "auto"), whole)


def kill_this() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.long
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_when_a_rank_of_a_machine_is_killed_all_machines_end_and_the_run_goes_on(
    data: Path, tmp_path: Path, rank: int
) -> None:
    """Each machine has a launcher of its own, which knows nothing of the other one."""
    flags = "--data", data, *SETTINGS, "--group-size", "4", "--checkpoint-every", "1", "--deterministic"

    def on_two_machines(held: ExitStack, *more: str) -> list[Launched]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
        command = [*PYTHON, *map(str, flags), "--nproc", "2", "--output", str(tmp_path / "run"), *more]
        environments = [{**place, "RANK": str(machine)} for machine in range(2)]
        return [held.enter_context(launch.launched(command, tmp_path, each)) for each in environments]

    with ExitStack() as held:
        machines = on_two_machines(held, "--epochs", "200")
        machines[0].wait_for(lambda: len(steps(tmp_path / "run")) > 1)
        os.kill(machines[rank // 2].ranks()[rank % 2], signal.SIGKILL)
        ended = [machine.end(60) for machine in machines]
    assert all(of_machine.code == 1 for of_machine in ended), ended
    assert "was killed (SIGKILL)" in ended[rank // 2].stderr
    assert not any("Traceback" in of_machine.stderr for of_machine in ended), ended
    shutil.copytree(tmp_path / "run", tmp_path / "one")
    more = "--resume", "--epochs=2"  # it was in the first epoch
    one = run(1, data, tmp_path / "one", "--deterministic", "--checkpoint-every=1", *more)
    with ExitStack() as held:
        assert [machine.end().code for machine in on_two_machines(held, *more)] == [0, 0]
    assert_same_run(tmp_path / "run", one)


def other_cores(patch: pytest.MonkeyPatch) -> None:
    def share(world: World) -> float:
        return 1 if launched().rank else 64

    patch.setattr("training.model.kernels.columns.num_cores", lambda: share(launched()))
    for module in ("model.kernels.group", "reading.epochs"):
        patch.setattr(f"training.{module}.share_of_cores", share)


def test_ranks_that_find_other_numbers_of_cores_do_as_the_first_does(data: Path, tmp_path: Path) -> None:
    """As in containers of other quotas, or pinned."""
    flags = "--nproc", 2, "--data", data, *SETTINGS, *COLUMNS, "--epochs=1", "--dim=128", "--threads=2"
    for name, change in (("same", None), ("other", other_cores)):
        (tmp_path / name).mkdir()
        ended = train_here(*flags, "--output", tmp_path / name / "run", logs=tmp_path / name, change=change)
        assert ended.code == 0, ended.stderr
    if num_cores() > 1:
        assert_same_run(tmp_path / "other" / "run", tmp_path / "same" / "run")


def stopped(patch: pytest.MonkeyPatch) -> None:
    def pause() -> None:
        waking = subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {os.getpid()}"])
        os.kill(os.getpid(), signal.SIGSTOP)
        waking.wait()

    at_batch(2, 1, pause, patch)


def test_a_stopped_rank_only_delays(data: Path, tmp_path: Path) -> None:
    flags = "--nproc", 2, "--data", data, *SETTINGS, *COLUMNS, "--epochs", "1"
    for name, change in (("undisturbed", None), ("stopped", stopped)):
        (tmp_path / name).mkdir()
        ended = train_here(*flags, "--output", tmp_path / name / "run", logs=tmp_path / name, change=change)
        assert ended.code == 0, ended.stderr
    assert_same_run(tmp_path / "stopped" / "run", tmp_path / "undisturbed" / "run")


def test_a_damaged_shard_that_one_rank_reads_ends_all_with_one_line(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    damage_page(next(copy.glob("*/train/epoch=1/*.parquet")), "contexts_negatives")
    ended = train_here("--nproc", 2, "--data", copy, "--output", tmp_path / "run", *SETTINGS, *COLUMNS, logs=tmp_path)
    ended.assert_refused("damaged or unreadable", "shard-")


# Bad input


@pytest.mark.parametrize(
    ("flags", "device", "ranks", "found"),
    [
        (
            {"optimizer": "sgd"},
            "cpu",
            (2, 2),
            "found --optimizer sgd, expected adam, --sync-every N, or --kernel reference",
        ),
        ({"reader": "petastorm"}, "cpu", (2, 2), "found --reader petastorm, expected arrow"),
        ({"dim": 16}, "cpu", (4, 4), "found 4 processes on a machine, expected 1, which can share --dim 16 in parts"),
        ({"dim": 64, "lanes": 15}, "cpu", (5, 5), "found 5 processes on a machine, expected 1 or 3,"),
    ],
)
def test_what_cannot_be_shared_by_columns_is_refused(
    flags: dict[str, Any], device: str, ranks: tuple[int, int], found: str
) -> None:
    with pytest.raises(InputError, match=f"--sharding columns: .*{found}.*; or take --sharding replicated"):
        TrainConfig(sharding="columns", **flags).group_size_of(device, *ranks)
    assert TrainConfig(**flags).group_size_of(device, *ranks) == 1


def of_another_command(name: str, value: Any, patch: pytest.MonkeyPatch) -> None:
    check = train.check_same

    def check_with(config: TrainConfig, *rest: Any) -> None:
        given: dict[str, Any] = {name: value}
        check(replace(config, **given) if launched().rank == 1 else config, *rest)

    patch.setattr(train, "check_same", check_with)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("dim", 64, "found --dim 64, expected 72"),
        ("group_size", 1, "found --group-size 1, expected None"),
        ("resume", "auto", "found --resume auto, expected None"),
        ("threads", 2, None),
    ],
)
def test_ranks_that_were_started_with_other_settings_end_with_one_line(
    data: Path, tmp_path: Path, name: str, value: object, found: str | None
) -> None:
    given = "--nproc", 2, "--data", data, "--output", tmp_path / "run", *SETTINGS, "--epochs=1"
    ended = train_here(*given, logs=tmp_path, change=partial(of_another_command, name, value))
    if found is None:
        assert ended.code == 0
        return
    line = f"error: rank 1: {found}, as rank 0 has it; start all machines with the same command\n"
    assert (ended.code, ended.stderr) == (2, line)
    assert not (tmp_path / "run").exists()


# Memory


@pytest.mark.parametrize(
    ("dim", "group_size", "found"),
    [
        (100, 1, "8.0 GB free, expected 9.0 GB .* x 4 bytes; .*, or 2 such GPUs that share them .--group-size 4.$"),
        (300, 2, "expected 12.2 GB for .* x 304 columns x 4 bytes / 2 GPUs; .*, or 4 such GPUs .*--group-size 16.$"),
    ],
)
def test_what_does_not_fit_into_a_gpu_is_refused_before_training(dim: int, group_size: int, found: str) -> None:
    with pytest.raises(InputError, match=f"memory: .*{found}"):
        check_memory(TrainConfig(dim=dim, sync_every=4), 10_000_000, 1, group_size, gpu_bytes=8e9)
    check_memory(TrainConfig(dim=dim, sync_every=4), 1_000_000, 1, group_size, gpu_bytes=8e9)


@pytest.mark.parametrize(
    ("flags", "ranks", "group_size", "found"),
    [
        (
            {"sync_every": 4},
            4,
            4,
            "8.0 GB free, expected 9.0 GB for 2 tables x 10,000,000 words x 112 columns x 4 bytes; ",
        ),
        ({"sync_every": 4}, 4, 4, "a higher --min-count, or 2 such machines .*.--nproc 2 --group-size 4 on each.$"),
        ({"sync_every": 4, "dim": 64}, 4, 1, "20.5 GB .* x 4 copies; share them by columns .--group-size 4., or"),
        ({"sync_every": 4, "dim": 200}, 2, 4, "8.3 GB .* x 208 columns x 4 bytes / 2 machines; .*--min-count$"),
        ({}, 1, 1, "expected 35.8 GB .* x 4 for adam; train in place .* 9.0 GB"),
        ({"optimizer": "sgd"}, 2, 1, "expected 35.8 GB .* x 2 for sgd x 2 copies"),
    ],
)
def test_what_does_not_fit_into_memory_is_refused_before_training(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], ranks: int, group_size: int, found: str
) -> None:
    monkeypatch.setattr("training.model.memory.available_bytes", lambda: 8e9)
    with pytest.raises(InputError, match=f"memory: .*{found}"):
        check_memory(TrainConfig(**flags), 10_000_000, ranks, group_size)
    check_memory(TrainConfig(**flags), 1_000_000, ranks, group_size)


def in_blocks(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("training.model.blocks.ROWS", 16)
    for module in ("steps", "kernels.lazy_adam"):
        patch.setattr(f"training.model.{module}.COPIED_BYTES", 0)


@pytest.mark.parametrize("mode", ["adam", "adagrad in place"])
def test_what_is_too_large_to_be_copied_is_saved_block_by_block_and_read_again(
    data: Path, tmp_path: Path, threads: Threads, mode: str
) -> None:
    """The same vectors, and the same bytes of each checkpoint's tensors, as of one process that copies."""
    saving = *MODES[mode], "--deterministic", "--checkpoint-every", "2", "--keep", "1000", "--epochs", "1"
    whole = run(1, data, tmp_path / "whole", *saving)
    flags = "--nproc", 2, "--data", data, *SETTINGS, *saving
    for more, output in (((), tmp_path / "run"), (("--resume",), tmp_path / "begun")):
        if more:
            interrupted(tmp_path / "run", output, 4)
        ended = train_here(*flags, "--output", output, *more, logs=tmp_path, change=in_blocks)
        assert ended.code == 0, ended.stderr
        assert_same_run(output, whole)
        for step in steps(whole):
            ours, theirs = (
                load_file(path / "checkpoints" / f"step-{step:08d}" / "state.safetensors") for path in (output, whole)
            )
            assert all(np.array_equal(ours[name], theirs[name]) for name in {*ours, *theirs})
