"""The processes that train one model together, each its own columns of the tables.

Processes of a machine meet in memory that they share (barrier.py). A group of several machines also adds up what each
machine has found, over the network.
"""

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.distributed import SINGLE, LostPeer, World
from training.model.kernels.barrier import Counters, all_arrived, barrier, fail, make_counters, num_counters
from training.model.kernels.links import Links
from training.model.kernels.shared_memory import SharedMemory, Watch
from training.model.limits import share_of_cores
from training.model.memory import page_aligned


class Group:
    """``size`` processes, of which this one is number ``member``. All make the same calls, in the same order."""

    def __init__(self, world: World = SINGLE, size: int = 1):
        """``size`` ranks in a row of the ``world``: some of a machine's, or all of several machines, as many on each.

        A collective call: all ranks of the world make such groups.
        """
        here = min(size, world.local_world_size)
        self.size, self.member, self.index = size, world.rank % size, world.rank // size
        self.copies = world.split(lambda rank: rank % size)
        """The ranks with the same columns, one of each group."""
        self.members = world.split(lambda rank: rank // size)
        self.here = world.split(lambda rank: rank // here)
        """The members on this machine."""
        self.machines = self.members.split(lambda member: member % here) if here < size else SINGLE
        """The members with this one's number on their machines."""
        self.links = Links(self.machines) if self.here.is_first and here < size else None
        self.cores = share_of_cores(world)
        self._shared: list[SharedMemory] = []
        self._given: list[Counters] = []
        self._failed = False
        self._error: BaseException | None = None
        self._callbacks: list[Any] = []
        self._watch: Watch | None = None
        self._counters = self.counters(here)
        if here > 1:
            self.here.barrier()  # by now all of them hold their locks
            others = [rank for rank in range(here) if rank != self.here.rank]
            self._watch = Watch(self._shared[0], others, self._lost)

    def agreed(self, value: int) -> int:
        """The first member's ``value``: what all do must not depend on what each finds, such as its cores."""
        found, _ = self.members.broadcast(value, {})
        return int(found)

    def array(self, *shape: int, dtype: Any = np.float32) -> npt.NDArray[Any]:
        """Zeros that all members of this machine share."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self.here.world_size == 1:
            return _of(page_aligned(num_bytes, dtype=torch.uint8).numpy(), shape, dtype)
        memory = SharedMemory.create(num_bytes) if self.here.is_first else None
        address, _ = self.here.broadcast(memory.address if memory else "", {})
        memory = memory or SharedMemory.join(address, self.here.rank)
        if memory.bytes.size != num_bytes:
            raise ValueError(f"found {memory.bytes.size:,} shared bytes, expected {num_bytes:,}, in {self.here}")
        self._shared.append(memory)
        return _of(memory.bytes[:num_bytes], shape, dtype)

    def counters(self, size: int) -> Counters:
        """The state of a barrier of ``size`` threads of this machine. Only one computation at a time may use it."""
        self._given.append(make_counters(size, self.array(num_counters(size), dtype=np.int64)))
        if self._failed:
            fail(self._given[-1])
        return self._given[-1]

    def barrier(self) -> None:
        """Returns when all members of this machine have called it equally often. Raises LostPeer if one has ended."""
        if self.here.world_size > 1:
            barrier(self._counters, self.here.rank, self.here.world_size)
            self.check(self._counters, self.here.rank)

    def check(self, counters: Counters, thread: int) -> None:
        """Raises what a ``callback`` has raised, or LostPeer if ``thread`` passed a barrier since one has ended."""
        if self._error:
            raise self._error
        if self._watch and not all_arrived(counters, thread):
            raise LostPeer

    def callback(self, work: Callable[[int, int], None]) -> int:
        """The address of a C function that calls ``work`` for compiled code. What it raises, ``check`` raises later."""

        def attempt(turn: int, count: int) -> None:
            try:
                if not self._error:
                    work(turn, count)
            except BaseException as error:  # also Ctrl-C
                self._error = error
                self.fail()

        function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(attempt)
        self._callbacks.append(function)
        address = ctypes.cast(function, ctypes.c_void_p).value
        assert address
        return address

    def fail(self) -> None:
        """Lets all threads of all members pass their barriers: somebody will never arrive."""
        self._failed = True
        for counters in self._given:
            fail(counters)

    def _lost(self, member: int) -> None:
        self.fail()

    def close(self) -> None:
        """Stops to watch the others. They may end now."""
        if self._watch:
            self._watch.close()
        if self.links:
            self.links.close()


def _of(memory: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = memory.view(dtype).reshape(shape)
    return array
