"""Laws of training.reading.prefetch: the same items, made by a thread that leaves nothing behind, or after a step."""

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from training.model.kernels.threads import Team
from training.reading.prefetch import BetweenSteps, read_ahead

SOON_S = 30.0


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "read_ahead"]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert threads() == []


def wait_for(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.001)


@pytest.mark.parametrize("num_items", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("in_use", [2, 3])
def test_items_are_the_same_in_the_same_order(num_items: int, in_use: int) -> None:
    assert list(read_ahead(iter(range(num_items)), in_use)) == list(range(num_items))


@pytest.mark.parametrize("in_use", [2, 3])
def test_as_many_are_made_ahead_as_there_are_places_and_no_more(in_use: int) -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    ahead = read_ahead(items(), in_use)
    assert made == [], "nothing happens before the first item is asked for"
    for number in range(5):
        assert next(ahead) == number
        wait_for(lambda: len(made) == number + in_use)  # noqa: B023
        time.sleep(0.01)
        assert len(made) == number + in_use
    ahead.close()


@pytest.mark.parametrize("good", [0, 1, 5])
def test_an_error_comes_after_the_items_before_it(good: int) -> None:
    def items() -> Iterator[int]:
        yield from range(good)
        raise KeyError("broken")

    found: list[int] = []
    with pytest.raises(KeyError, match="broken"):
        found.extend(read_ahead(items(), 3))
    assert found == list(range(good))


@pytest.mark.parametrize("how", ["close", "forget", "raise"])
def test_the_thread_ends_with_an_iterator_that_is_left_early(how: str) -> None:
    ahead = read_ahead(iter(range(1000)), 3)
    next(ahead)
    assert len(threads()) == 1
    if how == "close":
        ahead.close()
    if how == "raise":
        with pytest.raises(KeyboardInterrupt):
            ahead.throw(KeyboardInterrupt())
    if how == "forget":
        del ahead
        gc.collect()


def test_an_interrupt_while_waiting_ends_both() -> None:
    """The consumer waits for an item that takes its time; what Ctrl-C raises must get out, once the item is made."""
    waiting, go_on = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        waiting.set()
        assert go_on.wait(SOON_S)
        yield 1

    def interrupt() -> None:
        assert waiting.wait(SOON_S)
        time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)
        go_on.set()

    ctrl_c = threading.Thread(target=interrupt)
    ctrl_c.start()
    with pytest.raises(KeyboardInterrupt):
        next(read_ahead(items(), 3))
    ctrl_c.join()


@pytest.mark.parametrize("size", [1, 2])
def test_an_interrupt_while_an_item_is_made_after_a_step_ends_the_step(size: int) -> None:
    """Before the step's collectives: they would fail, and hide it, where other ranks have had it too."""

    def items() -> Iterator[int]:
        yield 1
        signal.raise_signal(signal.SIGINT)
        yield 2

    team = Team(size)
    reader = BetweenSteps(team).read(items())
    assert next(reader) == 1
    with pytest.raises(KeyboardInterrupt):
        team.run(lambda _: None)
