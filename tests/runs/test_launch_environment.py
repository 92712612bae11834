"""Laws of how ranks start on other people's machines: variables that were left over, ranks that never come, a host
without a name, a small /dev/shm, a closed terminal. They train, or say in one line what is wrong.
"""

import ast
import errno
import multiprocessing.synchronize
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from conftest import ROOT, Command, Ended, free_port
from launch import LIMIT_S, PYTHON, TORCHRUN, TRAIN, completed, launched, told
from ranks import signal_at, train_here
from tiny import write_tiny_dataset

from jobs import children, retrain
from pipeline.shared.errors import InputError
from tools import torchrun
from training import rendezvous
from training.distributed import RankError, World
from training.distributed import launched as world_launched
from training.rendezvous import meet, opened_store
from training.runs.checkpoint import newest
from training.stopping import StopSignal, stop_signals

pytestmark = pytest.mark.usefixtures("no_pages")

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
UNTIL_IT_SPEAKS_S = 30
"""What the documentation promises."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=1000)
    return folder


def flags(data: Path, output: Path, epochs: int = 1) -> list[str]:
    settings = {"data": data, "output": output, "epochs": epochs, "global-batch": 128, "dim": 8, "threads": 1}
    arguments = {**settings, "device": "cpu", "log-every": 5, "checkpoint-every": 20}
    return [text for name, value in arguments.items() for text in (f"--{name}", str(value))]


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what launchers set."""

    def set_all(**given: object) -> None:
        for name in (*VARIABLES, "TORCHELASTIC_USE_AGENT_STORE"):
            monkeypatch.delenv(name, raising=False)
        for name, value in given.items():
            monkeypatch.setenv(name, str(value))

    set_all()
    return set_all


# Variables


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"RANK": "x"}, ["RANK: found 'x'", "expected 0 without WORLD_SIZE"]),
        ({"RANK": ""}, ["RANK: found ''"]),
        ({"RANK": "1"}, ["RANK: found '1'", "without WORLD_SIZE"]),
        ({"WORLD_SIZE": "0"}, ["WORLD_SIZE: found '0'", "from 1"]),
        ({"WORLD_SIZE": "-1"}, ["WORLD_SIZE: found '-1'"]),
        ({"WORLD_SIZE": "1.0"}, ["WORLD_SIZE: found '1.0'"]),
        ({"WORLD_SIZE": "9" * 5000}, ["WORLD_SIZE: found '999"]),
        ({"WORLD_SIZE": "2"}, ["RANK: found ''", "0 to 1 with WORLD_SIZE=2"]),
        ({"WORLD_SIZE": "2", "RANK": "2"}, ["RANK: found '2'", "0 to 1 with WORLD_SIZE=2"]),
        ({"WORLD_SIZE": "2", "RANK": "-1"}, ["RANK: found '-1'"]),
        ({"LOCAL_WORLD_SIZE": "2"}, ["LOCAL_WORLD_SIZE: found '2'", "expected 1 without WORLD_SIZE"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "4"}, ["LOCAL_WORLD_SIZE: found '4'", "1 to 2"]),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_WORLD_SIZE": "0"}, ["LOCAL_WORLD_SIZE: found '0'"]),
        ({"LOCAL_RANK": "1"}, ["LOCAL_RANK: found '1'", "without LOCAL_WORLD_SIZE"]),
        ({"LOCAL_RANK": "first"}, ["LOCAL_RANK: found 'first'"]),
        (
            {"WORLD_SIZE": "4", "RANK": "0", "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "2"},
            ["LOCAL_RANK: found '2'", "0 to 1 with LOCAL_WORLD_SIZE=2"],
        ),
    ],
)
def test_variables_that_do_not_fit_are_named(
    variables: Callable[..., None], given: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    variables(**given)
    with pytest.raises(RankError, match=words[0]) as error:
        world_launched()
    assert [word for word in [*words, "torchrun", "unset"] if word not in str(error.value)] == []


def test_variables_that_do_not_fit_are_told_in_one_line(
    data: Path, variables: Callable[..., None], tmp_path: Path
) -> None:
    for given in ({"RANK": "x"}, {"LOCAL_RANK": "x"}, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}):
        for more in ([], ["--nproc", "2"]):
            variables(**given)
            train_here(*flags(data, tmp_path / "run"), *more, logs=tmp_path).assert_refused(": found ")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, ["WORLD_SIZE=2 without MASTER_ADDR"]),
        ({"MASTER_ADDR": "127.0.0.1"}, ["without MASTER_PORT"]),
        ({"MASTER_ADDR": "", "MASTER_PORT": "29500"}, ["without MASTER_ADDR"]),
        *(
            ({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, [f"MASTER_PORT: found '{port}'", "1 to 65535"])
            for port in ("abc", "0", "65536", "-1", "29500.0", "²")
        ),
    ],
)
def test_a_wrong_address_is_named_with_and_without_nproc(
    data: Path, variables: Callable[..., None], tmp_path: Path, given: dict[str, str], words: list[str]
) -> None:
    variables(WORLD_SIZE=2, RANK=0, **given)
    for more in ([], ["--nproc", "2"]):
        train_here(*flags(data, tmp_path / "run"), *more, logs=tmp_path).assert_refused(*words)


