"""Threads that run compiled code side by side."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from training.model.kernels.barrier import Counters, fail, make_counters


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
                fail(counters)
            raise

    def counters(self) -> Counters:
        """The state of a barrier. Only one ``run`` at a time may use it, and none after a run that failed."""
        self._given.append(make_counters(self.size))
        return self._given[-1]


@cache
def team_of(size: int) -> Team:
    """The team of this size, one per process."""
    return Team(size)
