"""Threads that run compiled code side by side, in one process or in several."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor

from training.model.blocks import ROWS
from training.model.kernels.barrier import Counters
from training.model.kernels.group import Group


class Team:
    """``size`` members: ``here`` threads, including the caller's, of each process of a group.

    ``run(work)`` calls ``work(thread)`` in each thread of this process and waits for them. Thread ``t`` is the team's
    member ``first + t``; of the ``on_machine`` members on this machine it is ``first_on_machine + t``.

    ``afterwards`` is extra work that the threads do at the end of the next ``run`` only. It serves to prefetch when the
    team uses all cores: a separate thread would take a core away in the middle of a step, and all members would wait.
    """

    def __init__(self, here: int, group: Group | None = None):
        self.here, self.group = here, group or Group()
        self.size, self.first = here * self.group.size, here * self.group.member
        self.on_machine, self.first_on_machine = here * self.group.here.world_size, here * self.group.here.rank
        self.failed = False
        self.afterwards: Callable[[int], None] | None = None
        self._given: list[Counters] = []
        self._block: dict[int, Tensor] = {}
        self._pool = ThreadPoolExecutor(max(1, here - 1), thread_name_prefix="kernel")

    def run(self, work: Callable[[int], None]) -> None:
        """Raises LostPeer if another process of the group has ended."""
        afterwards, self.afterwards = self.afterwards, None

        def both(thread: int) -> None:
            work(thread)
            if afterwards:
                afterwards(thread)

        others = [self._pool.submit(both, thread) for thread in range(1, self.here)]
        try:
            both(0)
            for other in others:
                other.result()
        except BaseException:  # such as Ctrl-C: the others would wait for this thread, and the process for the others
            self.failed = True
            self.group.fail()
            raise
        for counters in self._given:
            self.group.check(counters, self.first_on_machine)

    def block(self, dim: int) -> Tensor:
        """Memory for a block of rows, (ROWS, D), that this machine's processes share: the same every time."""
        if dim not in self._block:
            self._block[dim] = torch.from_numpy(self.group.array(ROWS, dim))
        return self._block[dim]

    def counters(self) -> Counters:
        """The state of a barrier of this machine's members. One ``run`` at a time may use it, none after one failed."""
        self._given.append(self.group.counters(self.on_machine))
        return self._given[-1]


@cache
def team_of(here: int, group: Group | None = None) -> Team:
    """The team of so many threads in each process of the group: the same one every time."""
    return Team(here, group)
