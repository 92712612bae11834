"""Batches on a device: copied in chunks while earlier batches train, or kept there from their first epoch on.

S steps of an epoch, B rows of a rank's batch, L = max_len targets a row, R rows of a row group.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, chain, cycle, islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.dataset.manifest_file import ShardInfo
from pipeline.dataset.unpacking import Rows
from training.model.batch import Batch
from training.reading.permutation import permutation
from training.reading.plan import EpochPlan, Piece

CHUNK_BATCHES = 64
CHUNK_BYTES = 32 << 20
"""A chunk is as many batches as both limits allow: copying a few MB takes little longer than copying one batch."""


def copied(batches: Iterator[Batch], device: torch.device) -> Iterator[Batch]:
    """Yields the same batches on ``device``, for the CUDA stream that is current when a batch is taken.

    A chunk is copied while the one before it trains: two chunks are in pinned memory, and a few on the device.
    """
    chunks = _chunks(batches, device)
    ahead = next(chunks, None)
    while ahead is not None:
        chunk, ahead = ahead, next(chunks, None)
        yield from chunk


def _chunks(batches: Iterator[Batch], device: torch.device) -> Iterator[Iterator[Batch]]:
    first = next(batches, None)
    if first is None:
        return
    batch_bytes = sum(tensor.nbytes for tensor in first.tensors())
    num_batches = max(1, min(CHUNK_BATCHES, CHUNK_BYTES // batch_bytes))
    copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
    stages = [_Stage(first, num_batches, device, copies) for _ in range(2)]
    rest = chain([first], batches)
    for stage in cycle(stages):
        chunk = stage.send(islice(rest, num_batches))
        if chunk is None:
            return
        yield chunk


class _Stage:
    """Host memory for one chunk, pinned and copied on the stream ``copies`` if ``device`` is a GPU."""

    def __init__(self, like: Batch, num_batches: int, device: torch.device, copies: torch.cuda.Stream | None):
        self._device, self._copies = device, copies
        self._sent: torch.cuda.Event | None = None
        self._host = [
            torch.empty((num_batches * len(part), *part.shape[1:]), dtype=part.dtype, pin_memory=copies is not None)
            for part in like.tensors()
        ]

    def send(self, batches: Iterator[Batch]) -> Iterator[Batch] | None:
        """Starts the copy. Returns an iterator that yields the batches once it is finished; None without batches.

        Each batch is valid until the next one is requested.
        """
        if self._sent is not None:
            self._sent.synchronize()  # the last copy may still be reading this memory
        num_batches = num_rows = 0
        for batch in batches:
            rows = slice(num_rows, num_rows + len(batch.center_B))
            for host, part in zip(self._host, batch.tensors(), strict=True):
                host[rows] = part
            num_batches, num_rows = num_batches + 1, rows.stop
        if not num_batches:
            return None
        with torch.cuda.stream(self._copies):
            there = [host[:num_rows].to(self._device, non_blocking=True, copy=True) for host in self._host]
            self._sent = self._copies.record_event() if self._copies is not None else None
        return self._received(there, num_batches, self._sent)

    def _received(self, there: list[Tensor], num_batches: int, sent: torch.cuda.Event | None) -> Iterator[Batch]:
        if sent is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(sent)
            for tensor in there:
                tensor.record_stream(current)  # or the stream of the copies, which owns it, would reuse it too soon
        for parts in zip(*(tensor.chunk(num_batches) for tensor in there), strict=True):
            yield Batch(*parts)


class KeptRows:
    """The rows of one sampled epoch, kept on a device from their first use on, so that batches are only looked up.

    Every rank keeps all rows, because each epoch distributes them differently. ``read`` is ArrowStream's. A row group
    is read once, whole, when a step first needs one of its rows.
    """

    def __init__(
        self,
        read: Callable[[Piece], Rows],
        shards: Sequence[ShardInfo],
        row_group_rows: int,
        max_len: int,
        device: torch.device,
    ):
        self._read, self._row_group_rows, self._device = read, row_group_rows, device
        self._first = np.cumsum([0, *(shard.rows for shard in shards)], dtype=np.int64)
        """The number of each shard's first row, counted over all shards, and the total number of rows."""
        num_rows = int(self._first[-1]) + 1  # the last one stays empty
        self._kept: set[tuple[int, int]] = set()
        self._rows = (
            torch.zeros(num_rows, dtype=torch.int32, device=device),
            torch.zeros((num_rows, max_len), dtype=torch.int32, device=device),
            torch.zeros(num_rows, dtype=torch.int16, device=device),
        )

    def batches(self, plan: EpochPlan, rank: int, world_size: int) -> Iterator[Batch]:
        """The batches of ``ArrowStream.batches`` for the plan, on the device. Raises the errors of ``read``."""
        order_SB = torch.from_numpy(self.order(plan, rank, world_size)).to(self._device)
        first_needed = _pieces_by_step(plan, rank, world_size)
        for step, row_B in enumerate(order_SB):
            for piece in first_needed.get(step, ()):
                self._keep(piece)
            center_B, targets_BL, num_contexts_B = (column.index_select(0, row_B) for column in self._rows)
            yield Batch(center_B, targets_BL, num_contexts_B)

    def order(self, plan: EpochPlan, rank: int, world_size: int) -> npt.NDArray[np.int64]:
        """The row number in each place of a rank's batches, (S, B). Empty places contain the one after the last."""
        lanes = []
        for pieces in plan.of_rank(rank, world_size):
            lane = np.full(plan.num_steps * plan.rows_per_step, self._first[-1])
            filled = 0
            for piece in pieces:
                lane[filled : filled + piece.size] = self._rows_of(piece)
                filled += piece.size
            lanes.append(lane.reshape(plan.num_steps, plan.rows_per_step))
        return np.concatenate(lanes, axis=1)

    def _rows_of(self, piece: Piece) -> npt.NDArray[np.int64]:
        order = permutation(piece.stream, piece.num_rows)[piece.start : piece.stop]
        # Cast to 64 bits here, because NumPy 1 would return 32.
        return np.asarray(self._first[piece.shard] + piece.row_group * self._row_group_rows + order.astype(np.int64))

    def _keep(self, piece: Piece) -> None:
        if piece.key in self._kept:
            return
        whole = piece._replace(start=0, stop=piece.num_rows)
        rows_R = torch.from_numpy(self._rows_of(whole)).to(self._device)
        for kept, read in zip(self._rows, self._read(whole), strict=True):
            kept.index_copy_(0, rows_R, torch.from_numpy(read).to(self._device))
        self._kept.add(piece.key)


def can_keep(num_rows: int, max_len: int, memory_bytes: int) -> bool:
    """Whether KeptRows and an epoch's order take at most half of the device's memory."""
    return num_rows * (4 + 4 * max_len + 2 + 8) <= memory_bytes // 2


def _pieces_by_step(plan: EpochPlan, rank: int, world_size: int) -> dict[int, list[Piece]]:
    """The pieces of a rank's lanes by the step that takes their first row."""
    found = defaultdict(list)
    for pieces in plan.of_rank(rank, world_size):
        begins = accumulate((piece.size for piece in pieces), initial=0)
        for piece, begin in zip(pieces, begins, strict=False):
            found[begin // plan.rows_per_step].append(piece)
    return found
