"""ArrowStream: reads the rows of a plan and yields batches.

    plan -> pieces -> row groups, opened here or fetched -> chunks, filled ahead of training -> batches

Each arrow is a generator. ``prefetch`` fills chunks ahead of the consumer, which gets views of them. They are filled by
a thread, or by the training threads between their steps; either way in machine code, without the GIL.

B rows of a batch, L = max_len targets a row, R rows of a piece.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing
from functools import lru_cache, partial
from itertools import chain, cycle, pairwise
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.decode import UNREADABLE, Layout, RowGroup, ShardError
from pipeline.dataset.manifest_file import Manifest, ShardInfo
from pipeline.dataset.unpacking import Places, Rows
from pipeline.shared.storage import Location
from training.model.batch import Batch
from training.model.kernels.group import Group
from training.model.kernels.threads import Team
from training.reading.chunk import Chunk
from training.reading.permutation import permutation
from training.reading.plan import EpochPlan, Piece
from training.reading.prefetch import nothing, prefetch
from training.reading.remote import Requests, Stored, remote_shards
from training.reading.row_groups import LazyRowGroup, Opened, Part, damaged, row_groups
from training.reading.shard_cache import ShardCache

CHUNK_ROWS = 32_768
"""A chunk has as many steps as fit into this many rows, but at least one: 8 MB at 60 targets a row.

For arrays of half this size, numpy would not ask Linux for 2 MB pages, and writing would take a fifth longer.
"""

NUM_CHUNKS = 3
"""One in use, one that waits, and one that is being filled. If a team reads between its steps, no chunk waits."""


class ArrowStream:
    """The batches of one epoch, in the plan's order, for any rank.

    A rank's memory is NUM_CHUNKS chunks, and one row group per lane as it is stored. On a single rank it is two per
    lane, because a row group that two neighbouring lanes share is kept until both have read it. Remote shards need
    another one per lane, which is fetched ahead. ``cache`` is only for remote shards.
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
        self.layout = Layout.of(manifest)
        self.remote = remote_shards(self.dataset, cache) if self.dataset.local is None else None
        self._metadata = lru_cache(maxsize=len(plan.lanes))(pq.read_metadata)  # of a shard's many row groups

    def batches(self, rank: int, world_size: int) -> Iterator[Batch]:
        """Yields each step's batch: the rows of this rank's lanes, one after the other, each filled up with empty rows.

        A batch is valid until the next one is requested, which may use the same memory. Do not write to it. Raises
        ManifestError, with the file's name, in place of the first batch with rows of a shard that is damaged or differs
        from the manifest. Reads ahead in a thread, which ends with the iterator: close the iterator if you stop early.
        """
        with closing(read_epochs(lambda _: self, range(1), rank, world_size)) as epochs:
            for batches in epochs:
                yield from batches

    def read(self, piece: Piece) -> Rows:
        """The piece's rows in the plan's order: center (R,), contexts_negatives (R, L), num_contexts (R,).

        Raises ManifestError.
        """
        found = Rows.zeros(piece.size, self.layout.max_len)
        self.opened(piece).unpack(piece, Places.all(), found)
        return found

    def begin(self, piece: Piece, requests: Requests) -> LazyRowGroup:
        """The piece's row group, to be opened later. Starts to fetch it if it is remote."""
        fetch = requests.begin(self.remote(self.shards[piece.shard]), piece.row_group) if self.remote else None
        return LazyRowGroup(partial(self.opened, piece), fetch)

    def opened(self, piece: Piece, fetch: Future[Stored] | None = None) -> Opened:
        """Opens the piece's row group, and computes the order of all its rows. Raises ManifestError."""
        shard = self.shards[piece.shard]
        where = self.dataset / shard.path
        try:
            if self.remote:
                row_group = self._fetched(piece, fetch)
            else:
                rest = self._metadata(where.path), piece.row_group, piece.num_rows, self.layout
                row_group = RowGroup.read(where.reader(), *rest)
        except UNREADABLE as error:
            raise damaged(where, error) from None
        return Opened(where, row_group, permutation(piece.stream, piece.num_rows))

    def _fetched(self, piece: Piece, fetch: Future[Stored] | None) -> RowGroup:
        """Fetches a damaged row group once more, because perhaps only this copy, or the cache's, is damaged."""
        assert self.remote
        shard = self.remote(self.shards[piece.shard])

        def decoded(stored: Stored) -> RowGroup:
            return RowGroup.read(stored.read, stored.metadata, piece.row_group, piece.num_rows, self.layout)

        try:
            return decoded(fetch.result() if fetch else shard.fetch(piece.row_group, Requests()))
        except (pa.ArrowException, UnicodeDecodeError, ShardError):
            return decoded(shard.fetch(piece.row_group, Requests(), fresh=True))


