"""``prefetch``: makes items ahead of their consumer, in a thread or between the steps of threads that train."""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from training.model.kernels.threads import Team


class Work(Protocol):
    """An item that takes some jobs to make."""

    def do(self, may_wait: bool = True) -> None:
        """Does the jobs that no other thread has begun; threads may call it together.

        Without ``may_wait`` it leaves jobs out that would have to wait, as for an answer from the network.
        """

    @property
    def is_done(self) -> bool:
        """Whether there is no job left for ``do``."""


W = TypeVar("W", bound=Work)


def prefetch(items: Iterator[W], in_use: int, team: Team | None = None) -> Generator[W, None, None]:
    """The same items in the same order, done. An item is used until the next one is asked for.

    A thread does the items. At most ``in_use`` items, 2 or more, are being done, waiting or used, so that they can use
    the same memory in turn. With ``team`` there is no thread, and two items, see ``_between_steps``.

    An error of an item is raised in place of the item. Nothing happens before the first item is asked for. ``close``
    waits until the thread has done the item that it is at.
    """
    return _between_steps(items, team) if team else _in_a_thread(items, in_use)


def _in_a_thread(items: Iterator[W], in_use: int) -> Generator[W, None, None]:
    def make() -> W | None:
        item = next(items, None)
        if item is not None:
            item.do()
        return item

    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        coming = deque(thread.submit(make) for _ in range(in_use))
        while (item := coming.popleft().result()) is not None:
            yield item
            coming.append(thread.submit(make))
    finally:
        thread.shutdown(cancel_futures=True)


def _between_steps(items: Iterator[W], team: Team) -> Generator[W, None, None]:
    """The members of ``team`` do an item at the end of their next ``run``, while the item before it is used.

    This is for machines where the team has all cores: a thread that reads would take one of them away in mid-step. Jobs
    that would have to wait are done when their item is asked for: so the wait is not taken for a part of the step.
    """
    following: list[W | None] = []  # at most one, not done

    def ahead(item: W, member: int) -> None:
        if member == 0:
            following.append(next(items, None))
        item.do(may_wait=False)

    try:
        coming = next(items, None)
        while (item := coming) is not None:
            team.afterwards = None
            if not item.is_done:
                team.run(partial(_do, item))
            coming = following.pop() if following else next(items, None)
            if coming is not None:
                team.afterwards = partial(ahead, coming)
            yield item
    finally:
        team.afterwards = None


def _do(item: Work, member: int) -> None:
    item.do()
