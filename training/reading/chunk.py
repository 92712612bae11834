"""Chunk: the rows of many steps, assembled from the row groups of a rank's lanes.

B rows of a rank's step, S steps of a chunk, N = S·B.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch

from pipeline.dataset.manifest_file import ManifestError
from pipeline.dataset.unpacking import Places, Rows, empty_rows
from training.model.batch import Batch
from training.reading.row_groups import Part


class Chunk:
    """The next ``num_steps`` steps of a rank. ``do`` writes their rows to ``memory``, from the parts of its lanes.

    A step contains ``share`` rows of each lane, one lane after the other; a lane that has run out is filled up with
    empty rows. None stands for a lane that another process fills, in memory that both share. ``done`` is the number of
    steps of the run before the chunk. ``at_once``: see ``read_epochs``.
    """

    def __init__(
        self,
        lanes: Sequence[Sequence[Part] | None],
        share: int,
        num_steps: int,
        memory: Rows,
        at_once: int = 1,
        done: int = 0,
        ends_epoch: bool = False,
    ):
        self.num_steps, self.ends_epoch = num_steps, ends_epoch
        self._memory, self._at_once, self._done = memory, at_once, done
        self._share, self._stride = share, share * len(lanes)
        self._unfilled = deque((index, parts) for index, parts in enumerate(lanes) if parts is not None)
        self._errors: dict[int, ManifestError] = {}
        """Errors of row groups, by the number of good steps before the error."""
        self._views = self._views_of(num_steps)  # made here: the consumer would wait for it

    @property
    def is_done(self) -> bool:
        """Whether all lanes have been filled or are being filled."""
        return not self._unfilled

    def do(self, may_wait: bool = True) -> None:
        """Fills the lanes that no other thread has begun to fill. Thread-safe.

        Without ``may_wait``, skips lanes whose row groups are still being fetched.
        """
        for _ in range(len(self._unfilled)):
            try:
                index, parts = self._unfilled.popleft()
            except IndexError:  # another thread has taken the last one
                return
            if may_wait or not any(row_group.must_wait() for _, row_group in parts):
                self._fill(index, parts)
            else:
                self._unfilled.append((index, parts))

    def _fill(self, index: int, parts: Sequence[Part]) -> None:
        places = Places(0, self._share, self._stride, offset=index * self._share)
        num_rows = self.num_steps * self._share
        try:
            for piece, row_group in parts:
                row_group.get().unpack(piece, places, self._memory)
                places = places._replace(first=places.first + piece.size)
        except ManifestError as error:
            self._errors.setdefault(places.first // self._share, error)
            return
        if places.first < num_rows:
            empty_rows(num_rows - places.first, places, self._memory)

    def batches(self) -> Iterator[Batch]:
        """Yields the steps as views of the memory, at most ``at_once`` to a batch.

        Raises ManifestError in place of the first step with rows of a row group that is damaged or holds wrong ids.
        """
        good = min([self.num_steps, *self._errors])
        yield from self._views if good == self.num_steps else self._views_of(good)
        if self._errors:
            raise self._errors[good]

    def _views_of(self, num_steps: int) -> list[Batch]:
        """The first ``num_steps`` steps, cut where the run's number of steps is a multiple of ``at_once``."""
        cuts = [0, *range(self._at_once - self._done % self._at_once, num_steps, self._at_once), num_steps]
        steps = [last - first for first, last in pairwise(cuts) if last > first]
        rows = [count * self._stride for count in steps]
        columns = (torch.split(torch.from_numpy(column_N[: sum(rows)]), rows) for column_N in self._memory)
        return [Batch(*parts) for parts in zip(*columns, steps, strict=True)]
