"""A barrier inside compiled code, between the threads of a process or between processes that share memory.

Whoever waits spins for a microsecond or so, since the others usually arrive together; then yields its core, since
another member may need it; and then sleeps on a futex until the late member wakes it. So a busy neighbour takes its
share of the cores and no more, and no setting is needed.
"""

import platform
import sys
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import inner
from training.model.kernels.vector import add, exchange, load_acquire

Counters = npt.NDArray[np.int64]
"""For each member a line with the number of its turns and of those that sleep until its next; then a line with whether
a member has failed, and for how long to sleep, in seconds and nanoseconds, before another look at that."""

_LINE = 16  # int64s: processors fetch cache lines, of 64 bytes, in pairs
_SLEEPERS = 1
_FAILED, _LOOK = 0, 1
_LOOK_NS = 100_000_000

_SPINS = 300
_YIELDS = 1000  # some 300 us: with 50, training alone on its machine slept often and lost a third of its speed
_NAP_US = 50

_FUTEX_CALLS = {"x86_64": 202, "aarch64": 98, "riscv64": 98, "ppc64le": 221, "s390x": 238}
_FUTEX = _FUTEX_CALLS.get(platform.machine(), 0) if sys.platform == "linux" else 0
_WAIT, _WAKE = 0, 1
_ALL = 1 << 30

types: Any = numba.types  # numba has no types for mypy

_syscall = types.ExternalFunction(
    "syscall", types.int64(types.int64, types.uint64, types.int64, types.int64, types.uint64, types.uint64, types.int64)
)
_yield = types.ExternalFunction("sched_yield", types.int32())
_usleep = types.ExternalFunction("usleep", types.int32(types.uint32))


def num_counters(size: int) -> int:
    """How many int64s the counters of ``size`` members are."""
    return (size + 1) * _LINE


def make_counters(size: int, memory: Counters | None = None) -> Counters:
    """The state of a barrier of ``size`` members, in ``memory``, of zeros, if it is given.

    Only one computation at a time may use it, and none after a member failed.
    """
    counters = np.zeros(num_counters(size), dtype=np.int64) if memory is None else memory[: num_counters(size)]
    counters[size * _LINE + _LOOK + 1] = _LOOK_NS
    return counters


def fail(counters: Counters) -> None:
    """Lets all members pass the barrier from now on, within a tenth of a second: one of them will never arrive."""
    counters[len(counters) - _LINE + _FAILED] = 1


def all_arrived(counters: Counters, member: int) -> bool:
    """Whether all have arrived as often as ``member``, so that its last barrier was one."""
    turns = counters[:-_LINE:_LINE]
    return bool((turns >= turns[member]).all())


@inner
def turns(counters: Counters, member: int) -> int:
    """How often a member has arrived."""
    return counters[member * _LINE]  # type: ignore[no-any-return]


@inner
def barrier(counters: Counters, member: int, size: int) -> None:
    """Returns when all members have called it equally often; what they wrote before is then visible. Never raises."""
    mine, common = member * _LINE, size * _LINE
    turn = counters[mine] + 1
    # In sequential order with the look at the sleepers: whoever is not seen there sees the new turn.
    exchange(counters, mine, turn)
    if _FUTEX and load_acquire(counters, mine + _SLEEPERS):
        _syscall(_FUTEX, counters.ctypes.data + 8 * mine, _WAKE, _ALL, 0, 0, 0)
    for other in range(size):
        theirs, looks = other * _LINE, 0
        while load_acquire(counters, theirs) < turn:
            looks += 1
            if looks <= _SPINS:
                continue
            if looks <= _SPINS + _YIELDS:
                _yield()
                continue
            if load_acquire(counters, common + _FAILED):
                return
            if not _FUTEX:
                _usleep(np.uint32(_NAP_US))
                continue
            add(counters, theirs + _SLEEPERS, 1)
            place, limit = counters.ctypes.data + 8 * theirs, counters.ctypes.data + 8 * (common + _LOOK)
            _syscall(_FUTEX, place, _WAIT, turn - 1, limit, 0, 0)
            add(counters, theirs + _SLEEPERS, -1)
