"""ArrowStream: reads what a plan says, row group by row group, and yields batches.

A row is copied three times on its way: from the file, by LZ4, and from its bits to its place in a batch. A thread does
that ahead of the consumer, in machine code without the GIL, many batches at a time; the consumer is handed views.

B rows of a batch, L = max_len targets a row, S batches of a chunk, N = S·B, R rows of a piece.
"""

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, cycle, pairwise
from pathlib import Path
from threading import Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.manifest import Manifest, ManifestError, ShardInfo
from training.kernels.threads import Team
from training.permutation import permutation
from training.plan import EpochPlan, Piece
from training.read_ahead import BetweenSteps, read_ahead
from training.shard import Layout, RowGroup, ShardError
from training.unpack import Int16, Int32, empty_rows

CHUNK_ROWS = 32_768
"""A chunk is as many batches as have this many rows, at least one: 8 MB at 60 targets a row.

Half of it would be too little for numpy to ask Linux for 2 MB pages, without which writing takes a fifth longer.
"""

Each = Callable[[list[Callable[[], None]]], None]
"""Does jobs, in any order."""

NUM_CHUNKS = 3
"""One in use, one that waits, and one that is being filled; where a team reads between steps, none waits."""


@dataclass(frozen=True)
class Batch:
    """A rank's rows of a step: int32 ``center_B`` and ``contexts_negatives_BL``, ``num_contexts_B`` (0: empty)."""

    center_B: Tensor
    contexts_negatives_BL: Tensor
    num_contexts_B: Tensor
    num_steps: int = 1
    """Steps whose rows these are, end to end."""

    @classmethod
    def empty(cls, num_rows: int, max_len: int) -> "Batch":
        """Rows without a context."""
        ids, counts = torch.zeros(num_rows, 1 + max_len, dtype=torch.int32), torch.zeros(num_rows, dtype=torch.int16)
        return cls(ids[:, 0].contiguous(), ids[:, 1:].contiguous(), counts)

    def to(self, device: torch.device) -> "Batch":
        center_B, targets_BL, num_contexts_B = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        return Batch(center_B, targets_BL, num_contexts_B, self.num_steps)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.center_B, self.contexts_negatives_BL, self.num_contexts_B