def read_epochs(
    make: Callable[[int], ArrowStream],
    epochs: Sequence[int],
    rank: int,
    world_size: int,
    at_once: int = 1,
    team: Team | None = None,
    done: int = 0,
    group: Group | None = None,
) -> Generator[Iterator[Batch], None, None]:
    """For each epoch, the batches of ``make(epoch)``, as ``ArrowStream.batches`` describes them.

    A batch contains at most ``at_once`` steps: it ends where the run's number of steps is a multiple of ``at_once``.
    ``done`` is the number of steps of the run before these epochs.

    The ranks of a ``group`` get the same batches, those of rank ``rank``: on each machine each rank writes the rows of
    some lanes to memory that they share.

    One thread, or ``team`` between its steps, reads all epochs into the same memory. So the first batch of an epoch is
    ready when the previous epoch ends.
    """
    requests, in_use = Requests(), NUM_CHUNKS - 1 if team else NUM_CHUNKS
    streams: Iterator[ArrowStream] = map(make, epochs)
    shared = None
    if group and len(epochs):
        first = next(streams)
        streams = chain([first], streams)
        step_rows = first.plan.rows_per_step * len(first.plan.of_rank(rank, world_size))
        most = max(1, CHUNK_ROWS // step_rows)
        memory = [Rows.of(group.array, most * step_rows, first.layout.max_len) for _ in range(in_use)]
        shared = Shared(memory, group.here.rank, group.here.world_size)
    unfilled = chunks_of(streams, rank, world_size, in_use, requests, at_once, done, shared)
    chunks = prefetch(unfilled, in_use, team, group.barrier if group else nothing)
    with closing(chunks), closing(requests):
        for _ in epochs:
            batches = _epoch(chunks)
            yield batches
            for _ in batches:
                pass  # drops the batches that the caller did not take


class Shared(NamedTuple):
    """Memory of chunks that ``size`` processes fill, of which this one is number ``number``."""

    memory: Sequence[Rows]
    number: int
    size: int


def _epoch(chunks: Iterator[Chunk]) -> Iterator[Batch]:
    for chunk in chunks:
        yield from chunk.batches()
        if chunk.ends_epoch:
            return


def chunks_of(
    streams: Iterable[ArrowStream],
    rank: int,
    world_size: int,
    in_use: int,
    requests: Requests,
    at_once: int = 1,
    done: int = 0,
    shared: Shared | None = None,
) -> Iterator[Chunk]:
    """Yields the unfilled chunks of one epoch after the other. They use the memory of ``in_use`` chunks in turn.

    In ``shared`` memory, the process fills only its part of the lanes.

    The first chunk has one step, so that a run begins soon. For remote shards, a chunk is yielded once as many row
    groups of later chunks are being fetched as there are lanes.
    """
    memory: Iterator[Rows] | None = None
    number, size = (shared.number, shared.size) if shared else (0, 1)
    own = rank + world_size * number, world_size * size  # of the rank's lanes every size-th
    waiting: deque[tuple[int, Chunk]] = deque()
    for stream in streams:
        plan, lanes = stream.plan, stream.plan.of_rank(*own)
        num_rows = plan.rows_per_step * len(lanes) * size
        most = max(1, CHUNK_ROWS // num_rows)
        ends = [*range(most if memory else 1, plan.num_steps, most), plan.num_steps]
        if memory is None:
            made = [Rows.zeros(most * num_rows, stream.layout.max_len) for _ in range(0 if shared else in_use)]
            memory = cycle(shared.memory if shared else made)
        steps = [last - first for first, last in pairwise([0, *ends])]
        parts = row_groups(lanes, plan.pieces(*own, steps), partial(stream.begin, requests=requests))
        for end, num_steps, of_lanes in zip(ends, steps, parts, strict=True):
            ends_epoch = end == plan.num_steps
            placed: list[list[Part] | None] = [None] * (len(lanes) * size)
            placed[number::size] = of_lanes
            chunk = Chunk(placed, plan.rows_per_step, num_steps, next(memory), at_once, done, ends_epoch)
            waiting.append((requests.num_begun + (len(lanes) if stream.remote else 0), chunk))
            while waiting and requests.num_begun >= waiting[0][0]:
                yield waiting.popleft()[1]
            done += num_steps
    yield from (chunk for _, chunk in waiting)
