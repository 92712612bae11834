"""The loss of the dataset's held-out examples, while a run trains on the others.

B examples that are held out, P of them a rank's own; U words that occur in them, V words, D dimensions.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from training.judging.heldout import mean, read_rows, row_losses
from training.model.blocks import Blocks, spans
from training.model.steps import Step
from training.run import Run

Float32 = npt.NDArray[np.float32]


class HeldoutLoss:
    """Evaluates a step's tables by the law of training/judging/heldout.py: what judges a finished run finds the same.

    Each rank that can read whole tables takes a part of the examples; all make the same calls. A rank holds the
    vectors of the words of its part, not the tables.
    """

    def __init__(self, run: Run, step: Step):
        """Raises InputError if the dataset holds nothing out, and ManifestError if its shards are damaged."""
        self._world, self._device, self._step = run.world, run.device, step
        center_B, targets_BL, num_contexts_B = read_rows(run.config.data, run.manifest)
        self._size, self._own = len(center_B), _own_part(run, step)
        self._num_contexts_P = num_contexts_B[self._own]
        self._centers_U, centers = np.unique(center_B[self._own], return_inverse=True)
        self._center_P = centers.astype(np.int32)
        with_padding = np.concatenate([[0], targets_BL[self._own].ravel()])  # so that <unk>, which is padding, is row 0
        self._targets_U, places = np.unique(with_padding, return_inverse=True)
        self._targets_PL = places[1:].reshape(-1, targets_BL.shape[1]).astype(np.int32)

    def __call__(self) -> float:
        """The mean loss of the examples, the same bits on every rank, and on any number of ranks with the same tables.

        A collective call. The ranks' tables are in sync.
        """
        losses_B = np.zeros(self._size, np.float32)
        if self._takes_part:
            center, context = self._step.tables()
            tables = rows_of(center, self._centers_U), rows_of(context, self._targets_U)
            losses_P = np.empty(len(self._center_P), np.float32)
            arrays = self._center_P, self._targets_PL, self._num_contexts_P, losses_P
            threads = torch.get_num_threads()
            parts = zip(*(np.array_split(array, threads) for array in arrays), strict=True)
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(lambda part: row_losses(part[0], part[1], part[2], tables, part[3]), parts))
            losses_B[self._own] = losses_P
        # Of each example all ranks but one add 0, so the order in which they are added changes nothing.
        return mean(self._world.all_reduce(torch.from_numpy(losses_B).to(self._device)).cpu().numpy())

    @property
    def _takes_part(self) -> bool:
        """The first group's ranks read the tables together, also those that take no examples."""
        return self._step.group is None or self._step.group.index == 0


def _own_part(run: Run, step: Step) -> slice:
    """Which of the examples are this rank's. Of a group's members, those on the first machine see whole tables."""
    group = step.group
    if group is None:
        return slice(run.world.rank, None, run.world.world_size)
    sees_all = group.index == 0 and group.machines.is_first
    return slice(group.here.rank, None, group.here.world_size) if sees_all else slice(0, 0)


def rows_of(table: Blocks, words_U: npt.NDArray[np.integer]) -> Float32:
    """The rows of some words, in rising order, of a table, (V, D): an array (U, D)."""
    rows_UD = np.empty((len(words_U), table.shape[1]), np.float32)
    for rows, block_BD in zip(spans(table.shape[0]), table.blocks(), strict=True):
        first, last = np.searchsorted(words_U, (rows.start, rows.stop))
        np.take(block_BD.numpy(), words_U[first:last] - rows.start, axis=0, out=rows_UD[first:last])
    return rows_UD
