"""Ranks: which of how many a process is, how it is connected with the others, on which device, and how it ends.

torchrun makes processes and describes the world in environment variables. ``--nproc N`` makes them too (spawning.py):
from a plain ``python`` process, or from the one process that a ``torchrun`` without ``--nproc-per-node`` made on this
node. rendezvous.py reads where the ranks meet; no other module reads what launchers set.
"""

import json
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from pipeline.shared.errors import InputError, shown, tell
from training.rendezvous import TIMEOUT, address, is_here, meet

PEER_GRACE_S = 10
"""How long a rank that lost a peer waits for the launcher to end it before it exits by itself."""

LOOPBACKS = ("lo", "lo0")
"""The name of the loopback interface: Linux's, macOS's."""


class LostPeer(RuntimeError):
    """Another rank has ended while this one waited for it."""


class RankError(InputError):
    """An InputError that only one rank found, in what it read or in its environment."""


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


SINGLE = World(0, 1, 0, 1)
"""The world of a process that trains alone."""


def launched() -> World:
    """The world that a launcher described in the environment; one rank without a launcher.

    Raises RankError if the variables are no whole numbers, or do not fit each other.
    """
    world_size = _variable("WORLD_SIZE", "1", range(1, 1 << 31))
    local_world_size = _variable("LOCAL_WORLD_SIZE", "1", range(1, world_size + 1), "WORLD_SIZE")
    return World(
        rank=_variable("RANK", "0" if world_size == 1 else "", range(world_size), "WORLD_SIZE"),
        world_size=world_size,
        local_rank=_variable("LOCAL_RANK", "0", range(local_world_size), "LOCAL_WORLD_SIZE"),
        local_world_size=local_world_size,
    )


def _variable(name: str, default: str, expected: range, limit: str = "") -> int:
    """The number in a variable that launchers set; the variable ``limit`` limits it."""
    text = os.environ.get(name, default)
    try:
        if int(text) in expected:
            return int(text)
    except ValueError:
        pass
    numbers = f"{expected[0]}" if len(expected) == 1 else f"a whole number from {expected[0]}"
    if limit:
        numbers += f" to {expected[-1]}" if len(expected) > 1 else ""
        numbers += f" with {limit}={os.environ[limit]}" if limit in os.environ else f" without {limit}"
    raise RankError(
        f"{name}: found {shown(text)}, expected {numbers}; launchers such as torchrun set these variables of the "
        f"environment, without one unset them"
    )


@contextmanager
def joined(device: torch.device, limit_s: float) -> Iterator[World]:
    """The world, connected: NCCL between GPUs, gloo between CPUs, nothing for a single rank.

    Raises InputError unless all ranks come within ``limit_s`` seconds. When a peer is lost later, this rank waits for
    the launcher, which ends it and reports the rank that failed first.
    """
    world = launched()
    try:
        if world.world_size > 1:
            _connect(world, device, limit_s)
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


def _connect(world: World, device: torch.device, limit_s: float) -> None:
    if world.local_world_size == world.world_size or is_here(address()[0]):
        _prefer_loopback()
    store = meet(world.rank, world.world_size, limit_s, tells=world.local_rank == 0)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.world_size, timeout=TIMEOUT)


def _prefer_loopback() -> None:
    """Makes gloo and NCCL listen on loopback only, unless the user has named an interface."""
    loopback = next((name for _, name in socket.if_nameindex() if name in LOOPBACKS), None)
    if loopback:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)


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
    return isinstance(error, LostPeer | dist.DistError) or any(
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
