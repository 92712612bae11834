"""The step in machine code, by numba: loss and gradients for any optimizer, and training in place.

B rows of a batch, L = max_len targets a row, J targets of several rows end to end, D dimensions, V words, T threads,
C columns of a thread. Both give the same bits every time for the same number of threads; other numbers differ by
rounding.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.shared.compiled import compiled_fast, inner_fast
from training.model.batch import BatchTensors
from training.model.blocks import AnyTables, BlockTables
from training.model.kernels.columns import (
    Columns,
    Floats,
    Ids,
    Rows,
    Scratch,
    add_up,
    block_of,
    by_columns,
    by_rows,
    is_last,
    lay_out,
    mean_losses,
    next_turn,
    num_chunks,
    padded,
    rows_of,
    share_norms,
    share_scores,
    slopes_and_losses,
    spread,
    team_for,
    whole_loops,
)
from training.model.kernels.group import Group
from training.model.kernels.reference import ADAGRAD_EPSILON, InPlaceTrainer
from training.model.kernels.threads import Team, team_of
from training.model.memory import is_finite, page_aligned
from training.model.skip_gram import TableTensors
from training.train_config import CHUNK

ROWS_AT_ONCE = 64
"""Rows whose scores are computed before the first of them moves a vector: few enough to stay in the cache."""


# ---- Loss and gradients


class Tables(NamedTuple):
    """Both tables, or their gradients, each (V, D)."""

    center_VD: Floats
    context_VD: Floats

    @classmethod
    def of(cls, tables: TableTensors) -> "Tables":
        center_VD, context_VD = (table_VD.detach().contiguous().numpy() for table_VD in tables)
        return cls(center_VD, context_VD)


def row_losses(batch: BatchTensors, tables: TableTensors, negatives: int) -> Tensor:
    """``reference.row_losses`` for float32 on the CPU. Gradients are dense: any optimizer, and DDP, can use them."""
    losses_B: Tensor = _RowLosses.apply(*tables, *batch, negatives)  # type: ignore[no-untyped-call]
    return losses_B


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, center_VD: Tensor, context_VD: Tensor, *arguments: Any) -> Tensor:
        *batch, negatives = arguments
        rows, tables = Rows.of((batch[0], batch[1], batch[2]), negatives), Tables.of((center_VD, context_VD))
        losses_B = np.zeros(len(rows.center_B), dtype=np.float32)
        slopes_BL = np.empty(rows.targets_BL.shape, dtype=np.float32)
        team = team_of(torch.get_num_threads())
        team.run(lambda member: _slopes_of_rows(member, team.size, rows, tables, slopes_BL, losses_B))
        ctx.save_for_backward(center_VD, context_VD, *batch)
        ctx.rows, ctx.slopes_BL = rows, slopes_BL
        return torch.from_numpy(losses_B)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights_B: Tensor) -> tuple[Tensor | None, ...]:
        center_VD, context_VD, *_ = ctx.saved_tensors  # raises if one of them was changed after forward
        gradients = torch.zeros_like(center_VD), torch.zeros_like(context_VD)
        tables, results = Tables.of((center_VD, context_VD)), Tables.of(gradients)
        slopes_BL, weights = ctx.slopes_BL, weights_B.contiguous().numpy()
        team = team_for(center_VD.shape[1])
        team.run(lambda member: _gradients_of_columns(member, team.size, ctx.rows, slopes_BL, weights, tables, results))
        for gradient_VD in gradients:
            gradient_VD[0] = 0  # word 0 is padding
        return *gradients, None, None, None, None


@compiled_fast
def _slopes_of_rows(member: int, size: int, rows: Rows, tables: Tables, slopes_BL: Floats, losses_B: Floats) -> None:
    """A thread's share of the rows: losses, and the slopes of the row's mean loss."""
    center_VD, context_VD = tables
    num_rows, max_len = rows.targets_BL.shape
    losses_L, signs_L = np.empty(max_len, dtype=np.float32), np.full(max_len, -1, dtype=np.float32)
    for row in range(num_rows * member // size, num_rows * (member + 1) // size):
        num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
        v_D, slopes_L = center_VD[rows.center_B[row]], slopes_BL[row]
        for j in range(num_targets):
            u_D, score = context_VD[rows.targets_BL[row, j]], np.float32(0)
            for d in range(v_D.size):
                score += u_D[d] * v_D[d]
            slopes_L[j] = score
        signs_L[:] = -1
        signs_L[: rows.num_contexts_B[row]] = 1
        slopes_and_losses(slopes_L, signs_L, num_targets, losses_L)
        mean_losses(rows, row, row + 1, losses_L, losses_B)
        for j in range(num_targets):
            slopes_L[j] /= np.float32(num_targets)


@compiled_fast
def _gradients_of_columns(
    member: int, size: int, rows: Rows, slopes_BL: Floats, weights_B: Floats, tables: Tables, gradients: Tables
) -> None:
    """A thread's share of the columns, so that no two threads write the same number."""
    dim = tables.center_VD.shape[1]
    begin, end = dim * member // size, dim * (member + 1) // size
    for row in range(rows.center_B.size):
        center = rows.center_B[row]
        v_C, center_C = tables.center_VD[center, begin:end], gradients.center_VD[center, begin:end]
        for j in range(rows.num_contexts_B[row] * (1 + rows.negatives)):
            slope, target = slopes_BL[row, j] * weights_B[row], rows.targets_BL[row, j]
            u_C, context_C = tables.context_VD[target, begin:end], gradients.context_VD[target, begin:end]
            for d in range(end - begin):
                center_C[d] += slope * u_C[d]
                context_C[d] += slope * v_C[d]


