"""ArrowStream: reads what a plan says, row group by row group, and yields batches.

A row is copied three times on its way: from the file, by LZ4, and from its bits to its place in a batch. A thread does
that ahead of the consumer, in machine code without the GIL, many batches at a time; the consumer is handed views.
Shards on this machine are read when they are needed; those elsewhere are fetched before, by threads that mostly wait.

B rows of a batch, L = max_len targets a row, S batches of a chunk, N = S·B, R rows of a piece.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import lru_cache, partial
from itertools import chain, cycle
from pathlib import Path
from threading import Event

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.decode import Layout, RowGroup, ShardError
from pipeline.dataset.manifest_file import Manifest, ManifestError, ShardInfo
from pipeline.dataset.unpacking import Int16, Int32
from pipeline.shared.errors import one_line
from pipeline.shared.storage import Location
from training.model.batch import Batch
from training.model.kernels.threads import Team
from training.reading.lanes import Chunk, Lane, Opened, RowGroups, upcoming
from training.reading.permutation import permutation
from training.reading.plan import EpochPlan, Piece
from training.reading.prefetch import BetweenSteps, read_ahead
from training.reading.remote import FetchAhead, RowGroupOf, remote_shards
from training.reading.shard_cache import ShardCache

CHUNK_ROWS = 32_768
"""A chunk is as many batches as have this many rows, at least one: 8 MB at 60 targets a row.

Half of it would be too little for numpy to ask Linux for 2 MB pages, without which writing takes a fifth longer.
"""

Each = Callable[[list[Callable[[], None]]], None]
"""Does jobs, in any order."""

NUM_CHUNKS = 3
"""One in use, one that waits, and one that is being filled; where a team reads between steps, none waits."""


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

    def ring(self, num_lanes: int, num_chunks: int = NUM_CHUNKS) -> Iterator[Chunk]:
        """Chunks in turn, for ``chunks``; before them one of a single batch, which is all that a run waits for."""
        num_rows, num_batches = self.plan.rows_per_step * num_lanes, self._chunk_batches(num_lanes)
        first, *others = (Chunk(count, num_rows, self._layout.max_len) for count in (1, *[num_batches] * num_chunks))
        return chain([first], cycle(others))

    def expect(self, lanes: Sequence[Sequence[Piece]], fetch: FetchAhead) -> None:
        """Begins to fetch what the first chunk of these lanes needs, and what comes after it."""
        num_rows = self._chunk_batches(len(lanes)) * self.plan.rows_per_step
        self._expect(chain.from_iterable(upcoming(pieces, 0, num_rows) for pieces in lanes), fetch)

    def chunks(
        self,
        lanes: Sequence[Sequence[Piece]],
        ring: Iterator[Chunk],
        each: Each,
        fetch: FetchAhead,
        at_once: int = 1,
        done: int = 0,
    ) -> Iterator[Sequence[Batch]]:
        """The batches of these lanes, a chunk at a time; ``at_once`` and ``done`` as ``read_epochs`` has them."""
        share, steps_left = self.plan.rows_per_step, self.plan.num_steps
        ahead = self._chunk_batches(len(lanes)) * share
        row_groups = RowGroups(partial(self.opened, fetch=fetch), lanes)
        rows = [Lane(row_groups, pieces) for pieces in lanes]
        self.expect(lanes, fetch)
        while steps_left:
            chunk = next(ring)
            count = min(chunk.num_batches, steps_left)
            errors: dict[int, ManifestError] = {}  # by the last good batch of a lane

            def fill(
                index: int,
                lane: Lane,
                chunk: Chunk = chunk,
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

    def opened(self, piece: Piece, fetch: FetchAhead | None = None) -> Opened:
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
            reason = one_line(error)
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
