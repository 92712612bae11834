"""Threads that run compiled code side by side, and meet inside it."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import inner
from training.model.kernels.vector import observe, publish, sleep_us

Counters = npt.NDArray[np.int64]

_APART = 16  # int64s between two counters: processors fetch cache lines, of 64 bytes, in pairs
_PATIENCE = 3_000_000  # looks, some 5 ms: who sleeps sooner is not woken in time, and then makes the others sleep


class Team:
    """``size`` threads, the caller's among them. ``run(work)`` calls ``work(member)`` in each and waits for all.

    ``afterwards`` is work for once, done by the next ``run`` when its own is done: reading ahead, where threads have
    all cores. A thread of its own would take one away in the middle of a step, and all others would wait for it.
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
        except BaseException:  # Ctrl-C, for one: the others would wait for this thread, and the process for them
            self.failed = True
            for counters in self._given:
                counters[self.size * _APART] = 1
            raise

    def counters(self) -> Counters:
        """What ``meet`` counts with; of one ``run`` at a time, and of none after one that failed."""
        self._given.append(np.zeros((self.size + 1) * _APART, dtype=np.int64))
        return self._given[-1]


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def team_of(size: int) -> Team:
    """The process's one team of this size."""
    return Team(size)


@inner
def meet(counters: Counters, member: int, size: int) -> None:
    """Returns when all members have called it as often, and sees what they wrote before. Allocates and raises nothing.

    Members look at each other's counters without pause, since they arrive within microseconds. Longer than some
    milliseconds they sleep, for then something else has the core that one of them should have.
    """
    turn = observe(counters, member * _APART) + 1
    publish(counters, member * _APART, turn)
    for other in range(size):
        looks = 0
        while observe(counters, other * _APART) < turn:
            looks += 1
            if looks > _PATIENCE:
                if observe(counters, size * _APART):
                    return  # somebody will never come
                sleep_us(np.uint32(20))