# ---- In place


class InPlaceState(NamedTuple):
    """What training in place changes: the tables by columns, and for Adagrad each thread's own copy of the sums.

    Without Adagrad, the sums are (T, 0). ``frozen_V`` is empty if no words are frozen.
    """

    center_TVC: Floats
    context_TVC: Floats
    center_sums_TV: Floats
    context_sums_TV: Floats
    frozen_V: npt.NDArray[np.bool_]
    dim: int
    adagrad: bool


class Moves(NamedTuple):
    """Buffers for how far the vectors move: each target's factor of v, and the centers' gradients."""

    steps_TJ: Floats
    gradients_TC: Floats
    places_B: Ids
    """0, 1, 2, ...: which of the gradients is a row's."""


class CpuTrainer(InPlaceTrainer):
    """Columns of the tables that threads train in place."""

    team: Team

    def __init__(
        self,
        tables: AnyTables,
        negatives: int,
        optimizer: str,
        group: Group | None = None,
        deterministic: bool = False,
        rows_at_once: int | None = None,
    ):
        """``deterministic``: the same bits for any number of threads and processes. ``rows_at_once``: see ``update``;
        None is ``ROWS_AT_ONCE``.
        """
        self.team = team_for(tables[0].shape[1], group)
        self.group, self._deterministic = group, deterministic
        self._buffers: tuple[Scratch, Moves] | None = None
        self._block_rows = rows_at_once or ROWS_AT_ONCE
        super().__init__(tables, negatives, optimizer)

    def _hold(self, tables: AnyTables, device: str) -> None:
        self._columns = [by_columns(table, self.team) for table in tables]
        # Every thread has its own copy of the state, (T, V), because each needs all of it.
        self._sums = [page_aligned(self.team.here, self.num_words) for _ in self.state_names]

    def parts(self) -> list[Tensor]:
        return [*self._columns, *self._sums]

    def blocks(self) -> BlockTables:
        centers, contexts = (
            by_rows(partial(rows_of, table_TVC), self.num_words, self.dim, self.team) for table_TVC in self._columns
        )
        return centers, contexts

    @property
    def state(self) -> dict[str, Tensor]:
        return {name: copies_TV[0] for name, copies_TV in zip(self.state_names, self._sums, strict=True)}

    def load(self, tables: AnyTables, state: Mapping[str, Tensor]) -> None:
        for table_TVC, table in zip(self._columns, tables, strict=True):
            by_columns(table, self.team, table_TVC)
        for name, copies_TV in zip(self.state_names, self._sums, strict=True):
            copies_TV.copy_(state[name])

    def is_finite(self) -> bool:
        return all(map(is_finite, self._columns))

    def update(self, batch: BatchTensors, lr: float) -> Tensor:
        """Trains on a batch as ``reference.update`` does with ``rows_at_once``. Returns the losses, shape (B,).

        If a row contains a word twice, the second gradient of the center uses the context vector that the first moved.
        """
        rows = Rows.of(batch, self._negatives)
        losses_B = np.zeros(len(rows.center_B), dtype=np.float32)
        scratch, moves = self._buffers = self._buffers or self._make_buffers(rows.targets_BL.shape[1])
        center_TVC, context_TVC = (table_TVC.numpy() for table_TVC in self._columns)
        no_sums = torch.zeros(self.team.here, 0)
        center_sums_TV, context_sums_TV = (sums_TV.numpy() for sums_TV in self._sums or (no_sums, no_sums))
        frozen_V = np.zeros(0, dtype=np.bool_) if self.frozen_V is None else self.frozen_V.numpy()
        tables = center_TVC, context_TVC, center_sums_TV, context_sums_TV
        state = InPlaceState(*tables, frozen_V, self.dim, self._adagrad)
        self.team.run(lambda thread: _update(thread, rows, state, scratch, moves, np.float32(lr), losses_B))
        return torch.from_numpy(losses_B)

    def _make_buffers(self, max_len: int) -> tuple[Scratch, Moves]:
        scratch = Scratch.of(self.team, self._block_rows, max_len, self.dim, self._deterministic)
        gradients_TC = page_aligned(self.team.here, self._block_rows * self._columns[0].shape[2] + CHUNK)
        steps_TJ, places_B = page_aligned(*scratch.slopes_TJ.shape), np.arange(self._block_rows, dtype=np.int32)
        return scratch, Moves(steps_TJ.numpy(), gradients_TC.numpy(), places_B)


