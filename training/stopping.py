"""How a run is asked to stop: by SIGTERM, as schedulers do, or by SIGHUP, as a terminal does that is closed."""

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from training.distributed import World

LOOK_S = 1.0
"""About how often ranks ask each other whether one of them was asked to stop."""

Handler = Callable[[int, FrameType | None], Any]


def stop_signals() -> tuple[int, ...]:
    """The signals that stop a run. A SIGHUP that is ignored is none: nohup wants a run to outlive its terminal."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


def on_stop(act: Handler) -> dict[int, Any]:
    """Sets the handler of the signals that stop a run; returns the earlier ones."""

    def handle(number: int, frame: FrameType | None) -> None:
        leave_lost_output(select.POLLHUP | select.POLLERR)
        act(number, frame)

    return {number: signal.signal(number, handle) for number in stop_signals()}


@contextmanager
def outliving_terminal() -> Iterator[None]:
    """Prints, until a terminal is closed: then what is printed within and from then on vanishes, and ends nothing."""
    leave_lost_output()
    try:
        yield
    except OSError as error:
        if error.errno != errno.EIO or not leave_lost_output():
            raise


def leave_lost_output(signs: int = select.POLLHUP) -> bool:
    """Lets what is printed to a terminal that was closed vanish; whether it was. A write to it would raise.

    With POLLERR in ``signs``, also what is printed to a pipe that nobody reads.
    """
    lost = False
    for stream in (1, 2):
        poll = select.poll()
        poll.register(stream, 0)
        if any(happened & signs for _, happened in poll.poll(0)):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream)
            os.close(nowhere)
            lost = True
    return lost


class StopSignal:
    """Catches stop signals within a ``with`` block, so that all ranks stop at the same step when one receives any."""

    def __init__(self, world: World):
        self._world, self._received, self._next_look, self._looked = world, 0, 0, (0, 0.0)

    @property
    def exit_code(self) -> int:
        """Of a run that was stopped, as shells have it: 143 after SIGTERM, 129 after SIGHUP."""
        return 128 + self._received

    def __enter__(self) -> "StopSignal":
        self._before = on_stop(self._receive)
        return self

    def _receive(self, number: int, _: FrameType | None) -> None:
        self._received = number

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._received and kind is not None and issubclass(kind, RuntimeError):
            # The error is a lost peer's, which the launcher ended too: no traceback.
            signal.raise_signal(self._received)

    def agreed(self, step: int) -> bool:
        """Whether to stop now. Every rank asks after every step; most calls communicate nothing.

        Rank 0 decides, by its clock, after how many steps the ranks communicate again.
        """
        if step < self._next_look:
            return False
        number = self._anybodys(step) if self._world.world_size > 1 else self._received
        if number:  # else _received stays: a signal may have come while the ranks communicated
            self._received = number
            leave_lost_output(select.POLLHUP | select.POLLERR)  # a pipe's reader was stopped too
        return bool(number)

    def _anybodys(self, step: int) -> int:
        """The signal that any rank has received, the same on every rank; 0 if there is none."""
        now, (last_step, last_s) = time.monotonic(), self._looked
        ahead = 1
        if last_s and step > last_step:
            ahead = max(1, min(1000, int((step - last_step) * LOOK_S / max(now - last_s, 1e-6))))
        self._looked = step, now
        mine = [self._received == number for number in (signal.SIGTERM, signal.SIGHUP)]
        terminated, hung_up, ahead = self._world.all_reduce(
            torch.tensor([*mine, ahead if self._world.is_first else 0])
        ).tolist()
        self._next_look = step + ahead
        return signal.SIGTERM if terminated else signal.SIGHUP if hung_up else 0
