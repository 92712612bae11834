"""ArrowStream: reads what a plan says, row group by row group, and yields batches.

A row is copied three times on its way: from the file, by LZ4, and from its bits to its place in a batch. A thread does
that ahead of the consumer, in machine code without the GIL, many batches at a time; the consumer is handed views.
Shards on this machine are read when they are needed; those elsewhere are fetched before, by threads that mostly wait.

B rows of a batch, L = max_len targets a row, S batches of a chunk, N = S·B, R rows of a piece.
"""

from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, cycle, pairwise
from pathlib import Path
from threading import Event, Lock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from pipeline.manifest import Manifest, ManifestError, ShardInfo
from pipeline.storage import Location
from training.kernels.threads import Team
from training.permutation import permutation
from training.plan import EpochPlan, Piece
from training.read_ahead import BetweenSteps, read_ahead
from training.remote import FetchAhead, RowGroupOf, remote_shards
from training.shard import Layout, RowGroup, ShardError
from training.shard_cache import ShardCache
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
    lanes share one; and one more, the next, for shards that do not lie on this machine. ``cache`` is for these alone.
    """

    def __init__(
        self,
        dataset: str | Path | Location,
        manifest: Manifest,
        shards: Sequence[ShardInfo],
        plan: EpochPlan,
        cache: ShardCache | None = None,
    ):
        self.dataset, self.shards, self.plan = Location.of(dataset), shards, plan
        self._folder = self.dataset.local
        self._remote = remote_shards(self.dataset, cache) if self._folder is None else None
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
        num_rows, num_batches = self.plan.rows_per_step * num_lanes, self._chunk_batches(num_lanes)
        first, *others = (_Chunk(count, num_rows, self._layout.max_len) for count in (1, *[num_batches] * num_chunks))
        return chain([first], cycle(others))

    def expect(self, lanes: Sequence[Sequence[Piece]], fetch: FetchAhead) -> None:
        """Begins to fetch what the first chunk of these lanes needs, and what comes after it."""
        num_rows = self._chunk_batches(len(lanes)) * self.plan.rows_per_step
        self._expect(chain.from_iterable(_upcoming(pieces, 0, num_rows) for pieces in lanes), fetch)

    def chunks(
        self,
        lanes: Sequence[Sequence[Piece]],
        ring: "Iterator[_Chunk]",
        each: Each,
        fetch: FetchAhead,
        at_once: int = 1,
        done: int = 0,
    ) -> Iterator[Sequence[Batch]]:
        """The batches of these lanes, a chunk at a time; ``at_once`` and ``done`` as ``read_epochs`` has them."""
        share, steps_left = self.plan.rows_per_step, self.plan.num_steps
        ahead = self._chunk_batches(len(lanes)) * share
        row_groups = _RowGroups(self, lanes, fetch)
        rows = [_Lane(row_groups, pieces) for pieces in lanes]
        self.expect(lanes, fetch)
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
            if self._remote and not errors:
                upcoming = chain.from_iterable(lane.upcoming(ahead) for lane in rows)
                self._expect(((piece, soon) for piece, soon in upcoming if not row_groups.holds(piece)), fetch)
            if count:
                yield chunk.batches(count, at_once, done)
            if errors:
                raise errors[count]
            steps_left -= count
            done += count

    def opened(self, piece: Piece, fetch: FetchAhead | None = None) -> tuple[RowGroup, Int32]:
        """The piece's row group, and the order of all its rows."""
        shard = self.shards[piece.shard]
        wanted = piece.row_group, piece.num_rows, self._layout
        try:
            if self._folder:
                path = self._folder / shard.path
                row_group = RowGroup.read(path, self._metadata(path), *wanted)
            else:
                row_group = self._fetched(piece, fetch)
        except (OSError, pa.ArrowException, UnicodeDecodeError, ShardError) as error:
            reason = " ".join(str(error).split())
            raise ManifestError(
                f"{self.dataset / shard.path}: damaged or unreadable ({reason}); run prepare again with --overwrite"
            ) from None
        return row_group, permutation(piece.stream, piece.num_rows)

    def _fetched(self, piece: Piece, fetch: FetchAhead | None) -> RowGroup:
        """Fetched once more where it proves damaged, since it may be so only here, or in the cache."""
        shard, row_group = self._remote_row_group(piece)
        try:
            stored = fetch.take(shard, row_group) if fetch else shard.fetch(row_group, Event())
            return stored.decode(row_group, piece.num_rows, self._layout)
        except (pa.ArrowException, UnicodeDecodeError, ShardError):
            return shard.fetch(row_group, Event(), fresh=True).decode(row_group, piece.num_rows, self._layout)

    def _remote_row_group(self, piece: Piece) -> RowGroupOf:
        assert self._remote
        return self._remote(self.shards[piece.shard]), piece.row_group

    def _chunk_batches(self, num_lanes: int) -> int:
        return max(1, CHUNK_ROWS // (self.plan.rows_per_step * num_lanes))

    def _expect(self, pieces: Iterable[tuple[Piece, bool]], fetch: FetchAhead) -> None:
        """With each piece whether the next chunk needs it."""
        if self._remote:
            keys = [(self._remote_row_group(piece), soon) for piece, soon in pieces]
            fetch.expect([key for key, soon in keys if soon], [key for key, soon in keys if not soon])


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
    fetch = FetchAhead()

    def chunks() -> Iterator[tuple[Sequence[Batch], bool]]:
        """With each chunk whether it ends its epoch."""
        ring, before = None, done
        streams = map(make, epochs)
        following = next(streams, None)
        while (stream := following) is not None:
            lanes = stream.plan.of_rank(rank, world_size)
            ring = ring or stream.ring(len(lanes), NUM_CHUNKS - 1 if team else NUM_CHUNKS)
            steps_left = stream.plan.num_steps
            if not steps_left:
                following = next(streams, None)
                yield (), True
            for batches in stream.chunks(lanes, ring, each, fetch, at_once, before):
                steps_left -= sum(batch.num_steps for batch in batches)
                if not steps_left and (following := next(streams, None)):
                    following.expect(following.plan.of_rank(rank, world_size), fetch)
                yield batches, not steps_left
            before += stream.plan.num_steps

    def one_epoch() -> Iterator[Sequence[Batch]]:
        for batches, is_last in ahead:
            yield batches
            if is_last:
                return

    items = between_steps.read(chunks(), fetch.is_ready) if between_steps else read_ahead(chunks(), NUM_CHUNKS)
    with closing(items) as ahead, closing(fetch):
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

    def __init__(self, stream: ArrowStream, lanes: Sequence[Sequence[Piece]], fetch: FetchAhead):
        self._stream, self._fetch = stream, fetch
        self._uses = Counter((piece.shard, piece.row_group) for pieces in lanes for piece in pieces)
        self._kept: dict[tuple[int, int], tuple[RowGroup, Int32]] = {}
        self._lock = Lock()

    def of(self, piece: Piece) -> tuple[RowGroup, Int32]:
        key = piece.shard, piece.row_group
        found = self._kept.get(key) or self._stream.opened(
            piece, self._fetch
        )  # two lanes at the same time may read it twice
        with self._lock:
            self._uses[key] -= 1
            self._kept[key] = found
            if not self._uses[key]:
                del self._kept[key]
        return found

    def holds(self, piece: Piece) -> bool:
        """Whether it need not be read any more."""
        return (piece.shard, piece.row_group) in self._kept


class _Lane:
    """Hands out the rows of a lane's pieces in order, holding one piece at a time."""

    def __init__(self, row_groups: _RowGroups, pieces: Sequence[Piece]):
        self._row_groups = row_groups
        self._pieces = deque(pieces)
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
            elif self._pieces:
                piece = self._pieces.popleft()
                self._row_group = None  # no more than one at a time
                self._row_group, order = self._row_groups.of(piece)
                self._order = order[piece.start : piece.stop]
            else:
                self._row_group = None
                count = num_rows - self.filled
                empty_rows(count, self.filled, share, chunk.num_rows, *arrays)
            self.filled += count

    def upcoming(self, num_rows: int) -> Iterator[tuple[Piece, bool]]:
        """The pieces that begin within the next ``num_rows`` rows, and, with False, the one after these."""
        return _upcoming(self._pieces, self._order.size, num_rows)


def _upcoming(pieces: Iterable[Piece], begin: int, num_rows: int) -> Iterator[tuple[Piece, bool]]:
    """The pieces that begin before row ``num_rows`` when the first begins at ``begin``, and, with False, one more."""
    for piece in pieces:
        yield piece, begin < num_rows
        if begin >= num_rows:
            return
        begin += piece.stop - piece.start
