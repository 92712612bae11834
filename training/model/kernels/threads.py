"""Threads that run compiled code side by side, and a barrier for them inside that code."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import inner
from training.model.kernels.vector import load_acquire, sleep_us, store_release

Counters = npt.NDArray[np.int64]

_APART = 16  # int64s between two counters: processors fetch cache lines, of 64 bytes, in pairs
_SPINS = 3_000_000  # some 5 ms: a thread that sleeps earlier wakes up too late, and then makes the others sleep


class Team:
    """``size`` threads, including the caller's. ``run(work)`` calls ``work(member)`` in each and waits for all.

    ``afterwards`` is extra work that the members do at the end of the next ``run`` only. It serves to prefetch when the
    team uses all cores: a separate thread would take a core away in the middle of a step, and all members would wait.
    """

    def __init__(self, size: int):
        self.size = size
        self.failed = False
        self.afterwards: Callable[[int], None] | None = None
        self._given: list[Counters] = []
        self._pool = ThreadPoolExecutor(max(1, size - 1), thread_name_prefix="kernel")

    def run(self, work: Callable[[int], None]) -> None:
        afterwards, self.afterwards = self.afterwards, None

        def both(member: int) -> None:
            work(member)
            if afterwards:
                afterwards(member)

        others = [self._pool.submit(both, member) for member in range(1, self.size)]
        try:
            both(0)
            for other in others:
                other.result()
        except BaseException:  # such as Ctrl-C: the others would wait for this thread, and the process for the others
            self.failed = True
            for counters in self._given:
                counters[self.size * _APART] = 1
            raise

    def counters(self) -> Counters:
        """The state of a ``barrier``. Only one ``run`` at a time may use it, and none after a run that failed."""
        self._given.append(np.zeros((self.size + 1) * _APART, dtype=np.int64))
        return self._given[-1]


@cache
def team_of(size: int) -> Team:
    """The team of this size, one per process."""
    return Team(size)


@inner
def barrier(counters: Counters, member: int, size: int) -> None:
    """Returns when all members have called it equally often; what they wrote before is then visible. Never raises.

    Members spin on each other's counters, because they usually arrive within microseconds. After some milliseconds they
    sleep: another process is then probably using the core of the member that is late.
    """
    turn = load_acquire(counters, member * _APART) + 1
    store_release(counters, member * _APART, turn)
    for other in range(size):
        spins = 0
        while load_acquire(counters, other * _APART) < turn:
            spins += 1
            if spins > _SPINS:
                if load_acquire(counters, size * _APART):
                    return  # a member failed and will never arrive
                sleep_us(np.uint32(20))
