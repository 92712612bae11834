"""The step in machine code, by numba: loss and gradients for any optimizer, and training in place.

B rows of a batch, L = max_len targets a row, J targets of several rows end to end, D dimensions, V words, T threads,
C columns of a thread. Both ways give the same bits for one number of threads, and for another the same but for
rounding.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pipeline.shared.compiled import compiled_fast
from training.model.kernels.columns import (
    Counts,
    Floats,
    Ids,
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
from training.model.kernels.threads import Counters, team_of
from training.model.kernels.vector import CHUNK, dot_1

ROWS_AT_ONCE = 64
"""Rows whose scores are taken before the first of them moves a vector: few enough to stay in the cache."""


# ---- Loss and gradients


def row_losses(
    center_B: Tensor,
    contexts_negatives_BL: Tensor,
    num_contexts_B: Tensor,
    center_VD: Tensor,
    context_VD: Tensor,
    negatives: int,
) -> Tensor:
    """``reference.row_losses``; float32 on the CPU. Gradients are dense, so that any optimizer and DDP take them."""
    batch = (center_B, contexts_negatives_BL, num_contexts_B)
    losses_B: Tensor = _RowLosses.apply(center_VD, context_VD, *batch, negatives)  # type: ignore[no-untyped-call]
    return losses_B


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, center_VD: Tensor, context_VD: Tensor, *batch: Any) -> Tensor:
        center_B, targets_BL, num_contexts_B, negatives = batch
        losses_B = torch.zeros(len(center_B))
        slopes_BL = torch.empty(targets_BL.shape)
        tensors = (center_B, targets_BL, num_contexts_B, center_VD.detach(), context_VD.detach(), slopes_BL, losses_B)
        arrays: list[Any] = [tensor.contiguous().numpy() for tensor in tensors]
        team = team_of(torch.get_num_threads())
        team.run(lambda member: _slopes_of_rows(member, team.size, negatives, *arrays))
        ctx.save_for_backward(center_VD, context_VD, center_B, targets_BL, num_contexts_B, slopes_BL)
        ctx.negatives = negatives
        return losses_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weights_B: Tensor) -> tuple[Tensor | None, ...]:
        center_VD, context_VD, *batch, slopes_BL = ctx.saved_tensors
        gradients = torch.zeros_like(center_VD), torch.zeros_like(context_VD)
        tensors = (*batch, slopes_BL, weights_B, center_VD.detach(), context_VD.detach(), *gradients)
        arrays: list[Any] = [tensor.contiguous().numpy() for tensor in tensors]
        team = team_for(center_VD.shape[1])
        team.run(lambda member: _gradients_of_columns(member, team.size, ctx.negatives, *arrays))
        for gradient_VD in gradients:
            gradient_VD[0] = 0  # word 0 is padding
        return *gradients, None, None, None, None


@compiled_fast
def _slopes_of_rows(
    member: int,
    size: int,
    negatives: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    center_VD: Floats,
    context_VD: Floats,
    slopes_BL: Floats,
    losses_B: Floats,
) -> None:
    """A thread's share of the rows: losses, and slopes of the mean over the row's targets."""
    max_len = targets_BL.shape[1]
    signs_L, losses_L = np.empty(max_len, dtype=np.float32), np.empty(max_len, dtype=np.float32)
    for row in range(center_B.size * member // size, center_B.size * (member + 1) // size):
        num_targets = num_contexts_B[row] * (1 + negatives)
        v_D, slopes_L = center_VD[center_B[row]], slopes_BL[row]
        for j in range(num_targets):
            u_D, score = context_VD[targets_BL[row, j]], np.float32(0)
            for d in range(v_D.size):
                score += u_D[d] * v_D[d]
            slopes_L[j] = score
        signs_of(row, row + 1, num_contexts_B, negatives, signs_L)
        slopes_and_losses(slopes_L, signs_L, num_targets, losses_L)
        mean_losses(row, row + 1, num_contexts_B, negatives, losses_L, losses_B)
        for j in range(num_targets):
            slopes_L[j] /= np.float32(num_targets)


@compiled_fast
def _gradients_of_columns(
    member: int,
    size: int,
    negatives: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    slopes_BL: Floats,
    weights_B: Floats,
    center_VD: Floats,
    context_VD: Floats,
    center_gradient_VD: Floats,
    context_gradient_VD: Floats,
) -> None:
    """A thread's share of the columns, so that no two write one number."""
    dim = center_VD.shape[1]
    begin, end = dim * member // size, dim * (member + 1) // size
    for row in range(center_B.size):
        v_C = center_VD[center_B[row], begin:end]
        center_C = center_gradient_VD[center_B[row], begin:end]
        for j in range(num_contexts_B[row] * (1 + negatives)):
            slope = slopes_BL[row, j] * weights_B[row]
            u_C = context_VD[targets_BL[row, j], begin:end]
            context_C = context_gradient_VD[targets_BL[row, j], begin:end]
            for d in range(end - begin):
                center_C[d] += slope * u_C[d]
                context_C[d] += slope * v_C[d]


# ---- In place