class Rule(NamedTuple):
    """The optimizer, as ``_rate`` needs it."""

    lr: np.float32
    adagrad: bool
    frozen_V: npt.NDArray[np.bool_]
    dim: int


@compiled_fast
def _update(
    thread: int, rows: Rows, state: InPlaceState, scratch: Scratch, moves: Moves, lr: np.float32, losses_B: Floats
) -> None:
    """One thread's columns of every row. All threads process the same blocks of rows, with a barrier in each."""
    member, center_VC, context_VC = scratch.first + thread, state.center_TVC[thread], state.context_TVC[thread]
    block, slopes_J, losses_J = block_of(scratch, thread), scratch.slopes_TJ[thread], scratch.losses_TJ[thread]
    steps_J, gradients_BC = moves.steps_TJ[thread], moves.gradients_TC[thread]
    width = center_VC.shape[1]
    columns = Columns(center_VC, context_VC, num_chunks(member, scratch))
    rule = Rule(lr, state.adagrad, state.frozen_V, state.dim)
    turn = next_turn(scratch, thread)
    for first in range(0, rows.center_B.size, scratch.num_rows):
        last = min(first + scratch.num_rows, rows.center_B.size)

        # Scores, and for Adagrad |v|^2 behind them: this thread's share, then the sum over the threads.
        center_B = rows.center_B[first:last]
        count = lay_out(rows, first, last, columns, block)
        behind = whole_loops(count)
        share_scores(member, scratch, turn, block, count, center_B, columns)
        if state.adagrad:
            share_norms(member, scratch, turn, behind, center_VC, center_B, width, columns.chunks)
        turn = add_up(member, scratch, turn, behind + last - first, slopes_J)
        slopes_and_losses(slopes_J, block.signs_J, behind, losses_J)
        if is_last(member, scratch):
            mean_losses(rows, first, last, losses_J, losses_B)

        # The contexts move, then the centers.
        _context_steps(rows, first, last, behind, rule, state.context_sums_TV[thread], slopes_J, steps_J)
        gradients_BC[: (last - first) * width] = 0
        spread(block, count, center_B, columns, slopes_J, steps_J, gradients_BC)
        if state.adagrad:
            share_norms(member, scratch, turn, 0, gradients_BC, moves.places_B[: last - first], width, columns.chunks)
            turn = add_up(member, scratch, turn, last - first, steps_J)
        _move_centers(center_B, center_VC, rule, state.center_sums_TV[thread], steps_J, gradients_BC)


@inner_fast
def _rate(rule: Rule, sums_V: Floats, word: int, mean_square: np.float32) -> Any:
    """The learning rate of a word's row, whose gradient has this mean square; 0 if the word is frozen."""
    if rule.frozen_V.size and rule.frozen_V[word]:
        return np.float32(0)
    if not rule.adagrad:
        return rule.lr
    sums_V[word] += mean_square
    return rule.lr / (np.sqrt(sums_V[word]) + np.float32(ADAGRAD_EPSILON))


@inner_fast
def _context_steps(
    rows: Rows, first: int, last: int, count: int, rule: Rule, sums_V: Floats, slopes_J: Floats, steps_J: Floats
) -> None:
    """Writes each target's factor of v. For Adagrad the rows' |v|^2 lie behind the ``count`` slopes."""
    if not rule.adagrad and not rule.frozen_V.size:  # a loop that LLVM vectorises: saves a 20th of the step
        for j in range(count):
            steps_J[j] = -rule.lr * slopes_J[j]
        return
    at = 0
    for row in range(first, last):
        square = slopes_J[count + row - first] / np.float32(rule.dim)
        num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
        for j in range(num_targets):
            slope = slopes_J[at + j]
            steps_J[at + j] = -_rate(rule, sums_V, rows.targets_BL[row, j], slope * slope * square) * slope
        for j in range(num_targets, padded(num_targets)):
            steps_J[at + j] = 0
        at += padded(num_targets)


@inner_fast
def _move_centers(
    center_B: Ids, center_VC: Floats, rule: Rule, sums_V: Floats, squares_B: Floats, gradients_BC: Floats
) -> None:
    """Moves each row's center by its gradient. ``squares_B`` are the gradients' |g|^2, for Adagrad."""
    width = center_VC.shape[1]
    for row in range(center_B.size):  # an empty row's gradient is 0
        rate = _rate(rule, sums_V, center_B[row], squares_B[row] / np.float32(rule.dim))
        if rate == 0:
            continue  # frozen
        v_C, gradient_C = center_VC[center_B[row]], gradients_BC[row * width : (row + 1) * width]
        for column in range(width):
            v_C[column] -= rate * gradient_C[column]
