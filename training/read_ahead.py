"""``read_ahead``: an iterator whose items are made by a thread while the ones before them are used."""

import threading
from collections.abc import Generator, Iterator
from queue import SimpleQueue
from typing import TypeVar

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
