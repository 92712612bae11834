"""Ranks: how they start, find each other and end. Only this module reads the environment that launchers set.

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
"""How long a rank that lost a peer waits for the launcher to end it before it exits by itself."""

TERMINATED = 128 + signal.SIGTERM
"""The exit code of a run that was stopped by SIGTERM; it has a checkpoint of its last step."""

LOOPBACKS = ("lo", "lo0")
"""The name of the loopback interface: Linux's, macOS's."""

LOOK_S = 1.0
"""About how often ranks ask each other whether one of them received SIGTERM."""


class RankError(InputError):
    """An InputError that only one rank found, in what it read."""


@dataclass(frozen=True)
class World:
    """This process is ``rank`` of ``world_size`` in all, and ``local_rank`` of ``local_world_size`` on this machine."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` summed over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self.all_reduce_max(0)

    def all_reduce_max(self, value: int) -> int:
        """The largest ``value`` of any rank."""
        found = torch.tensor(value)
        if self.world_size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def broadcast(self, record: Any, tensors: dict[str, torch.Tensor]) -> tuple[Any, dict[str, torch.Tensor]]:
        """Rank 0's ``record``, which JSON can hold, and its tensors, on every rank; the other ranks' are ignored."""
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

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """The ``values`` of all ranks, of one shape, as (W, ...)."""
        everybodys = values.new_empty(self.world_size, *values.shape)
        # Of gloo's collectives this one takes half of all_gather's time for messages of some 10 kB.
        dist.all_to_all(list(everybodys), [values] * self.world_size)
        return everybodys


class Sigterm:
    """Catches SIGTERM within a ``with`` block, so that all ranks stop at the same step when one of them receives it."""

    def __init__(self, world: World):
        self._world, self._asked, self._next_look, self._looked = world, False, 0, (0, 0.0)

    def __enter__(self) -> "Sigterm":
        self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_asked", True))
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._before)
        if self._asked and kind is not None and issubclass(kind, RuntimeError):
            signal.raise_signal(
                signal.SIGTERM
            )  # the error is a lost peer's, which the launcher ended too: no traceback

    def agreed(self, step: int) -> bool:
        """Whether to stop now. Every rank asks after every step; most calls communicate nothing.

        Rank 0 decides, by its clock, after how many steps the ranks communicate again.
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
        asked, ahead = self._world.all_reduce(
            torch.tensor([self._asked, ahead if self._world.is_first else 0])
        ).tolist()
        self._next_look = step + ahead
        return bool(asked)


def launched() -> World:
    """The world that a launcher described in the environment; one rank without a launcher."""
    return World(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )


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

    Raises the first RankError of a rank. Under torchrun the ranks use the store of its agent; otherwise this process
    keeps a store.
    """
    store = None
    if "MASTER_ADDR" not in os.environ or "RANK" not in os.environ:
        store = _loopback_store()
        os.environ |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",  # be clients of that store; rank 0 opens none
        }
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)  # it warns of each rank that it ends
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


def _loopback_store() -> Any:
    """A store for the ranks of this machine. TCPStore itself would listen on all interfaces, whatever its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )


def _forward(number: int, pids: list[int]) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def _rank_main(
    local_rank: int, nproc: int, errors: "SimpleQueue[str]", work: Callable[..., None], args: tuple[Any, ...]
) -> None:
    """Sets a spawned rank's environment as torchrun would, then works."""
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
    """The world, connected: NCCL between GPUs, gloo between CPUs, nothing for a single rank.

    When a peer is lost, this rank waits for the launcher, which ends it and reports the rank that failed first.
    """
    world = launched()
    if world.world_size > 1:
        if world.local_world_size == world.world_size:
            _prefer_loopback()
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


def _prefer_loopback() -> None:
    """Makes gloo and NCCL listen on loopback only, unless the user has named an interface."""
    loopback = next((name for _, name in socket.if_nameindex() if name in LOOPBACKS), None)
    if loopback:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)


def _store(world: World) -> Any:
    """A store that these ranks share, and no rank of an earlier restart.

    torchrun keeps one store over all its restarts (pytorch issue 135712), where ranks would find the addresses of dead
    ranks. No number that torchrun provides identifies a restart: an agent that comes back counts from 0 again. So each
    rank sends a fresh nonce; rank 0 replies with this restart's prefix.
    """
    store, _, _ = next(rendezvous("env://", timeout=TIMEOUT))
    prefix = uuid4().hex
    if world.is_first:
        for rank in range(1, world.world_size):
            while not store.check([f"{prefix}/{rank}"]):
                nonce = store.get(f"nonce/{rank}").decode()  # perhaps a dead rank's: then look again
                store.set(f"reply/{nonce}", prefix)
                time.sleep(0.01)
    else:
        nonce = uuid4().hex
        store.set(f"nonce/{world.rank}", nonce)
        prefix = store.get(f"reply/{nonce}").decode()
        store.set(f"{prefix}/{world.rank}", "here")
    return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]


def leave(world: World, code: int) -> None:
    """Ends a rank whose work is done and written, without finalizing the interpreter.

    Finalization can abort (SIGABRT): DDP keeps gloo's threads alive, and a thread that frees the tensors of the last
    all-reduce needs the interpreter's lock when the interpreter is gone.
    """
    if world.world_size > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)


def be_deterministic() -> None:
    """Makes torch use algorithms that give the same bits every time, or raise where it has none."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)


def _is_lost_peer(error: RuntimeError) -> bool:
    """gloo has no error class of its own for it."""
    return isinstance(error, dist.DistError) or any(
        words in str(error) for words in ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    )


def check_device(wanted: str, ranks_here: int) -> str:
    """The type of device, cpu or cuda, that ``wanted`` is here. Raises InputError for fewer GPUs than ranks."""
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