class ArrowStream:
    """The batches of one rank through one epoch, in the plan's order.

    Memory is NUM_CHUNKS chunks, and a row group a lane as it is stored; two a lane on a single rank, where neighbouring
    lanes share one.
    """

    def __init__(self, dataset: Path, manifest: Manifest, shards: Sequence[ShardInfo], plan: EpochPlan):
        self.dataset, self.shards, self.plan = dataset, shards, plan
        self._layout = Layout(manifest.max_len, 1 + manifest.config.negatives)
        self._metadata = lru_cache(maxsize=len(plan.lanes))(pq.read_metadata)  # of a shard's many row groups

    def batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        """Every step's batch: the rows of this rank's lanes, one after the other, each filled up with empty rows.

        A batch is valid until the next one is asked for, which may be in the same memory; it must not be written to.
        Raises ManifestError, with the file's name, in place of the first batch that has rows of a shard that is not
        what the manifest says or fails its checksums. Reads ahead in a thread, which ends with the iterator: close it
        when you leave it early.
        """
        with closing(read_epochs(lambda _: self, range(1), rank, world_size)) as epochs:
            for batches in epochs:
                yield from batches

    def read(self, piece: Piece) -> tuple[Int32, Int32, Int16]:
        """The piece's rows in the plan's order: center (R,), contexts_negatives (R, L), num_contexts (R,)."""
        row_group, order = self.opened(piece)
        return row_group.rows(order[piece.start : piece.stop])

    def ring(self, num_lanes: int, num_chunks: int = NUM_CHUNKS) -> "Iterator[_Chunk]":
        """Chunks in turn, for ``chunks``; before them one of a single batch, which is all that a run waits for."""
        num_rows = self.plan.rows_per_step * num_lanes
        num_batches = max(1, CHUNK_ROWS // num_rows)
        first, *others = (_Chunk(count, num_rows, self._layout.max_len) for count in (1, *[num_batches] * num_chunks))
        return chain([first], cycle(others))

    def chunks(
        self, lanes: Sequence[Sequence[Piece]], ring: "Iterator[_Chunk]", each: Each, at_once: int = 1, done: int = 0
    ) -> Iterator[Sequence[Batch]]:
        """The batches of these lanes, a chunk at a time; ``at_once`` and ``done`` as ``read_epochs`` has them."""
        share, steps_left = self.plan.rows_per_step, self.plan.num_steps
        row_groups = _RowGroups(self, lanes)
        rows = [_Lane(row_groups, pieces) for pieces in lanes]
        while steps_left:
            chunk = next(ring)
            count = min(chunk.num_batches, steps_left)
            errors: dict[int, ManifestError] = {}  # by the last good batch of a lane

            def fill(
                index: int,
                lane: _Lane,
                chunk: _Chunk = chunk,
                count: int = count,
                errors: dict[int, ManifestError] = errors,
            ) -> None:
                try:
                    lane.fill(chunk, index * share, share, count * share)
                except ManifestError as error:
                    errors.setdefault(lane.filled // share, error)

            each([partial(fill, index, lane) for index, lane in enumerate(rows)])
            count = min([count, *errors])
            if count:
                yield chunk.batches(count, at_once, done)
            if errors:
                raise errors[count]
            steps_left -= count
            done += count

    def opened(self, piece: Piece) -> tuple[RowGroup, Int32]:
        """The piece's row group, and the order of all its rows."""
        path = self.dataset / self.shards[piece.shard].path
        try:
            row_group = RowGroup.read(path, self._metadata(path), piece.row_group, piece.num_rows, self._layout)
        except (OSError, pa.ArrowException, UnicodeDecodeError, ShardError) as error:
            reason = " ".join(str(error).split())
            raise ManifestError(
                f"{path}: damaged or unreadable ({reason}); run prepare again with --overwrite"
            ) from None
        return row_group, permutation(piece.stream, piece.num_rows)


def read_epochs(
    make: Callable[[int], ArrowStream],
    epochs: Sequence[int],
    rank: int,
    world_size: int,
    at_once: int = 1,
    team: Team | None = None,
    done: int = 0,
) -> Generator[Iterator[Batch], None, None]:
    """For each epoch the batches of ``make(epoch)``, which ``ArrowStream.batches`` describes.

    A batch holds ``at_once`` steps, or fewer: none goes beyond a step whose number in the run, of which ``done`` came
    before, is a multiple of it.

    All epochs are read by one thread, or by ``team`` between its steps, which makes the streams too, and have the same
    memory: the first batch of an epoch has been read when the last one of the epoch before is done.
    """
    between_steps = BetweenSteps(team) if team else None
    each = between_steps.each if between_steps else one_by_one

    def chunks() -> Iterator[tuple[Sequence[Batch], bool]]:
        """With each chunk whether it ends its epoch."""
        ring, before = None, done
        for epoch in epochs:
            stream = make(epoch)
            lanes = stream.plan.of_rank(rank, world_size)
            ring = ring or stream.ring(len(lanes), NUM_CHUNKS - 1 if team else NUM_CHUNKS)
            steps_left = stream.plan.num_steps
            if not steps_left:
                yield (), True
            for batches in stream.chunks(lanes, ring, each, at_once, before):
                steps_left -= sum(batch.num_steps for batch in batches)
                yield batches, not steps_left
            before += stream.plan.num_steps

    def one_epoch() -> Iterator[Sequence[Batch]]:
        for batches, is_last in ahead:
            yield batches
            if is_last:
                return

    with closing(between_steps.read(chunks()) if between_steps else read_ahead(chunks(), NUM_CHUNKS)) as ahead:
        for _ in epochs:
            batches = chain.from_iterable(one_epoch())
            yield batches
            for _ in batches:
                pass  # that the caller has left


def one_by_one(jobs: list[Callable[[], None]]) -> None:
    for job in jobs:
        job()


class _Chunk:
    """Memory of S batches, used again and again, and the batches as views of it."""

    def __init__(self, num_batches: int, num_rows: int, max_len: int):
        size = num_batches * num_rows
        # numpy, unlike torch, asks Linux for 2 MB pages where an array is large.
        self.center_N = np.zeros(size, dtype=np.int32)
        self.targets_NL = np.zeros((size, max_len), dtype=np.int32)
        self.num_contexts_N = np.zeros(size, dtype=np.int16)
        self.num_batches, self.num_rows = num_batches, num_rows
        self._columns = [torch.from_numpy(column) for column in (self.center_N, self.targets_NL, self.num_contexts_N)]

    def batches(self, count: int, at_once: int, done: int) -> list[Batch]:
        """The first ``count`` steps, cut where the run's (``done`` came before) are a multiple of ``at_once``."""
        cuts = [0, *range(at_once - done % at_once, count, at_once), count]
        steps = [end - begin for begin, end in pairwise(cuts)]
        rows = [self.num_rows * num_steps for num_steps in steps]
        center, targets, num_contexts = (torch.split(column[: self.num_rows * count], rows) for column in self._columns)
        return [Batch(*parts) for parts in zip(center, targets, num_contexts, steps, strict=True)]


class _RowGroups:
    """The row groups of a rank's lanes: each is read when first asked for, and kept until no lane is to ask for it."""

    def __init__(self, stream: ArrowStream, lanes: Sequence[Sequence[Piece]]):
        self._stream = stream
        self._uses = Counter((piece.shard, piece.row_group) for pieces in lanes for piece in pieces)
        self._kept: dict[tuple[int, int], tuple[RowGroup, Int32]] = {}
        self._lock = Lock()

    def of(self, piece: Piece) -> tuple[RowGroup, Int32]:
        key = piece.shard, piece.row_group
        found = self._kept.get(key) or self._stream.opened(piece)  # two lanes at the same time may read it twice
        with self._lock:
            self._uses[key] -= 1
            self._kept[key] = found
            if not self._uses[key]:
                del self._kept[key]
        return found


class _Lane:
    """Hands out the rows of a lane's pieces in order, holding one piece at a time."""

    def __init__(self, row_groups: _RowGroups, pieces: Sequence[Piece]):
        self._row_groups = row_groups
        self._pieces = iter(pieces)
        self._row_group: RowGroup | None = None
        self._order = np.zeros(0, dtype=np.int32)
        self.filled = 0
        """Rows of the chunk that the last ``fill`` has written."""

    def fill(self, chunk: _Chunk, offset: int, share: int, num_rows: int) -> None:
        """Writes the lane's next rows, ``share`` to a batch from its row ``offset`` on; empty ones when it has run out.

        Raises ManifestError.
        """
        self.filled = 0
        arrays = chunk.center_N[offset:], chunk.targets_NL[offset:], chunk.num_contexts_N[offset:]
        while self.filled < num_rows:
            count = min(num_rows - self.filled, self._order.size)
            if count:
                assert self._row_group
                self._row_group.unpack(self._order[:count], self.filled, share, chunk.num_rows, *arrays)
                self._order = self._order[count:]
            elif (piece := next(self._pieces, None)) is not None:
                self._row_group = None  # no more than one at a time
                self._row_group, order = self._row_groups.of(piece)
                self._order = order[piece.start : piece.stop]
            else:
                self._row_group = None
                count = num_rows - self.filled
                empty_rows(count, self.filled, share, chunk.num_rows, *arrays)
            self.filled += count
