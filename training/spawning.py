"""``--nproc N``: this machine's ranks, started and ended by this process."""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from pipeline.shared.cli import escape_what_cannot_be_encoded
from pipeline.shared.errors import InputError
from training.distributed import RankError, launched
from training.rendezvous import LOOPBACK, address, opened_store
from training.stopping import on_stop, stop_signals


def world_size_with(nproc: int | None) -> int:
    """How many ranks there will be if every node starts ``nproc`` processes. Raises InputError if it can't."""
    world = launched()
    if nproc is None:
        return world.world_size
    if nproc < 1:
        raise InputError.flag("nproc", nproc, "1 or more")
    if world.local_world_size not in (1, nproc):
        made = world.local_world_size
        raise InputError.flag("nproc", nproc, f"{made}, as many as torchrun made here; leave one of the two out")
    return world.world_size // world.local_world_size * nproc


def needs_spawn(nproc: int | None) -> bool:
    """Whether this process starts the ranks, rather than being one."""
    return nproc is not None and nproc != launched().local_world_size


def spawn(nproc: int, work: Callable[..., None], *args: Any) -> None:
    """Runs ``work(*args)`` in ``nproc`` processes, this node's ranks. Ends all of them when one fails or this one ends.

    Raises the first InputError of a rank, as a RankError. On one machine this process keeps the store of the ranks;
    on several, torchrun's agent does, or rank 0.
    """
    store = None
    if launched().world_size == 1:
        store = opened_store()
        os.environ |= {
            "MASTER_ADDR": LOOPBACK,
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # be clients of that store; rank 0 opens none
        }
    else:
        address()
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each rank that it ends
    errors, error_of_rank = get_context("spawn").Pipe(duplex=False)  # a queue would need a writable /dev/shm
    try:
        ranks = start_processes(  # type: ignore[no-untyped-call]
            _rank_main,
            args=(nproc, error_of_rank, work, args),
            nprocs=nproc,
            join=False,
            daemon=True,
            start_method="spawn",
        )
        on_stop(lambda number, _: _forward(number, ranks.pids()))
        while not ranks.join(grace_period=None):
            pass
    except ProcessExitedException as error:
        if errors.poll():
            raise RankError(errors.recv()) from None
        if -error.exit_code in stop_signals():
            sys.exit(128 - error.exit_code)
        if error.exit_code < 0:
            found = f"process {error.error_index} was killed ({error.signal_name})"
            sys.exit(f"error: {found}; with --resume it goes on from the last checkpoint")
        sys.exit(error.exit_code)
    finally:
        del store


def _forward(number: int, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _rank_main(
    local_rank: int, nproc: int, error_of_rank: Connection, work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """Sets a spawned rank's environment as torchrun would, then works."""
    escape_what_cannot_be_encoded()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # torch ends a rank with it, and nohup had it ignored
    parent = launched()
    node, num_nodes = parent.rank // parent.local_world_size, parent.world_size // parent.local_world_size
    os.environ |= {
        "RANK": str(node * nproc + local_rank),
        "WORLD_SIZE": str(num_nodes * nproc),
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(nproc),
    }
    try:
        work(*args)
    except InputError as error:
        error_of_rank.send(str(error))
        sys.stdout.flush()
        os._exit(2)  # see leave
