"""Laws of training.reading.prefetch: the same items, made by a thread that leaves nothing behind, or after a step."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pytest

from training.model.kernels.threads import Team
from training.reading.prefetch import prefetch

SOON_S = 30.0


@dataclass
class Item:
    """A number, and one job."""

    number: int
    job: Callable[[], None] = lambda: None
    is_done: bool = False
    waits: bool = False

    def do(self, may_wait: bool = True) -> None:
        if not self.is_done and (may_wait or not self.waits):
            self.is_done = True
            self.job()


def items(num_items: int) -> Iterator[Item]:
    return map(Item, range(num_items))


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.fixture(params=["thread, 2 in use", "thread, 3 in use", "team"])
def how(request: pytest.FixtureRequest) -> tuple[int, Team | None]:
    """``in_use`` and ``team`` of ``prefetch``."""
    return (2, Team(2)) if request.param == "team" else (int(request.param[8]), None)


@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 100])
def test_items_are_the_same_in_the_same_order_and_done(how: tuple[int, Team | None], num_items: int) -> None:
    found = []
    for item in prefetch(items(num_items), *how):
        assert item.is_done
        found.append(item.number)
        if how[1] and item.number % 3:
            how[1].run(lambda _: None)
    assert found == list(range(num_items))


@pytest.mark.parametrize("in_use", [2, 3])
def test_as_many_are_made_ahead_as_there_are_places_and_no_more(in_use: int) -> None:
    made: list[int] = []

    def noted() -> Iterator[Item]:
        for number in range(10):
            yield Item(number, partial(made.append, number))

    ahead = prefetch(noted(), in_use)
    assert made == [], "nothing happens before the first item is asked for"
    for number in range(5):
        assert next(ahead).number == number
        wait_for(lambda: len(made) == number + in_use)  # noqa: B023
        time.sleep(0.01)
        assert len(made) == number + in_use
    ahead.close()


def test_a_team_makes_one_item_ahead_after_its_next_step() -> None:
    made: list[int] = []

    def noted() -> Iterator[Item]:
        for number in range(10):
            yield Item(number, partial(made.append, number))

    team = Team(2)
    ahead = prefetch(noted(), 2, team)
    assert made == [], "nothing happens before the first item is asked for"
    for number in range(5):
        assert next(ahead).number == number
        assert made == list(range(number + 1))
        for _ in range(2):
            team.run(lambda _: None)
            assert made == list(range(number + 2))
    next(ahead)
    ahead.close()
    team.run(lambda _: None)
    assert made == list(range(6)), "nothing happens after it is closed"


@pytest.mark.parametrize("good", [0, 1, 5])
@pytest.mark.parametrize("where", ["iterator", "item"])
def test_an_error_comes_after_the_items_before_it(how: tuple[int, Team | None], good: int, where: str) -> None:
    """A team asks for an item while the one before it is used, so an iterator's own error comes one item earlier."""

    def fail() -> None:
        raise KeyError("broken")

    def broken() -> Iterator[Item]:
        yield from items(good)
        if where == "iterator":
            fail()
        yield Item(good, fail)

    found: list[int] = []
    with pytest.raises(KeyError, match="broken"):
        found.extend(item.number for item in prefetch(broken(), *how))
    assert found == list(range(good))[: -1 if how[1] and where == "iterator" else None]


@pytest.mark.parametrize("end", ["close", "forget", "raise"])
def test_the_thread_ends_with_an_iterator_that_is_left_early(end: str) -> None:
    ahead = prefetch(items(1000), 3)
    next(ahead)
    assert len(threads()) == 1
    if end == "close":
        ahead.close()
    if end == "raise":
        with pytest.raises(KeyboardInterrupt):
            ahead.throw(KeyboardInterrupt())
    if end == "forget":
        del ahead
        gc.collect()


def test_an_interrupt_while_waiting_ends_both() -> None:
    """The consumer waits for an item that takes its time; what Ctrl-C raises must get out, once the item is made."""
    waiting, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        assert go_on.wait(SOON_S)

    def interrupt() -> None:
        assert waiting.wait(SOON_S)
        time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)
        go_on.set()

    ctrl_c = threading.Thread(target=interrupt)
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        next(prefetch(iter([Item(1, wait)]), 3))
    ctrl_c.join()


@pytest.mark.parametrize("size", [1, 2])
def test_an_interrupt_while_an_item_is_made_after_a_step_ends_the_step(size: int) -> None:
    """Before the step's collectives: they would fail, and hide it, where other ranks have had it too."""
    main, team = threading.get_ident(), Team(size)

    class Interrupted(Item):
        def do(self, may_wait: bool = True) -> None:
            if threading.get_ident() == main:
                signal.raise_signal(signal.SIGINT)

    reader = prefetch(iter([Item(1), Interrupted(2)]), 2, team)
    assert next(reader).number == 1
    with pytest.raises(KeyboardInterrupt):
        team.run(lambda _: None)
