"""``prefetch``: does items ahead of their consumer, in a thread or between the steps of the threads that train."""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

from training.model.kernels.threads import Team


class Work(Protocol):
    """An item that consists of jobs, which several threads can share."""

    def do(self, may_wait: bool = True) -> None:
        """Does the jobs that no other thread has begun. Thread-safe.

        Without ``may_wait``, skips jobs that would block, for example on the network.
        """

    @property
    def is_done(self) -> bool:
        """Whether no job is left for ``do``."""


W = TypeVar("W", bound=Work)


def nothing() -> None:
    """For items that only this process does."""


def prefetch(
    items: Iterator[W], in_use: int, team: Team | None = None, ready: Callable[[], None] = nothing
) -> Generator[W, None, None]:
    """Yields the same items in the same order, each of them done. An item stays in use until the next one is requested.

    A background thread does the items. At most ``in_use`` items (2 or more) are being done, waiting or in use, so that
    items can share that many buffers. With ``team`` there are two items and no thread: see ``_between_steps``.

    ``ready`` is called when an item is done, before it is yielded and before another one takes the memory of the last.

    An item's error is raised in place of the item. Nothing starts before the first item is requested. ``close`` waits
    until the thread has done its current item.
    """
    return _between_steps(items, team, ready) if team else _in_a_thread(items, in_use, ready)


def _in_a_thread(items: Iterator[W], in_use: int, ready: Callable[[], None]) -> Generator[W, None, None]:
    def make() -> W | None:
        item = next(items, None)
        if item is not None:
            item.do()
        return item

    thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    try:
        coming = deque(thread.submit(make) for _ in range(in_use - 1))
        while (item := coming.popleft().result()) is not None:
            ready()
            coming.append(thread.submit(make))
            yield item
    finally:
        thread.shutdown(cancel_futures=True)


def _between_steps(items: Iterator[W], team: Team, ready: Callable[[], None]) -> Generator[W, None, None]:
    """The members of ``team`` do each item at the end of their next ``run``, while the previous item is in use.

    This is for a team that uses all cores: a background thread would take a core away in the middle of a step. Jobs
    that would block are done when their item is requested, so that the time is counted as waiting and not as a step.
    """
    following: list[W | None] = []  # at most one item, not done

    def ahead(item: W, member: int) -> None:
        if member == 0:
            following.append(next(items, None))
        item.do(may_wait=False)

    try:
        coming = next(items, None)
        while (item := coming) is not None:
            team.afterwards = None
            if not item.is_done:
                team.run(lambda _: item.do())
            ready()
            coming = following.pop() if following else next(items, None)
            if coming is not None:
                team.afterwards = partial(ahead, coming)
            yield item
    finally:
        team.afterwards = None
