"""Iterators whose items are made while the ones before them are used: by a thread, or by threads that have a pause."""

import threading
from collections.abc import Callable, Generator, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import TypeVar

from training.model.kernels.threads import Team

T = TypeVar("T")


def read_ahead(items: Iterator[T], in_use: int) -> Generator[T, None, None]:
    """The same items in the same order. An item is used until the next one is asked for.

    At most ``in_use`` items, 2 or more, are being made, waiting or used, so their maker can give them the same memory
    in turn. What ``items`` raises is raised here, after the items before it. The thread starts with the first item that
    is asked for, and has ended when this iterator has; closed early, it ends once the item is made that it is at.
    """
    closed = threading.Event()
    places: SimpleQueue[None] = SimpleQueue()
    made: SimpleQueue[tuple[T] | BaseException] = SimpleQueue()
    for _ in range(in_use):
        places.put(None)

    def make() -> None:
        try:
            while places.get() is None and not closed.is_set():
                made.put((next(items),))
        except BaseException as error:  # StopIteration too
            made.put(error)

    thread = threading.Thread(target=make, name="read_ahead", daemon=True)
    thread.start()
    try:
        while isinstance(item := made.get(), tuple):
            yield item[0]
            places.put(None)
        if not isinstance(item, StopIteration):
            raise item
    finally:
        closed.set()
        places.put(None)
        thread.join()


class BetweenSteps:
    """Makes items with the threads of ``team``, each when a ``run`` of theirs is done while the one before it is used.

    For machines where they have all cores: a thread that reads would take one of them away in mid-step.
    """

    def __init__(self, team: Team):
        self._team = team
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._done: SimpleQueue[BaseException | None] = SimpleQueue()

    def each(self, jobs: list[Callable[[], None]]) -> None:
        """Does the jobs, in any order and thread. For the maker of the items; raises what one of them has raised."""
        for job in jobs:
            self._jobs.put(job)
        while self._do_one(block=False):
            pass
        errors = [self._done.get() for _ in jobs]
        for error in errors:
            if error:
                raise error

    def read(self, items: Iterator[T], is_ready: Callable[[], bool] = lambda: True) -> Generator[T, None, None]:
        """The same items in the same order. An item is used until the next one is asked for.

        After a step an item is made only if ``is_ready`` says that its maker need not wait. Else it is made when it is
        asked for, so that the wait is not taken for a part of the step.
        """
        made: list[tuple[T] | Exception] = []

        def make(member: int, may_wait: bool) -> None:
            if member == 0:
                try:
                    if may_wait or is_ready():
                        made.append((next(items),))
                except Exception as error:  # StopIteration too; not Ctrl-C, which is not to wait for the next item
                    made.append(error)
                finally:
                    for _ in range(self._team.size - 1):
                        self._jobs.put(None)
            else:
                while self._do_one(block=True):
                    pass

        try:
            while True:
                if not made:  # nothing ran meanwhile, or it was not ready
                    self._team.afterwards = None
                    self._team.run(partial(make, may_wait=True))
                item = made.pop()
                if isinstance(item, StopIteration):
                    return
                if not isinstance(item, tuple):
                    raise item
                self._team.afterwards = partial(make, may_wait=False)
                yield item[0]
        finally:
            self._team.afterwards = None

    def _do_one(self, block: bool) -> bool:
        try:
            job = self._jobs.get(block, timeout=0.1)
        except Empty:
            return block and not self._team.failed
        if job is None:
            return False
        try:
            job()
            self._done.put(None)
        except BaseException as error:
            self._done.put(error)
        return True
