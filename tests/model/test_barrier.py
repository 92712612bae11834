"""Laws of the barrier between threads or processes: nobody passes early, waits for ever, or spins for long."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT

from pipeline.shared.compiled import compiled
from pipeline.shared.errors import InputError
from training.model.kernels.barrier import Counters, barrier, fail, make_counters, num_counters
from training.model.kernels.shared_memory import SharedMemory
from training.model.kernels.threads import Team

Notes = npt.NDArray[np.int64]
LINE = 16
SLACK_S = 4
"""For a busy machine."""


@compiled
def pass_on(counters: Counters, notes: Notes, member: int, size: int, turns: int) -> int:
    """Members write numbers, wait at the barrier, and check what all wrote; returns how many were stale."""
    stale = 0
    for turn in range(turns):
        notes[turn & 1, member * LINE] = turn + member
        barrier(counters, member, size)
        for other in range(size):
            stale += notes[turn & 1, other * LINE] != turn + other
    return stale


# Threads


@pytest.mark.parametrize(("size", "turns"), [(1, 2000), (2, 100_000), (3, 5000), (8, 2000)])
def test_after_a_barrier_members_see_what_the_others_wrote(size: int, turns: int) -> None:
    """More of them than there are cores, too; they must end."""
    team, stale = Team(size), np.full(size, -1)
    counters, notes = team.counters(), np.zeros((2, size * LINE), dtype=np.int64)

    def work(member: int) -> None:
        stale[member] = pass_on(counters, notes, member, size, turns)

    done = threading.Thread(target=team.run, args=(work,), daemon=True)
    done.start()
    done.join(timeout=120)
    assert not done.is_alive()
    assert not stale.any()


INTERRUPTED = """
import numpy as np
from training.model.kernels.barrier import barrier, make_counters
from training.model.kernels.threads import Team

team = Team(2)
counters = team.counters()
barrier(make_counters(1), 0, 1)  # compiled before anybody waits

def work(member):
    if member == 0:
        raise KeyboardInterrupt
    barrier(counters, member, 2)

try:
    team.run(work)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_a_member_that_is_interrupted_leaves_nobody_waiting_for_ever() -> None:
    """Ctrl-C reaches the caller's thread between two lines of Python, and the process is to end."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


def test_a_member_that_waits_for_long_needs_no_core() -> None:
    counters = make_counters(2)
    barrier(make_counters(1), 0, 1)
    used: list[float] = []

    def wait() -> None:
        began = time.thread_time()
        barrier(counters, 1, 2)
        used.append(time.thread_time() - began)

    waiting = threading.Thread(target=wait, daemon=True)
    waiting.start()
    time.sleep(1)
    assert not used
    arrived = time.monotonic()
    barrier(counters, 0, 2)
    waiting.join(timeout=10)
    assert used[0] < 0.1
    assert time.monotonic() - arrived < 5


def test_a_member_that_sleeps_is_woken_and_does_not_wait_for_its_next_look() -> None:
    """Over a hundred turns in each of which one member is late by some milliseconds: far below a look's 100 ms each."""
    counters = make_counters(2)
    barrier(make_counters(1), 0, 1)

    def late() -> None:
        for _ in range(100):
            time.sleep(0.003)
            barrier(counters, 0, 2)

    began, other = time.monotonic(), threading.Thread(target=late, daemon=True)
    other.start()
    for _ in range(100):
        barrier(counters, 1, 2)
    assert time.monotonic() - began < 5
    other.join(timeout=10)


def test_after_a_failure_nobody_waits() -> None:
    counters, began = make_counters(3), time.monotonic()
    fail(counters)
    for _ in range(3):
        barrier(counters, 1, 3)
    assert time.monotonic() - began < 5


# Processes

MEMBER = """
import sys
import numpy as np
from test_barrier import pass_on
from training.model.kernels.barrier import fail, make_counters, num_counters
from training.model.kernels.shared_memory import SharedMemory, Watch

address, member, size, turns = sys.argv[1], *map(int, sys.argv[2:])
memory = SharedMemory.join(address, member)
numbers = memory.bytes.view(np.int64)
counters, notes = make_counters(size, numbers), numbers[num_counters(size):].reshape(2, -1)

def ended(other):
    print("ended", other, flush=True)
    fail(counters)

pass_on(make_counters(1), notes.copy(), 0, 1, 1)  # compiled
print("here", flush=True)
sys.stdin.readline()
watch = Watch(memory, [other for other in range(size) if other != member], ended)
print(pass_on(counters, notes, member, size, turns), flush=True)
watch.close()
sys.stdin.readline()  # the others' watches would notice an earlier end
"""