def test_a_port_that_is_taken_is_named(data: Path, variables: Callable[..., None], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        variables(WORLD_SIZE=2, RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        ended = train_here(*flags(data, tmp_path / "run"), logs=tmp_path)
    ended.assert_refused(f"MASTER_PORT: found {port}", "in use", "a free port")


def test_what_one_process_finds_of_a_launcher_of_one_is_no_hindrance(
    data: Path, variables: Callable[..., None], tmp_path: Path
) -> None:
    """The address is that of a store which is gone."""
    one = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1}
    variables(**one, MASTER_ADDR="no.such.host", MASTER_PORT=free_port(), TORCHELASTIC_USE_AGENT_STORE=True)
    for nproc in (1, 2):
        ended = train_here(*flags(data, tmp_path / f"{nproc}"), "--nproc", nproc, logs=tmp_path)
        assert (ended.code, ended.stderr) == (0, "")


# Ranks that do not come


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch, variables: Callable[..., None]) -> int:
    """Ranks soon say for whom they wait, at this port."""
    port = free_port()
    variables(WORLD_SIZE=3, RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    monkeypatch.setattr(rendezvous, "FIRST_LINE_S", 0.2)
    monkeypatch.setattr(rendezvous, "GONE_S", 0.5)
    monkeypatch.setattr(rendezvous, "PAUSES_S", (0.01, 0.05))
    return port


NOBODY: Any = None


class Coming(threading.Thread):
    """A rank of three that comes."""

    def __init__(self, rank: int, limit_s: float = 20):
        super().__init__(daemon=True)
        self.rank, self.limit_s, self.found, self.error = rank, limit_s, NOBODY, ""
        self.start()

    def run(self) -> None:
        try:
            self.found = meet(self.rank, 3, self.limit_s, tells=True)
        except InputError as error:
            self.error = str(error)


def wait_for(happened: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 20
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def assert_met(ranks: list[Coming]) -> None:
    for rank in ranks:
        rank.join(20)
    assert [rank.error for rank in ranks] == [""] * len(ranks)
    stores: list[Any] = [rank.found for rank in ranks]
    stores[0].set("word", "shared")
    assert [store.get("word") for store in stores] == [b"shared"] * len(ranks)


def test_ranks_that_come_together_meet_without_a_word(patience: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert_met([Coming(rank) for rank in (2, 0, 1)])
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("first", [0, 1])
def test_who_is_waited_for_is_said_and_a_rank_that_comes_late_is_welcome(
    patience: int, capfd: pytest.CaptureFixture[str], first: int
) -> None:
    ranks = [Coming(first)]
    time.sleep(0.6)
    said = capfd.readouterr().err
    assert len(said.splitlines()) == 1
    missing = "ranks 1, 2" if first == 0 else "rank 0"
    for word in (f"rank {first} of 3 waits for {missing} at 127.0.0.1:{patience}", *VARIABLES[:2], *VARIABLES[4:]):
        assert word in said
    assert "--join-timeout" in said
    ranks += [Coming(rank) for rank in range(3) if rank != first]
    assert_met(ranks)


def test_every_rank_that_has_come_says_who_is_missing(patience: int, capfd: pytest.CaptureFixture[str]) -> None:
    ranks = [Coming(0), Coming(1)]
    said = ""

    def both() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return all(f"rank {rank} of 3 waits for rank 2 at" in said for rank in (0, 1))

    wait_for(both)
    assert_met([*ranks, Coming(2)])


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_never_come_end_the_others_after_the_time_that_was_set(patience: int, rank: int) -> None:
    began = time.monotonic()
    coming = Coming(rank, limit_s=1)
    coming.join(10)
    assert 1 <= time.monotonic() - began < 3
    missing = "ranks 1, 2" if rank == 0 else "rank 0"
    for word in ("WORLD_SIZE: found 3", f"{missing} did not come to 127.0.0.1:{patience}", "within 1 s", "unset"):
        assert word in coming.error


def test_a_rank_that_dies_while_the_others_wait_is_waited_for_too(
    patience: int, capfd: pytest.CaptureFixture[str]
) -> None:
    first = Coming(0)
    dead = Coming(1, limit_s=0.4)
    dead.join()
    assert dead.error
    third = Coming(2)
    said = ""

    def named() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "rank 0 of 3 waits for rank 1 at" in said

    wait_for(named)
    assert first.found is third.found is None
    assert_met([first, third, Coming(1)])


def test_ranks_wait_for_another_rank_0_when_it_dies(patience: int, capfd: pytest.CaptureFixture[str]) -> None:
    dead = Coming(0, limit_s=0.5)
    others = [Coming(1)]
    dead.join()
    assert "but rank 2 did not come" in dead.error
    del dead
    assert_met([Coming(0), *others, Coming(2)])


def test_signs_of_an_earlier_restart_are_no_ranks(
    patience: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """torchrun keeps its store."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    store = opened_store("127.0.0.1", patience)
    for rank in (1, 2):
        store.set(f"rank/{rank}", f"dead{rank}/17")
    ranks = [Coming(0)]
    time.sleep(0.4)
    assert ranks[0].found is None
    assert_met([*ranks, Coming(1), Coming(2)])
    assert_met([Coming(rank) for rank in range(3)])
    assert store.port == patience


def test_what_else_listens_at_the_address_is_no_store(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "CONNECT_S", 0.5)

    def hang_up() -> None:
        with suppress(OSError):  # the test is over
            while True:
                other.accept()[0].close()

    with socket.create_server(("127.0.0.1", patience)) as other:
        threading.Thread(target=hang_up, daemon=True).start()
        coming = Coming(1, limit_s=1)
        coming.join(20)
    assert "rank 0 did not come" in coming.error


def test_a_run_that_nobody_joins_ends_in_one_line(data: Path, variables: Callable[..., None], tmp_path: Path) -> None:
    variables(WORLD_SIZE=2, RANK=0, MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port())
    ended = train_here(*flags(data, tmp_path / "run"), "--join-timeout", 1, logs=tmp_path)
    ended.assert_refused("rank 1 did not come", "--join-timeout")
    assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_waits_for_ranks_says_so_in_time_and_ends(data: Path, tmp_path: Path, rank: int) -> None:
    left_over = {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [*PYTHON, *flags(data, tmp_path / "run"), "--join-timeout", "25"]
    began = time.monotonic()
    with launched(command, tmp_path, left_over) as running:
        running.wait_for(lambda: running.errors)
        assert time.monotonic() - began < UNTIL_IT_SPEAKS_S
        ended = running.end(60)
    assert (ended.code, len(ended.stderr.splitlines())) == (2, 2), ended.stderr
    assert f"rank {1 - rank} did not come" in ended.stderr


@pytest.mark.long
def test_two_processes_that_were_started_by_hand_train_together(data: Path, tmp_path: Path) -> None:
    """The second comes late; neither knows of LOCAL_RANK."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [*PYTHON, *flags(data, tmp_path / "run"), "-q"]
    with launched(command, tmp_path, {**shared, "RANK": "1"}) as second:
        time.sleep(8)
        with launched(command, tmp_path, {**shared, "RANK": "0"}) as first:
            ended = [first.end(60), second.end(60)]
    assert [each.code for each in ended] == [0, 0], ended


# SIGHUP


def assert_hung_up(output: Path, ended: Ended) -> None:
    done = newest(output)
    assert (ended.code, ended.stderr) == (129, f"stopped after step {done:,}; --resume goes on from there\n")
    assert not (output / "summary.json").exists()
    assert not (output / ".train.lock").exists()


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_hangup_saves_and_exits_with_129(data: Path, tmp_path: Path, ranks: int) -> None:
    output = tmp_path / "run"
    arguments = [*flags(data, output, epochs=1000), "--nproc", ranks]
    assert_hung_up(output, train_here(*arguments, logs=tmp_path, change=signal_at(30, signal.SIGHUP)))


def test_a_signal_that_comes_while_ranks_communicate_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    def during(values: torch.Tensor, **_: object) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        values[-1] = 1  # step until they communicate again

    monkeypatch.setattr(dist, "all_reduce", during)
    with StopSignal(World(0, 2, 0, 2)) as stop:
        assert not stop.agreed(1)
        monkeypatch.setattr(dist, "all_reduce", lambda _, **__: None)
        assert stop.agreed(2)
    assert stop.exit_code == 129


def test_a_hangup_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert stop_signals() == (signal.SIGTERM,)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert stop_signals() == (signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize(
    ("ignored", "handled"), [(False, "SIGTERM,SIGINT,SIGHUP,SIGQUIT"), (True, "SIGTERM,SIGINT,SIGQUIT")]
)
def test_torchrun_leaves_a_hangup_ignored(monkeypatch: pytest.MonkeyPatch, ignored: bool, handled: str) -> None:
    found = []
    monkeypatch.setattr(torchrun, "run", lambda arguments: found.append(arguments.signals_to_handle))
    monkeypatch.setattr(socket, "getfqdn", socket.getfqdn)
    for module in torchrun.WITH_A_STORE:  # torchrun replaces these in its own process
        monkeypatch.setattr(module, "TCPStore", module.TCPStore)
    monkeypatch.setattr(sys, "argv", ["torchrun", "train.py"])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        torchrun.main()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert found == [handled]


@pytest.mark.parametrize(
    ("number", "ignored", "code"),
    [(signal.SIGTERM, False, 143), (signal.SIGHUP, False, 129), (signal.SIGHUP, True, 2)],
)
def test_a_cycle_of_retraining_ends_with_the_signals_code(
    call: Command, monkeypatch: pytest.MonkeyPatch, number: signal.Signals, ignored: bool, code: int
) -> None:
    """Its commands end first: tests/commands/test_children.py."""

    def read_config(_: Path) -> None:
        os.kill(os.getpid(), number)
        sys.exit(2)

    monkeypatch.setattr(retrain, "read_config", read_config)
    monkeypatch.setattr(children, "_ending", [])  # this process goes on
    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    try:
        if ignored:
            signal.signal(number, signal.SIG_IGN)
        assert call(retrain.main, "run", "--config", "c.yaml").code == code
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


LAUNCHERS = {
    "python": (PYTHON, []),
    "python --nproc": (PYTHON, ["--nproc", "2"]),
    "torchrun --nproc": ([*TORCHRUN, TRAIN], ["--nproc", "2"]),
    "torchrun --nproc-per-node": ([*TORCHRUN, "--nproc-per-node", "2", TRAIN], []),
}


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_hangup_of_a_launcher_saves_and_ends_it_with_129(data: Path, tmp_path: Path, launcher: str) -> None:
    output, (before, after) = tmp_path / "run", LAUNCHERS[launcher]
    with launched([*before, *flags(data, output, epochs=1000), *after], tmp_path) as running:
        running.wait_for(lambda: told(output) >= 30)
        running.process.send_signal(signal.SIGHUP)
        assert_hung_up(output, running.end(60))


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_under_nohup_a_hangup_ends_nothing(data: Path, tmp_path: Path, launcher: str) -> None:
    output, (before, after) = tmp_path / "run", LAUNCHERS[launcher]
    with launched(["nohup", *before, *flags(data, output, epochs=60), *after], tmp_path) as running:
        running.wait_for(lambda: told(output) >= 30)
        for pid in running.pids():
            os.kill(pid, signal.SIGHUP)
        ended = running.end(120)
    assert ended.code == 0, ended.stderr
    assert (output / "summary.json").exists()


@contextmanager
def in_a_terminal(command: list[str]) -> Iterator[tuple[int, int]]:
    """A command in a terminal of its own: its process, and the terminal's other side."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execvp(command[0], command)
    try:
        yield pid, terminal
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def watch(terminal: int, happened: Callable[[], Any]) -> str:
    """Reads a terminal until something has happened, and returns what it showed."""
    shown, deadline = b"", time.monotonic() + LIMIT_S
    while not happened():
        assert time.monotonic() < deadline, shown.decode()
        if select.select([terminal], [], [], 0.01)[0]:
            shown += os.read(terminal, 1 << 16)
    return shown.decode()


def test_what_is_printed_to_a_terminal_that_was_closed_vanishes() -> None:
    """What is printed to one that is open does not; nor to a pipe that nobody reads, unless a signal ends the run."""
    prints = (
        "import os, select, sys; from training.stopping import leave_lost_output\n"
        "leave_lost_output(); print('begun', flush=True); sys.stdin.read(1)\n"
        "leave_lost_output(eval(sys.argv[1])); print('lost', flush=True); os._exit(7)\n"
    )
    for opened, signs, code in ((pty.openpty, "0x10", 7), (os.pipe, "0x10", 1), (os.pipe, "0x18", 7)):
        reader, writer = opened()
        command = [sys.executable, "-c", prints, signs]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE) as ours:
            os.close(writer)
            begun = b""
            while not begun.endswith(b"\n"):
                begun += os.read(reader, 1)
            assert begun.split() == [b"begun"]
            os.close(reader)
            ours.communicate(b"x")
        assert ours.returncode == code


@pytest.mark.long
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_terminal_that_is_closed_costs_no_step(data: Path, tmp_path: Path, launcher: str) -> None:
    """All that trains shows its progress there, and what it then writes fails."""
    output, (before, after) = tmp_path / "run", LAUNCHERS[launcher]
    with in_a_terminal([*before, *flags(data, output, epochs=1000), *after, "-v"]) as (pid, terminal):
        watch(terminal, lambda: told(output) >= 30)
        os.close(terminal)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code == 129
    assert (newest(output) or 0) >= told(output)
    assert not (output / ".train.lock").exists()


@pytest.mark.long
def test_a_terminal_that_is_closed_does_not_end_what_ignores_it(data: Path, tmp_path: Path) -> None:
    """Its writes fail, which is not the run's fault."""
    output = tmp_path / "run"
    command = shlex.join([*PYTHON, *flags(data, output, epochs=60), "-v"])
    with in_a_terminal(["sh", "-c", f"trap '' HUP; {command}; exit $?"]) as (pid, terminal):
        watch(terminal, lambda: told(output) >= 30)
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert (output / "summary.json").exists()


# The machine's name, its shared memory, and Python's path


def unshared(*options: str) -> list[str]:
    """A command that runs the next one in namespaces of its own; skips where that is not allowed."""
    command = ["unshare", *options]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip(f"{' '.join(command)} is not allowed here")
    return command


@pytest.mark.long
@pytest.mark.parametrize("name", ["12345", "no-such-host"])
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_one_machines_run_does_not_depend_on_its_name(data: Path, tmp_path: Path, launcher: str, name: str) -> None:
    """The name does not resolve, and who asks for it waits."""
    before, after = LAUNCHERS[launcher]
    training = shlex.join([*before, *flags(data, tmp_path / "run"), *after])
    hosts, resolver = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("127.0.0.1 localhost\n")
    resolver.write_text("nameserver 192.0.2.1\noptions timeout:30 attempts:1\n")
    script = f"mount --bind {hosts} /etc/hosts; mount --bind {resolver} /etc/resolv.conf; hostname {name}; {training}"
    began = time.monotonic()
    ended = completed([*unshared("--mount", "--uts"), "sh", "-c", script], tmp_path)
    assert (ended.code, ended.stderr) == (0, "")
    assert time.monotonic() - began < 28  # one question to the resolver takes 30 s


@pytest.mark.long
@pytest.mark.parametrize("options", ["ro", "size=4k"])
@pytest.mark.parametrize("more", [[], ["--sync-every", "4"], ["--optimizer", "sgd"]], ids=" ".join)
def test_no_run_needs_shared_memory(data: Path, tmp_path: Path, options: str, more: list[str]) -> None:
    training = shlex.join([*PYTHON, *flags(data, tmp_path / "run"), "--nproc", "2", *more])
    script = f"mount -t tmpfs -o {options} none /dev/shm && {training}"
    ended = completed([*unshared("--mount"), "sh", "-c", script], tmp_path)
    assert (ended.code, ended.stderr) == (0, "")


def test_nproc_needs_no_semaphore(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Semaphores lie in /dev/shm."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(multiprocessing.synchronize.SemLock, "__init__", refuse)
    ended = train_here(*flags(data, tmp_path / "run"), "--nproc", 2, logs=tmp_path)
    assert (ended.code, ended.stderr) == (0, "")


def bootstraps() -> Iterator[Any]:
    """The lines by which scripts put the project's root on the path."""
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "*.py"], capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if name.startswith("tests/") or not path.exists():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("sys.path["):
                yield pytest.param(path, ast.unparse(node), id=name)


@pytest.mark.parametrize(("path", "line"), [*bootstraps()])
@pytest.mark.parametrize("safe", [False, True])
def test_a_script_puts_the_root_on_the_path_and_takes_only_its_own_folder_off(
    path: Path, line: str, safe: bool
) -> None:
    """PYTHONSAFEPATH leaves the folder out: then the first entry is the user's, of PYTHONPATH."""
    others = ["/of/the/user", "/usr/lib/python3"]
    found = [*([] if safe else [str(path.parent)]), *others]
    fake = SimpleNamespace(path=found, flags=SimpleNamespace(safe_path=safe))
    exec(line, {"sys": fake, "Path": Path, "__file__": str(path)})
    assert fake.path == [str(ROOT), *others]


def test_training_starts_under_safe_path(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import sys\nprint(*sys.path[:2], sep='\\n')\nsys.exit()\n")
    environment = {**os.environ, "PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)}
    said = subprocess.run(PYTHON, env=environment, capture_output=True, text=True, timeout=60)
    assert (said.stdout.splitlines(), said.stderr) == ([str(ROOT), str(tmp_path)], "")
