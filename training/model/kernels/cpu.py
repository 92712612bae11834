"""The step in machine code, by numba: loss and gradients for any optimizer, and training in place.

B rows of a batch, L = max_len targets a row, J targets of several rows end to end, D dimensions, V words, T threads,
C columns of a thread. Both ways give the same bits for one number of threads; another number differs by rounding.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.shared.compiled import compiled_fast
from training.model.batch import BatchTensors
from training.model.kernels.columns import (
    Columns,
    Floats,
    Rows,
    Scratch,
    add_up,
    by_columns,
    by_rows,
    is_finite,
    mean_losses,
    num_chunks,
    on_large_pages,
    scores_of,
    signs_of,
    slopes_and_losses,
    spread,
    team_for,
)
from training.model.kernels.reference import ADAGRAD_EPSILON
from training.model.kernels.threads import team_of
from training.model.kernels.vector import CHUNK, dot_1
from training.model.skip_gram import TableTensors

ROWS_AT_ONCE = 64
"""Rows whose scores are taken before the first of them moves a vector: few enough to stay in the cache."""


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
    """``reference.row_losses``; float32 on the CPU. Gradients are dense, so that any optimizer and DDP take them."""
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
        center_VD, context_VD, *_ = ctx.saved_tensors  # raises if one of them has been changed since forward
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
    signs_L, losses_L = np.empty(max_len, dtype=np.float32), np.empty(max_len, dtype=np.float32)
    for row in range(num_rows * member // size, num_rows * (member + 1) // size):
        num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
        v_D, slopes_L = center_VD[rows.center_B[row]], slopes_BL[row]
        for j in range(num_targets):
            u_D, score = context_VD[rows.targets_BL[row, j]], np.float32(0)
            for d in range(v_D.size):
                score += u_D[d] * v_D[d]
            slopes_L[j] = score
        signs_of(rows, row, row + 1, signs_L)
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


class State(NamedTuple):
    """What training in place changes: tables by columns, and Adagrad's sums of squares, a copy for each thread.

    Without Adagrad the sums are (T, 0). ``frozen_V`` is empty unless some words are frozen.
    """

    center_TVC: Floats
    context_TVC: Floats
    center_sums_TV: Floats
    context_sums_TV: Floats
    frozen_V: npt.NDArray[np.bool_]
    dim: int


class Moves(NamedTuple):
    """Buffers for how far the vectors move: each target's factor of v, and the centers' gradients."""

    steps_TJ: Floats
    gradients_TC: Floats


class InPlace:
    """Tables that ``update`` trains in place, by SGD, or by row-wise Adagrad if ``adagrad``.

    It trains copies. ``write_back`` copies them into the tables; ``reload`` copies the tables again after they were
    changed. The rows of words in ``frozen_V`` (bool), if given, do not move.
    """

    def __init__(self, tables: TableTensors, negatives: int, adagrad: bool = False):
        self.tables = tables
        self.accumulators = tuple(torch.zeros(len(table)) for table in self.tables) if adagrad else ()
        self._negatives = negatives
        self.team = team_for(tables[0].shape[1])
        self._buffers: tuple[Scratch, Moves] | None = None
        self.frozen_V: Tensor | None = None
        self.reload()

    def reload(self) -> None:
        size = self.team.size
        self._columns = [by_columns(table_VD, size) for table_VD in self.tables]
        # Every thread has its own sums, since each needs all of them: (T, V).
        sums = [sums_V.expand(size, -1).contiguous() for sums_V in self.accumulators]
        self._sums = sums or [torch.zeros(size, 0)] * 2

    def is_finite(self) -> bool:
        return all(is_finite(table_TVC) for table_TVC in self._columns)

    def write_back(self) -> None:
        for table_TVC, table_VD in zip(self._columns, self.tables, strict=True):
            by_rows(table_TVC, table_VD)
        for sums_TV, sums_V in zip(self._sums, self.accumulators, strict=False):
            sums_V.copy_(sums_TV[0])

    def update(self, batch: BatchTensors, lr: float) -> Tensor:
        """Trains on a batch as ``reference.update`` does with ``ROWS_AT_ONCE``; the losses, shape (B,).

        When a row names a word twice, the center sees the second time what the first has moved.
        """
        rows = Rows.of(batch, self._negatives)
        losses_B = np.zeros(len(rows.center_B), dtype=np.float32)
        scratch, moves = self._buffers = self._buffers or self._make_buffers(rows.targets_BL.shape[1])
        center_TVC, context_TVC, center_sums_TV, context_sums_TV = (
            tensor.numpy() for tensor in (*self._columns, *self._sums)
        )
        frozen_V = np.zeros(0, dtype=np.bool_) if self.frozen_V is None else self.frozen_V.numpy()
        dim, rate = self.tables[0].shape[1], np.float32(lr)
        state = State(center_TVC, context_TVC, center_sums_TV, context_sums_TV, frozen_V, dim)
        self.team.run(lambda member: _update(member, rows, state, scratch, moves, rate, losses_B))
        return torch.from_numpy(losses_B)

    def _make_buffers(self, max_len: int) -> tuple[Scratch, Moves]:
        size, most = self.team.size, ROWS_AT_ONCE * (max_len + 1)  # Adagrad's |v|^2 lie behind the scores
        gradients_TC = on_large_pages(size, ROWS_AT_ONCE * self._columns[0].shape[2] + CHUNK)
        return Scratch.of(self.team, most), Moves(on_large_pages(size, most + CHUNK).numpy(), gradients_TC.numpy())


@compiled_fast
def _update(
    member: int, rows: Rows, state: State, scratch: Scratch, moves: Moves, lr: np.float32, losses_B: Floats
) -> None:
    """One thread's columns of every row. All threads go through the same blocks, with a barrier in each."""
    center_B, targets_BL, num_contexts_B, negatives = rows
    center_VC, context_VC, frozen_V = state.center_TVC[member], state.context_TVC[member], state.frozen_V
    center_sums_V, context_sums_V = state.center_sums_TV[member], state.context_sums_TV[member]
    slopes_J, signs_J, losses_J = scratch.slopes_TJ[member], scratch.signs_TJ[member], scratch.losses_TJ[member]
    steps_J, gradients_BC = moves.steps_TJ[member], moves.gradients_TC[member]
    width, dim = center_VC.shape[1], state.dim
    chunks = num_chunks(member, width, dim)
    columns = Columns(center_VC, context_VC, chunks)
    epsilon = np.float32(ADAGRAD_EPSILON)
    adagrad, freezes = center_sums_V.size > 0, frozen_V.size > 0
    turn = 0
    for first in range(0, center_B.size, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, center_B.size)

        # Scores, and for Adagrad |v|^2 behind them: this thread's share, then the sum over the threads.
        share_J = scratch.shares_T2J[member, turn & 1]
        count = scores_of(rows, first, last, columns, share_J)
        if adagrad:
            for row in range(first, last):
                v = center_B[row] * width
                (share_J[count + row - first],) = dot_1(center_VC, (v,), center_VC, v, chunks)
        turn = add_up(member, scratch, turn, count + last - first, slopes_J)
        signs_of(rows, first, last, signs_J)
        slopes_and_losses(slopes_J, signs_J, count, losses_J)
        if member == 0:
            mean_losses(rows, first, last, losses_J, losses_B)

        # How far each context goes.
        if adagrad:
            at = 0
            for row in range(first, last):
                square = slopes_J[count + row - first] / np.float32(dim)
                for j in range(num_contexts_B[row] * (1 + negatives)):
                    target = targets_BL[row, j]
                    if not freezes or not frozen_V[target]:
                        context_sums_V[target] += slopes_J[at] * slopes_J[at] * square
                    steps_J[at] = -lr / (np.sqrt(context_sums_V[target]) + epsilon) * slopes_J[at]
                    at += 1
        else:
            for j in range(count):
                steps_J[j] = -lr * slopes_J[j]
        if freezes:
            at = 0
            for row in range(first, last):
                for j in range(num_contexts_B[row] * (1 + negatives)):
                    if frozen_V[targets_BL[row, j]]:
                        steps_J[at] = 0
                    at += 1

        # The contexts move, then the centers.
        gradients_BC[: (last - first) * width] = 0
        spread(rows, first, last, columns, slopes_J, steps_J, gradients_BC)
        if adagrad:
            share_J = scratch.shares_T2J[member, turn & 1]
            for row in range(first, last):
                at = (row - first) * width
                (share_J[row - first],) = dot_1(gradients_BC, (at,), gradients_BC, at, chunks)
            turn = add_up(member, scratch, turn, last - first, steps_J)
        for row in range(first, last):
            center, rate = center_B[row], lr
            if freezes and frozen_V[center]:
                continue
            if adagrad:
                center_sums_V[center] += steps_J[row - first] / np.float32(dim)
                rate = lr / (np.sqrt(center_sums_V[center]) + epsilon)
            v_C, gradient_C = center_VC[center], gradients_BC[(row - first) * width : (row - first + 1) * width]
            for column in range(width):
                v_C[column] -= rate * gradient_C[column]
