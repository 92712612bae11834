"""The order of an epoch, as pure functions: which rows each step contains, on which rank.

An epoch's shards are permuted; their rows, end to end and permuted inside each row group, are cut into equal ranges,
the *lanes*. A global batch takes the next rows of every lane; rank r of W serves lanes r, r + W, ... So the content of
global batch g does not depend on W, every rank takes the same number of steps, and (epoch, step) is the whole state.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from pipeline.dataset.manifest_file import ShardInfo
from pipeline.shared.randomness import Purpose, permutation, stream


class Piece(NamedTuple):
    """Rows ``start`` to ``stop`` of one row group, *in its permuted order*; ``shard`` is an index into the shards."""

    shard: int
    row_group: int
    num_rows: int
    """Rows of the whole row group, and so the length of its permutation."""
    start: int
    stop: int
    stream: int
    """The random stream of the row group's permutation, the same for all lanes that share the row group."""

    @property
    def key(self) -> tuple[int, int]:
        """Identifies the row group."""
        return self.shard, self.row_group

    @property
    def size(self) -> int:
        """Rows of the piece."""
        return self.stop - self.start


@dataclass(frozen=True)
class EpochPlan:
    """The lanes of one epoch. Each contributes ``rows_per_step`` rows to a step: empty rows once it has run out."""

    lanes: tuple[tuple[Piece, ...], ...]
    rows_per_step: int
    num_steps: int

    def of_rank(self, rank: int, world_size: int) -> tuple[tuple[Piece, ...], ...]:
        """The lanes that one rank serves. ``world_size`` divides the number of lanes."""
        assert len(self.lanes) % world_size == 0
        return self.lanes[rank::world_size]

    def pieces(self, rank: int, world_size: int, steps: Sequence[int]) -> Iterator[tuple[list[Piece], ...]]:
        """For each number in ``steps``, the pieces of each of the rank's lanes that this many next steps read."""
        sizes = [num_steps * self.rows_per_step for num_steps in steps]
        return zip(*(cut(lane, sizes) for lane in self.of_rank(rank, world_size)), strict=True)

    def after(self, step: int) -> "EpochPlan":
        """The rest of the epoch after its first ``step`` steps."""
        sizes = step * self.rows_per_step, sys.maxsize
        lanes = tuple(tuple(rest) for _, rest in (cut(lane, sizes) for lane in self.lanes))
        return replace(self, lanes=lanes, num_steps=self.num_steps - step)


def cut(pieces: Iterable[Piece], sizes: Iterable[int]) -> Iterator[list[Piece]]:
    """Cuts the rows of ``pieces``, end to end, into ranges of these sizes. Yields the pieces of each range.

    When the rows run out, the range is shorter, and the ranges after it are empty.
    """
    rest = iter(pieces)
    piece = next(rest, None)
    for size in sizes:
        found, wanted = [], size
        while wanted and piece:
            stop = min(piece.stop, piece.start + wanted)
            found.append(piece._replace(stop=stop))
            wanted -= stop - piece.start
            piece = piece._replace(start=stop) if stop < piece.stop else next(rest, None)
        yield found


def plan_epoch(
    shards: Sequence[ShardInfo], row_group_rows: int, seed: int, epoch: int, lanes: int, global_batch: int
) -> EpochPlan:
    """The plan of epoch ``epoch``, which reads ``shards``: a pure function, the same on every rank.

    A step has ``global_batch`` rows, divisible by ``lanes``. The lengths of lanes differ by at most one row, so only
    the last steps contain empty rows.
    """
    total = sum(shard.rows for shard in shards)
    borders = [total * lane // lanes for lane in range(lanes + 1)]
    row_groups = _row_groups(shards, row_group_rows, seed, epoch)
    cut_lanes = cut(row_groups, [last - first for first, last in pairwise(borders)])
    return EpochPlan(tuple(map(tuple, cut_lanes)), global_batch // lanes, num_steps(total, lanes, global_batch))


def num_steps(num_rows: int, lanes: int, global_batch: int) -> int:
    """The number of steps of an epoch of ``num_rows`` rows: that of the longest lane; the others are filled up."""
    longest = -(-num_rows // lanes)
    return -(-longest // (global_batch // lanes))


def _row_groups(shards: Sequence[ShardInfo], row_group_rows: int, seed: int, epoch: int) -> list[Piece]:
    """All row groups in the epoch's order, as whole pieces."""
    pieces = []
    for shard in permutation(stream(seed, Purpose.SHARD_ORDER, epoch), len(shards)).tolist():
        for row_group, first in enumerate(range(0, shards[shard].rows, row_group_rows)):
            num_rows = min(row_group_rows, shards[shard].rows - first)
            order = stream(seed, Purpose.ROW_ORDER, epoch, shard, row_group)
            pieces.append(Piece(shard, row_group, num_rows, 0, num_rows, order))
    return pieces