class Members:
    """Processes that meet. This process is in the memory a member that takes no part."""

    def __init__(self, size: int, turns: int, stack: ExitStack):
        self.memory = SharedMemory.create(8 * (num_counters(size) + 2 * size * LINE), member=size)
        path = os.pathsep.join(map(str, (ROOT, ROOT / "tests", Path(__file__).parent)))
        environment = {**os.environ, "PYTHONPATH": path}
        self.processes = []
        for member in range(size):
            command = [sys.executable, "-c", MEMBER, self.memory.address, str(member), str(size), str(turns)]
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
            )
            self.processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in self.processes:
            assert _pipe(process.stdout).readline() == "here\n"
        self.go()

    def go(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                print(file=_pipe(process.stdin), flush=True)

    def line(self, member: int) -> str:
        return _pipe(self.processes[member].stdout).readline().strip()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe
    return pipe


@pytest.fixture
def members() -> Iterator[Callable[[int, int], Members]]:
    with ExitStack() as stack:
        yield lambda size, turns: Members(size, turns, stack)


FOR_EVER = 1 << 40


def test_processes_meet_as_threads_do(members: Callable[[int, int], Members]) -> None:
    met = members(3, 3000)
    assert [met.line(member) for member in range(3)] == ["0", "0", "0"]
    met.go()
    assert [process.wait(timeout=30) for process in met.processes] == [0, 0, 0]


def test_a_process_that_is_killed_is_noticed_within_a_second(members: Callable[[int, int], Members]) -> None:
    """It stays a zombie meanwhile, and what it shared needs no place that could stay behind."""
    before = sorted(os.listdir("/dev/shm"))
    met = members(3, FOR_EVER)
    time.sleep(0.3)
    met.processes[1].kill()
    killed = time.monotonic()
    assert [met.line(member) for member in (0, 2)] == ["ended 1", "ended 1"]
    assert time.monotonic() - killed < 1 + SLACK_S
    assert sorted(os.listdir("/dev/shm")) == before


def test_a_process_that_is_stopped_only_delays(members: Callable[[int, int], Members]) -> None:
    met = members(2, 50_000)
    met.processes[0].send_signal(signal.SIGSTOP)
    time.sleep(1.5)
    assert met.processes[1].poll() is None
    assert not met.memory.has_ended(0)
    met.processes[0].send_signal(signal.SIGCONT)
    assert [met.line(member) for member in range(2)] == ["0", "0"]


def test_memory_that_is_not_there_is_one_line() -> None:
    with pytest.raises(InputError, match=r"found .* GB free, expected 1125899.9 GB"):
        SharedMemory.create(1 << 50)
    with pytest.raises(InputError, match=r"cannot be opened.*one container"):
        SharedMemory.join("/proc/self/fd/999999", 1)


def test_a_member_has_ended_when_its_memory_is_closed() -> None:
    memory = SharedMemory.create(64)
    other = SharedMemory.join(memory.address, 1)
    other.bytes[7] = 5
    assert not memory.has_ended(1)
    other.close()
    assert memory.has_ended(1)
    assert memory.bytes[7] == 5


# A group


PAIR = """
import os, sys, time
from training.distributed import SINGLE, LostPeer
from training.model.kernels import group
from training.model.kernels.group import Group

group.share_of_cores = lambda _: 1.0

class Pair:
    '''Two processes that are connected by pipes, in place of a World.'''

    world_size = local_world_size = 2

    def __init__(self, rank, reads, writes):
        self.rank, self._reads, self._writes = rank, os.fdopen(reads), os.fdopen(writes, "w")

    is_first = property(lambda self: self.rank == 0)

    def split(self, part_of):
        return self if part_of(0) == part_of(1) else SINGLE

    def broadcast(self, record, tensors):
        if self.rank:
            return self._reads.readline().strip(), tensors
        self._writes.write(record + "\\n")
        self._writes.flush()
        return record, tensors

    def barrier(self):
        self._writes.write("here\\n")
        self._writes.flush()
        assert self._reads.readline() == "here\\n"

(to_child_reads, to_child), (to_parent_reads, to_parent) = os.pipe(), os.pipe()
if os.fork() == 0:
    group = Group(Pair(1, to_child_reads, to_parent), 2)
    array = group.array(1000)
    array[500] = 7
    group.barrier()
    group.barrier()
    os._exit(0)
group = Group(Pair(0, to_parent_reads, to_child), 2)
array = group.array(1000)
group.barrier()
print(array[500], flush=True)
group.barrier()
time.sleep(0.5)  # the child has ended
group.check(group._counters, 0)  # its last barrier was one
began = time.monotonic()
try:
    group.barrier()
except LostPeer:
    print("lost", time.monotonic() - began < 5)
"""


def test_a_group_shares_arrays_and_notices_that_a_member_has_ended() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PAIR],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "7.0\nlost True\n"), done.stderr
