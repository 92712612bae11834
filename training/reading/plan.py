"""The order of an epoch, as pure code: which rows make which step, on which rank.

An epoch's shards are permuted; their rows, end to end and permuted inside each row group, are cut into equal ranges,
the *lanes*. A global batch takes the next rows of every lane; rank r of W serves lanes r, r + W, ... So what is in
global batch g does not depend on W, every rank makes the same number of steps, and (epoch, step) is the whole state.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.dataset.manifest_file import ShardInfo
from pipeline.shared.randomness import Purpose, permutation, stream


class Position(NamedTuple):
    """Where reading begins: in epoch ``epoch``, after ``step`` of its steps, ``done`` steps into the run."""

    epoch: int
    step: int
    done: int


@dataclass(frozen=True)
class Piece:
    """Rows ``start`` to ``stop`` of one row group, *in its permuted order*; ``shard`` is an index into the shards."""

    shard: int
    row_group: int
    num_rows: int
    """Rows of the whole row group: what its permutation is of."""
    start: int
    stop: int
    stream: int
    """The stream of the row group's permutation, the same for all lanes that share it."""


@dataclass(frozen=True)
class EpochPlan:
    """The lanes of one epoch; each takes ``rows_per_step`` rows to a step, and empty rows when it has run out."""

    lanes: tuple[tuple[Piece, ...], ...]
    rows_per_step: int
    num_steps: int

    def of_rank(self, rank: int, world_size: int) -> tuple[tuple[Piece, ...], ...]:
        """The lanes that one rank serves; ``world_size`` divides their number."""
        assert len(self.lanes) % world_size == 0
        return self.lanes[rank::world_size]

    def after(self, step: int) -> "EpochPlan":
        """What is left of the epoch after its first ``step`` steps."""
        taken = step * self.rows_per_step
        lanes = tuple(tuple(_without_first(pieces, taken)) for pieces in self.lanes)
        return replace(self, lanes=lanes, num_steps=self.num_steps - step)


def plan_epoch(
    shards: Sequence[ShardInfo], row_group_rows: int, seed: int, epoch: int, lanes: int, global_batch: int
) -> EpochPlan:
    """The plan of epoch ``epoch``, which reads ``shards``: a pure function, the same on every rank.

    ``global_batch`` rows make a step and are divisible by ``lanes``. Lanes' lengths differ by one row at most, so only
    the last steps hold empty rows.
    """
    total = sum(shard.rows for shard in shards)
    borders = [total * lane // lanes for lane in range(lanes + 1)]
    row_groups = _row_groups(shards, row_group_rows, seed, epoch)
    cut = tuple(tuple(_between(row_groups, first, last)) for first, last in pairwise(borders))
    return EpochPlan(cut, rows_per_step=global_batch // lanes, num_steps=num_steps(total, lanes, global_batch))


def num_steps(num_rows: int, lanes: int, global_batch: int) -> int:
    """Steps of an epoch of ``num_rows`` rows: the longest lane's, the others fill theirs up."""
    longest = -(-num_rows // lanes)
    return -(-longest // (global_batch // lanes))


def _row_groups(shards: Sequence[ShardInfo], row_group_rows: int, seed: int, epoch: int) -> list[Piece]:
    """All row groups, whole, in the epoch's order."""
    pieces = []
    for shard in permutation(stream(seed, Purpose.SHARD_ORDER, epoch), len(shards)).tolist():
        for row_group, first in enumerate(range(0, shards[shard].rows, row_group_rows)):
            num_rows = min(row_group_rows, shards[shard].rows - first)
            order = stream(seed, Purpose.ROW_ORDER, epoch, shard, row_group)
            pieces.append(Piece(shard, row_group, num_rows, 0, num_rows, order))
    return pieces


def _without_first(pieces: Sequence[Piece], num_rows: int) -> Iterator[Piece]:
    for piece in pieces:
        skipped = min(num_rows, piece.stop - piece.start)
        num_rows -= skipped
        if piece.start + skipped < piece.stop:
            yield replace(piece, start=piece.start + skipped)


def _between(row_groups: list[Piece], first: int, last: int) -> list[Piece]:
    """The parts of whole row groups, laid end to end, that lie in rows ``first`` to ``last``."""
    ends = np.cumsum([piece.num_rows for piece in row_groups])
    parts = []
    for index in range(int(np.searchsorted(ends, first, side="right")), len(row_groups)):
        piece = row_groups[index]
        begin = int(ends[index]) - piece.num_rows
        if begin >= last:
            break
        start, stop = max(0, first - begin), min(piece.num_rows, last - begin)
        parts.append(Piece(piece.shard, piece.row_group, piece.num_rows, start, stop, piece.stream))
    return parts
