"""``--nproc N`` in this process, whose ranks come out of a server that has loaded everything: 0.3 s each instead of 3.

Or a whole ``train.py`` that does. All but the start of their processes is the trainer's own. Literal launches are
launch.py's.
"""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.forkserver import ensure_running
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from conftest import Ended
from launch import LIMIT_S
from torch.multiprocessing.spawn import ProcessContext, start_processes

from training import distributed, spawning, stopping, train
from training.model.batch import Batch
from training.runs import recorder

PRINTED = ("stdout", "stderr")
Change = Callable[[pytest.MonkeyPatch], None]
"""What is done to the trainer before it works, in each rank: a module's function, or a ``partial`` of one."""


def train_here(*arguments: object, logs: Path, change: Change | None = None) -> Ended:
    """How ``train.py`` has ended with these arguments; what it and its ranks have printed is in ``logs`` as well."""
    printed = [logs / name for name in PRINTED]
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.setattr(sys, "argv", ["train.py", *map(str, arguments)])
        patch.setattr(spawning, "start_processes", partial(_start, printed, change))
        if change:
            change(patch)  # this process is the one rank where it makes none
        with printed[0].open("w") as out, printed[1].open("w") as err, redirect_stdout(out), redirect_stderr(err):
            try:
                train.main()
            except SystemExit as end:
                code = end.code or 0
            if isinstance(code, str):  # what Python prints then
                err.write(f"{code}\n")
                code = 1
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(before[0])
    torch.use_deterministic_algorithms(before[1])
    return Ended(code, *(path.read_text() for path in printed))


def train_apart(*arguments: object, logs: Path) -> Ended:
    """``train_here`` for what could kill a process: in one of its own."""
    process = begin_apart(*arguments, logs=logs)
    process.join(LIMIT_S)
    ended = process.exitcode
    process.kill()
    assert ended is not None, f"it goes on after {LIMIT_S} s"
    return Ended(ended, *((logs / name).read_text() for name in PRINTED))


def begin_apart(*arguments: object, logs: Path, change: Change | None = None) -> ForkServerProcess:
    """A process of its own that trains, with these arguments of ``train.py``."""
    printed = [logs / name for name in PRINTED]
    for path in printed:
        path.write_text("")
    given = (0, dict(os.environ), printed, change, _main, ([str(argument) for argument in arguments],))
    process = forkserver().Process(target=_rank, args=given)
    process.start()
    return process


def _main(_: int, arguments: list[str]) -> None:
    sys.argv = ["train.py", *arguments]
    train.main()


def at_batch(number: int, rank: int, act: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Lets a rank ``act`` when it has its batch of that number. A ``Change``, all but the last argument given."""
    timed = train.timed

    def acting(batches: Iterator[Batch]) -> Iterator[tuple[Batch, float]]:
        for count, batch in enumerate(timed(batches), seen[0] + 1):
            seen[0] = count
            if count == number and distributed.launched().rank == rank:
                act()
            yield batch

    seen = [0]
    patch.setattr(train, "timed", acting)
    patch.setattr(stopping, "LOOK_S", 0.02)  # what one rank does, all soon see


def signal_at(number: int, sent: signal.Signals = signal.SIGTERM) -> Change:
    """Sends this process, which has started the ranks or is the only one, a signal at the batch of that number."""
    return partial(at_batch, number, 0, partial(os.kill, os.getpid(), sent))


def forkserver() -> ForkServerContext:
    """The context whose server has loaded what tests fork: there is one such server, and this decides before it starts.

    What belongs to retraining is left out where it cannot be loaded, as in petastorm's environment.
    """
    context = get_context("forkserver")
    retraining = ["jobs.retrain", "retrain_tools", "jobs.retraining.challenger", "jobs.retraining.judge"]
    context.set_forkserver_preload(["preloaded", *retraining])
    path = os.pathsep.join(sys.path)  # Python 3.11's server has no other path to them; other processes must not get it
    with mock.patch.dict(os.environ, {"PYTHONPATH": path}):
        ensure_running()
    return context


def _start(
    printed: list[Path], change: Change | None, work: Callable[..., None], args: tuple[Any, ...], **options: Any
) -> ProcessContext:
    forkserver()
    arguments = (dict(os.environ), printed, change, work, args)
    return start_processes(_rank, arguments, **{**options, "start_method": "forkserver"})  # type: ignore[no-any-return,no-untyped-call]


def _rank(
    local_rank: int,
    environment: dict[str, str],
    printed: list[Path],
    change: Change | None,
    work: Callable[..., None],
    args: tuple[Any, ...],
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate(printed, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_APPEND), number)
    patch = pytest.MonkeyPatch()
    patch.setattr(recorder, "write_pages", lambda *_: None)
    if change:
        change(patch)
    work(local_rank, *args)
