"""The processes of a machine that train one model together, each its own columns of the tables."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from training.distributed import LostPeer, World
from training.model.kernels.barrier import Counters, all_arrived, barrier, fail, make_counters, num_counters
from training.model.kernels.shared_memory import SharedMemory, Watch
from training.model.memory import page_aligned


class Group:
    """``size`` processes, of which this one is number ``member``. All make the same calls, in the same order."""

    def __init__(self, world: World | None = None):
        """All ranks of the world, which must be on one machine; without a world, this process alone."""
        self.member, self.size = (world.rank, world.world_size) if world else (0, 1)
        self._world = world
        self._shared: list[SharedMemory] = []
        self._given: list[Counters] = []
        self._failed = False
        self._watch: Watch | None = None
        self._counters = self.counters(self.size)
        if world and self.size > 1:
            world.barrier()  # by now all of them hold their locks
            others = [member for member in range(self.size) if member != self.member]
            self._watch = Watch(self._shared[0], others, self._lost)

    def agreed(self, value: int) -> int:
        """The first member's ``value``: what all do must not depend on what each finds, such as its cores."""
        if self._world is None or self.size == 1:
            return value
        found, _ = self._world.broadcast(value, {})
        return int(found)

    def array(self, *shape: int, dtype: Any = np.float32) -> npt.NDArray[Any]:
        """Zeros that all members share."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        if self._world is None or self.size == 1:
            return _of(page_aligned(num_bytes, dtype=torch.uint8).numpy(), shape, dtype)
        memory = SharedMemory.create(num_bytes) if self.member == 0 else None
        address, _ = self._world.broadcast(memory.address if memory else "", {})
        memory = memory or SharedMemory.join(address, self.member)
        if memory.bytes.size != num_bytes:
            raise ValueError(f"found {memory.bytes.size:,} shared bytes, expected {num_bytes:,}, on rank {self.member}")
        self._shared.append(memory)
        return _of(memory.bytes[:num_bytes], shape, dtype)

    def counters(self, size: int) -> Counters:
        """The state of a barrier of ``size`` threads of all members. Only one computation at a time may use it."""
        self._given.append(make_counters(size, self.array(num_counters(size), dtype=np.int64)))
        if self._failed:
            fail(self._given[-1])
        return self._given[-1]

    def barrier(self) -> None:
        """Returns when all members have called it equally often. Raises LostPeer if one has ended."""
        if self.size > 1:
            barrier(self._counters, self.member, self.size)
            self.check(self._counters, self.member)

    def check(self, counters: Counters, member: int) -> None:
        """Raises LostPeer if a barrier let ``member`` pass because another process has ended."""
        if self._watch and not all_arrived(counters, member):
            raise LostPeer

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


def _of(memory: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = memory.view(dtype).reshape(shape)
    return array