class InPlace:
    """Tables that ``update`` trains in place, by SGD, or by row-wise Adagrad where ``adagrad``.

    It works on copies. ``push`` writes them into the tables, ``pull`` takes what was changed there. Rows of words in
    ``frozen_V`` (bool), where it is given, do not move.
    """

    def __init__(self, center_VD: Tensor, context_VD: Tensor, negatives: int, adagrad: bool = False):
        self.tables = (center_VD, context_VD)
        self.accumulators = tuple(torch.zeros(len(table)) for table in self.tables) if adagrad else ()
        self._negatives = negatives
        self.team = team_for(center_VD.shape[1])
        self._counters = self.team.counters()
        self.frozen_V: Tensor | None = None
        self.pull()

    def pull(self) -> None:
        size = self.team.size
        self._center, self._context = (by_columns(table_VD, size) for table_VD in self.tables)
        # Every thread has its own, since all need all of them: (T, V).
        sums = [sums_V.expand(size, -1).contiguous() for sums_V in self.accumulators]
        self._sums = sums or [torch.zeros(size, 0)] * 2

    def is_finite(self) -> bool:
        return all(is_finite(table_TVC) for table_TVC in (self._center, self._context))

    def push(self) -> None:
        for table_TVC, table_VD in zip((self._center, self._context), self.tables, strict=True):
            by_rows(table_TVC, table_VD)
        for sums_TV, sums_V in zip(self._sums, self.accumulators, strict=False):
            sums_V.copy_(sums_TV[0])

    def update(self, center_B: Tensor, contexts_negatives_BL: Tensor, num_contexts_B: Tensor, lr: float) -> Tensor:
        """Trains on a batch as ``reference.update`` does with ``ROWS_AT_ONCE``; the losses, shape (B,).

        Of a word that a row names twice, the center sees the second time what the first has moved.
        """
        size, max_len = self.team.size, contexts_negatives_BL.shape[1]
        losses_B = torch.from_numpy(np.zeros(len(center_B), dtype=np.float32))
        most = ROWS_AT_ONCE * (max_len + 1)
        buffers = (
            on_large_pages(size, 2, most + CHUNK),  # shares
            on_large_pages(size, 4, most + CHUNK),  # scratch
            on_large_pages(size, ROWS_AT_ONCE * self._center.shape[2] + CHUNK),  # gradients of centers
        )
        batch = (center_B, contexts_negatives_BL, num_contexts_B)
        frozen_V = torch.zeros(0, dtype=torch.bool) if self.frozen_V is None else self.frozen_V
        tensors = (*batch, self._center, self._context, *self._sums, frozen_V, losses_B, *buffers)
        arrays: list[Any] = [tensor.numpy() for tensor in tensors]
        settings: list[Any] = [self._negatives, self.tables[0].shape[1], np.float32(lr), bool(self.accumulators)]
        self.team.run(lambda member: _update(member, self._counters, *settings, *arrays))
        return losses_B


@compiled_fast
def _update(
    member: int,
    counters: Counters,
    negatives: int,
    dim: int,
    lr: float,
    adagrad: bool,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    center_TVC: Floats,
    context_TVC: Floats,
    center_sums_TV: Floats,
    context_sums_TV: Floats,
    frozen_V: npt.NDArray[np.bool_],
    losses_B: Floats,
    shares: Floats,
    scratch: Floats,
    gradients_TC: Floats,
) -> None:
    """One thread's columns of every row. All threads go through the same blocks, and meet in each."""
    center_VC, context_VC, gradients_BC = center_TVC[member], context_TVC[member], gradients_TC[member]
    center_sums_V, context_sums_V = center_sums_TV[member], context_sums_TV[member]
    slopes_J, signs_J = scratch[member, 0], scratch[member, 1]
    losses_J, steps_J = scratch[member, 2], scratch[member, 3]
    width = center_VC.shape[1]
    chunks = num_chunks(member, width, dim)
    epsilon = np.float32(ADAGRAD_EPSILON)
    freezes = frozen_V.size > 0
    turn = 0
    for first in range(0, center_B.size, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, center_B.size)

        # Scores, and for Adagrad |v|^2 behind them: this thread's share, then everybody's.
        share_J = shares[member, turn & 1]
        count = scores_of(
            first, last, center_B, targets_BL, num_contexts_B, negatives, center_VC, context_VC, chunks, share_J
        )
        if adagrad:
            for row in range(first, last):
                v = center_B[row] * width
                (share_J[count + row - first],) = dot_1(center_VC, (v,), center_VC, v, chunks)
        turn = add_up(counters, member, shares, turn, count + last - first, slopes_J)
        signs_of(first, last, num_contexts_B, negatives, signs_J)
        slopes_and_losses(slopes_J, signs_J, count, losses_J)
        if member == 0:
            mean_losses(first, last, num_contexts_B, negatives, losses_J, losses_B)

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

        # Contexts move; then the centers.
        gradients_BC[: (last - first) * width] = 0
        batch = (first, last, center_B, targets_BL, num_contexts_B, negatives)
        spread(*batch, center_VC, context_VC, chunks, slopes_J, steps_J, gradients_BC)
        if adagrad:
            share_J = shares[member, turn & 1]
            for row in range(first, last):
                at = (row - first) * width
                (share_J[row - first],) = dot_1(gradients_BC, (at,), gradients_BC, at, chunks)
            turn = add_up(counters, member, shares, turn, last - first, steps_J)
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
