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
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile, gettempdir
from typing import Any, BinaryIO

import torch
import torch.distributed as dist

from pipeline.shared.errors import InputError, shown, tell
from training.rendezvous import TIMEOUT, address, address_of, is_here, meet, own_address

PEER_GRACE_S = 10
"""How long a rank that lost a peer waits for the launcher to end it before it exits by itself."""

_SENT_AT_ONCE = 1 << 24
"""Bytes."""

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
    first_here: tuple[int, ...] = ()
    """For each rank the first one on its machine, or itself if that is unknown. Ranks know it once they have met."""
    channel: dist.ProcessGroup | None = None
    """Where these ranks communicate; None: where all of them do."""

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def split(self, part_of: Callable[[int], int]) -> "World":
        """The ranks of this one's part, numbered in their order, as a world. A collective call.

        ``part_of(rank)`` is the same function on each rank.
        """
        parts: dict[int, list[int]] = {}
        for rank in range(self.world_size):
            parts.setdefault(part_of(rank), []).append(rank)
        if len(parts) == 1:
            return self
        self.barrier()  # a channel is made through the store, which would wait for a rank that has ended
        mine = parts[part_of(self.rank)]
        # Also a rank without others takes part in making the channels of all others.
        several = [part for part in parts.values() if len(part) > 1]
        channel, _ = dist.new_subgroups_by_enumeration(several) if several else (None, [])  # type: ignore[no-untyped-call]
        if len(mine) == 1:
            return SINGLE
        first_here = [mine.index(next(other for other in mine if self.on_one_machine(rank, other))) for rank in mine]
        rank, first = mine.index(self.rank), first_here[mine.index(self.rank)]
        return World(rank, len(mine), rank - first, first_here.count(first), tuple(first_here), channel)

    def on_one_machine(self, rank: int, other: int) -> bool:
        return rank == other or self.first_here[rank] == self.first_here[other]

    @contextmanager
    def everywhere(self, file: Path) -> Iterator[Path]:
        """Rank 0's file on every machine: itself on rank 0's, on others a copy that only lives within the block.

        A collective call; the other ranks' ``file`` is ignored. Raises RankError if a machine has no room for it.
        """
        path, _ = self.broadcast(str(file), {})
        if self.world_size == self.local_world_size:
            yield Path(path)
            return
        firsts = self.split(lambda rank: -1 if rank == self.first_here[rank] else rank)
        here = self.split(lambda rank: self.first_here[rank])
        with ExitStack() as held:
            leads = self.rank == self.first_here[self.rank]
            if leads and not self.is_first:
                copy = held.enter_context(TemporaryFile())
                path = f"/proc/{os.getpid()}/fd/{copy.fileno()}"
            if leads:
                with open(path, "rb" if self.is_first else "r+b", buffering=0) as opened:
                    firsts._copy(opened)
            path, _ = here.broadcast(path, {})
            yield Path(path)
            here.barrier()  # the others have it open now

    def _copy(self, file: BinaryIO) -> None:
        """Copies what rank 0 has in ``file`` to the others' files."""
        size, _ = self.broadcast(os.fstat(file.fileno()).st_size, {})
        for begin in range(0, size, _SENT_AT_ONCE):
            piece = torch.empty(min(_SENT_AT_ONCE, size - begin), dtype=torch.uint8)
            if self.is_first:
                piece = torch.frombuffer(bytearray(file.read(len(piece))), dtype=torch.uint8)
            dist.broadcast(piece, group=self.channel, group_src=0)
            try:
                content = memoryview(piece.numpy().data if not self.is_first else b"")
                while content:
                    content = content[file.write(content) :]
            except OSError as error:
                found = f"cannot hold {size / 1e6:,.1f} MB that rank 0 reads ({error.strerror})"
                raise RankError(f"{gettempdir()}: {found}; name another folder by TMPDIR") from None

    def all_reduce(self, values: torch.Tensor) -> torch.Tensor:
        """``values`` summed over all ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, group=self.channel)
        return values

    def barrier(self) -> None:
        """Returns once every rank has called it."""
        self.all_reduce_max(0)

    def all_reduce_max(self, value: int) -> int:
        """The largest ``value`` of any rank."""
        found = torch.tensor(value)
        if self.world_size > 1:
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.channel)
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
        dist.broadcast(size, group=self.channel, group_src=0)
        text = text if self.is_first else text.new_empty(int(size))
        dist.broadcast(text, group=self.channel, group_src=0)
        record, kinds = json.loads(bytes(text.tolist()))
        found = {}
        for name, (dtype, shape) in kinds.items():
            found[name] = tensors[name] if self.is_first else torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(found[name], group=self.channel, group_src=0)
        return record, found

    def gather_columns(self, table_BD: torch.Tensor, begins: list[int]) -> None:
        """Rank 0 gets the columns ``begins[r]`` to ``begins[r + 1]`` of the ``table_BD`` of each rank r."""
        for rank in range(1, self.world_size):
            columns_BC = table_BD[:, begins[rank] : begins[rank + 1]]
            if self.is_first:
                received = columns_BC.contiguous()
                dist.recv(received, group=self.channel, group_src=rank)
                columns_BC.copy_(received)
            elif self.rank == rank:
                dist.send(columns_BC.contiguous(), group=self.channel, group_dst=0)

    def all_gather(self, values: torch.Tensor) -> torch.Tensor:
        """The ``values`` of all ranks, of one shape, as (W, ...)."""
        if self.world_size == 1:
            return values[None]
        everybodys = values.new_empty(self.world_size, *values.shape)
        # Of gloo's collectives this one takes half of all_gather's time for messages of some 10 kB.
        dist.all_to_all(list(everybodys), [values] * self.world_size, group=self.channel)
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
            world = replace(world, first_here=_first_here(world))
        yield world
    except RuntimeError as error:
        if world.world_size == 1 or not _is_lost_peer(error):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PEER_GRACE_S)
        lost = f"rank {world.rank} on {socket.gethostname()}: lost another rank, so it stops"
        tell(f"{lost}; with --resume it goes on from the last checkpoint")
        sys.exit(1)
    if world.world_size > 1:  # after an error the process ends, and its connections with it
        dist.destroy_process_group()


def _connect(world: World, device: torch.device, limit_s: float) -> None:
    if world.local_world_size == world.world_size or is_here(address()[0]):
        _prefer_loopback()
    else:
        _prefer_way_to_the_others()
    store = meet(world.rank, world.world_size, limit_s, tells=world.local_rank == 0)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.world_size, timeout=TIMEOUT)
    except RuntimeError as error:
        if _is_lost_peer(error):
            raise
        found = f"rank {world.rank} cannot connect with the others ({str(error).splitlines()[0]:.120})"
        raise RankError(f"{found}; name the interface between the machines by GLOO_SOCKET_IFNAME") from None


def _first_here(world: World) -> tuple[int, ...]:
    """For each rank the first one on its machine; itself, if ranks are not numbered machine by machine."""
    found = world.all_gather(torch.tensor([world.rank - world.local_rank, world.local_world_size]))
    firsts, sizes = found[:, 0].tolist(), found[:, 1].tolist()
    expected = [first for first in dict.fromkeys(firsts) for _ in range(sizes[first])]
    return tuple(firsts if firsts == expected else range(world.world_size))


def _prefer_loopback() -> None:
    """Makes gloo and NCCL listen on loopback only, unless the user has named an interface."""
    loopback = next((name for _, name in socket.if_nameindex() if name in LOOPBACKS), None)
    if loopback:
        for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(variable, loopback)


def _prefer_way_to_the_others() -> None:
    """Makes gloo use the interface that leads to where ranks meet, unless the user has named one.

    It would take the address of the host's name, which is often loopback's.
    """
    with suppress(OSError):
        own = own_address()
        names = (name for _, name in socket.if_nameindex() if address_of(name) == own)
        if name := next(names, None):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


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
