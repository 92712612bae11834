"""Ranks: how they come to be, how they find and leave each other. The environment is read here alone.

torchrun makes processes and describes the world in environment variables. ``--nproc N`` makes them too: from a plain
``python`` process, or from the one process that a ``torchrun`` without ``--nproc-per-node`` made on this node.
"""

import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import get_context
from multiprocessing.queues import SimpleQueue
from typing import Any
from uuid import uuid4

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous
from torch.multiprocessing.spawn import ProcessExitedException, start_processes

from pipeline.shared.errors import InputError, tell

TIMEOUT = timedelta(minutes=10)
PEER_GRACE_S = 10
"""How long a rank that lost a peer waits for the launcher to end it, before it ends itself."""

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a run that SIGTERM has stopped; nothing is lost then."""

LOOK_S = 1.0
"""About how often ranks look whether one of them has had a SIGTERM."""


class RankError(InputError):
    """Something the user can mend that one rank alone has found, in what it has read."""


@dataclass(frozen=True)
class World:
    """Where this process stands: ``rank`` of ``world_size`` in all, ``local_rank`` of ``local_world_size`` here."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` summed over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def largest(self, value: int) -> int:
        """The largest ``value`` of any rank."""
        found = torch.tensor(value)
        if self.world_size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def of_first(self, record: Any, tensors: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
        """Rank 0's ``record``, which JSON can hold, and its tensors, on every rank; what others give is not used."""
        if self.world_size == 1:
            return record, tensors
        kinds = {
            name: (str(tensor.dtype).removeprefix("torch."), list(tensor.shape)) for name, tensor in tensors.items()
        }
        text = torch.tensor(list(json.dumps([record, kinds]).encode()), dtype=torch.uint8)
        size = torch.tensor(len(text))
        dist.broadcast(size, 0)
        text = text if self.is_first else text.new_empty(int(size))
        dist.broadcast(text, 0)
        record, kinds = json.loads(bytes(text.tolist()))
        found = {}
        for name, (dtype, shape) in kinds.items():
            found[name] = tensors[name] if self.is_first else torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(found[name], 0)
        return record, found

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """Everybody's ``values``, of one shape, as (W, ...)."""
        everybodys = values.new_empty(self.world_size, *values.shape)
        # Of gloo's collectives this one takes half of all_gather's time for messages of some 10 kB.
        dist.all_to_all(list(everybodys), [values] * self.world_size)
        return everybodys


class Sigterm:
    """Notes a SIGTERM within a ``with``; ranks stop at the same step when one of them has had one."""

    def __init__(self, world: World):
        self._world, self._asked, self._next_look, self._looked = world, False, 0, (0, 0.0)

    def __enter__(self) -> "Sigterm":
        self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_asked", True))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._asked and kind is not None and issubclass(kind, RuntimeError):
            signal.raise_signal(signal.SIGTERM)  # a launcher ends a rank that has lost another one: be quiet and go

    def agreed(self, step: int) -> bool:
        """Whether to stop now. Every rank asks after every step; most answers cost nothing.

        Rank 0 decides, by its clock, at which step all look again.
        """
        if self._world.world_size == 1:
            return self._asked
        if step < self._next_look:
            return False
        now, (last_step, last_s) = time.monotonic(), self._looked
        ahead = 1
        if last_s and step > last_step:
            ahead = max(1, min(1000, int((step - last_step) * LOOK_S / max(now - last_s, 1e-6))))
        self._looked = step, now
        asked, ahead = self._world.sum(torch.tensor([self._asked, ahead if self._world.is_first else 0])).tolist()
        self._next_look = step + ahead
        return bool(asked)


def launched() -> World:
    """The world that a launcher described in the environment; a world of one without a launcher."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


def world_size_with(nproc: int | None) -> int:
    """How many ranks there will be when every node makes ``nproc`` processes. Raises InputError when it can't."""
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
    """Whether this process is to make the ranks, rather than be one."""
    return nproc is not None and nproc != launched().local_world_size


def spawn(nproc: int, work: Callable[..., None], *args: Any) -> None:
    """Runs ``work(*args)`` in ``nproc`` processes, this node's ranks; ends all as soon as one fails, or this one ends.

    Raises the first RankError of a rank. Under torchrun the ranks meet at the store of its agent; without it, at one
    that this process keeps.
    """
    store = None
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", 0, is_master=True, wait_for_workers=False
        )
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # meet there as clients, instead of rank 0 opening one of its own
        }
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # that it ends the other ranks
    errors = get_context("spawn").SimpleQueue()
    try:
        ranks = start_processes(  # type: ignore[no-untyped-call]
            _rank_main, args=(nproc, errors, work, args), nprocs=nproc, join=False, daemon=True, start_method="spawn"
        )
        signal.signal(signal.SIGTERM, lambda *_: _forward(signal.SIGTERM, ranks.pids()))
        while not ranks.join(grace_period=None):
            pass
    except ProcessExitedException as error:
        if not errors.empty():
            raise RankError(errors.get()) from None
        if error.exit_code == -signal.SIGTERM:
            sys.exit(TERMINATED)
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
    local_rank: int, nproc: int, errors: "SimpleQueue[str]", work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """Describes a spawned rank's world as torchrun would have, then works."""
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
        errors.put(str(error))
        sys.stdout.flush()
        os._exit(2)  # see leave


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world, met and ready for collectives: NCCL between GPUs, gloo between CPUs, nothing for a world of one.

    When a peer is lost, waits for the launcher, which will end this rank and report the one that failed first.
    """
    world = launched()
    if world.world_size > 1:
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=_store(world), rank=world.rank, world_size=world.world_size, timeout=TIMEOUT
        )
    try:
        yield world
    except RuntimeError as error:
        if world.world_size == 1 or not _is_lost_peer(error):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PEER_GRACE_S)
        tell(f"rank {world.rank} on {socket.gethostname()}: lost another rank, so it stops")
        sys.exit(1)
    if world.world_size > 1:  # after an error the process ends, and its connections with it
        dist.destroy_process_group()


def _store(world: World) -> Any:
    """Where these ranks meet, and none that were there before them.

    torchrun keeps one store over all its restarts (pytorch issue 135712), in which ranks would find addresses of dead
    ones. No number that torchrun gives tells lives apart: an agent that comes back counts its restarts from 0 again. So
    each rank sends rank 0 a word that nobody has sent before, and rank 0 answers with the name of this life.
    """
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    name = uuid4().hex
    if world.is_first:
        for rank in range(1, world.world_size):
            while not store.check([f"{name}/{rank}"]):
                word = store.get(f"word of {rank}").decode()  # perhaps of one that is dead: then look again
                store.set(f"answer to {word}", name)
                time.sleep(0.01)
    else:
        word = uuid4().hex
        store.set(f"word of {world.rank}", word)
        name = store.get(f"answer to {word}").decode()
        store.set(f"{name}/{world.rank}", "here")
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]


def leave(world: World, code: int) -> None:
    """Ends a rank whose work is done and written, without the interpreter's own end.

    That one can abort (SIGABRT): DDP keeps gloo's threads alive, and one that frees the last all-reduce's tensors wants
    the interpreter's lock when there is no interpreter any more.
    """
    if world.world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def be_deterministic() -> None:
    """Has torch take algorithms that give the same bits every time, or raise where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)


def _is_lost_peer(error: RuntimeError) -> bool:
    """gloo has no error class of its own for it."""
    return isinstance(error, dist.DistError) or any(
        words in str(error) for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    )


def check_device(wanted: str, ranks_here: int) -> str:
    """What ``auto``, ``cpu`` or ``cuda`` is here, cpu or cuda; InputError unless each of the ranks has a GPU then."""
    if not wants_gpu(wanted):
        return "cpu"
    num_gpus = torch.cuda.device_count()
    if num_gpus < ranks_here:
        found = f"{num_gpus} GPU(s) for {ranks_here} process(es) on this machine"
        raise InputError(f"--device {wanted}: found {found}, expected one each; take fewer, or --device cpu")
    return "cuda"


def wants_gpu(wanted: str) -> bool:
    """Whether ``auto``, ``cpu`` or ``cuda`` means a GPU on this machine."""
    return wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())


def choose_device(wanted: str, local_rank: int) -> torch.device:
    """``auto``, ``cpu`` or ``cuda`` as this rank's device; ``check_device`` has been passed."""
    if not wants_gpu(wanted):
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    return device
