"""Lanes: where the rows of a rank's batches come together, in memory that is used again and again.

B rows of a batch, L = max_len targets a row, S batches of a chunk, N = S·B.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from threading import Lock

import numpy as np
import torch

from pipeline.dataset.decode import RowGroup
from pipeline.dataset.unpacking import Int32, empty_rows
from training.model.batch import Batch
from training.reading.plan import Piece

Opened = tuple[RowGroup, Int32]
"""A row group, and the order of all its rows."""


class Chunk:
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


class RowGroups:
    """The row groups of a rank's lanes: each is read when first asked for, and kept until no lane is to ask for it."""

    def __init__(self, read: Callable[[Piece], Opened], lanes: Sequence[Sequence[Piece]]):
        self._read = read
        self._uses = Counter((piece.shard, piece.row_group) for pieces in lanes for piece in pieces)
        self._kept: dict[tuple[int, int], Opened] = {}
        self._lock = Lock()

    def of(self, piece: Piece) -> Opened:
        """The piece's row group, once for each piece of it; threads may ask together. Raises what ``read`` raises."""
        key = piece.shard, piece.row_group
        found = self._kept.get(key) or self._read(piece)  # two lanes at the same time may read it twice
        with self._lock:
            self._uses[key] -= 1
            self._kept[key] = found
            if not self._uses[key]:
                del self._kept[key]
        return found

    def holds(self, piece: Piece) -> bool:
        """Whether it need not be read any more."""
        return (piece.shard, piece.row_group) in self._kept


class Lane:
    """Hands out the rows of a lane's pieces in order, holding one piece at a time."""

    def __init__(self, row_groups: RowGroups, pieces: Sequence[Piece]):
        self._row_groups = row_groups
        self._pieces = deque(pieces)
        self._row_group: RowGroup | None = None
        self._order = np.zeros(0, dtype=np.int32)
        self.filled = 0
        """Rows of the chunk that the last ``fill`` has written."""

    def fill(self, chunk: Chunk, offset: int, share: int, num_rows: int) -> None:
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
        return upcoming(self._pieces, self._order.size, num_rows)


def upcoming(pieces: Iterable[Piece], begin: int, num_rows: int) -> Iterator[tuple[Piece, bool]]:
    """The pieces that begin before row ``num_rows`` when the first begins at ``begin``, and, with False, one more."""
    for piece in pieces:
        yield piece, begin < num_rows
        if begin >= num_rows:
            return
        begin += piece.stop - piece.start
