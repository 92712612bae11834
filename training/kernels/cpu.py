"""The step in machine code, by numba. Its threads share the columns of a row, never a cache line that one writes.

B rows of a batch, L = max_len targets a row, J targets of several rows end to end, D dimensions, V words, H parts of a
vector, C columns of a part, T threads.

*Rows or columns?* Threads that take different rows all write the vectors of frequent words, and the cache lines go to
and fro: two threads are slower than one. So each thread has columns of its own for every row; the threads' shares of a
score are added up when they meet, and the result is the same for every number of threads, but for rounding, and
always the same for one. *Parts:* processors fetch the next lines unasked, so columns of two threads must lie far apart:
a table is kept as H tables of C columns.
"""

import math
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from pipeline.compiled import compiled
from training.kernels.reference import ADAGRAD_EPSILON
from training.kernels.threads import Counters, Team, meet, team_of
from training.kernels.vector import CHUNK, dot_1, dot_4, move_1, move_4, power_of_two

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]

fast = partial(compiled, fast_math=True)

ROWS_AT_ONCE = 64
"""Rows whose scores are taken before the first of them moves a vector: few enough to stay in the cache."""

_F0, _F1 = np.float32(0), np.float32(1)


# ---- Tables in parts


def team_for(dim: int) -> Team:
    """torch's number of threads, as far as there are 32 columns for each."""
    return team_of(max(1, min(torch.get_num_threads(), dim // 32)))


def in_parts(table_VD: Tensor, parts: int) -> Tensor:
    """A copy, (H, V, C), filled up with zero columns, which stay zero."""
    num_words, dim = table_VD.shape
    width = -(-dim // (parts * CHUNK)) * CHUNK
    parts_HVC = on_large_pages(parts, num_words, width)
    for part, columns_VC in enumerate(table_VD.detach().split(width, dim=1)):
        parts_HVC[part, :, : columns_VC.shape[1]] = columns_VC
    return parts_HVC


def on_large_pages(*shape: int) -> Tensor:
    """Zeros that begin with a cache line. numpy, unlike torch, asks Linux for 2 MB pages where an array is large.

    With pages of 4 kB every other access to a table would miss the TLB: half the speed.
    """
    count = math.prod(shape)
    floats = np.zeros(count + CHUNK, dtype=np.float32)
    skipped = -floats.ctypes.data % 64 // floats.itemsize
    return torch.from_numpy(floats[skipped : skipped + count]).view(shape)


def out_of_parts(parts_HVC: Tensor, table_VD: Tensor) -> None:
    """Copies the vectors back into an ordinary table."""
    width = parts_HVC.shape[2]
    with torch.no_grad():
        for part, columns_VC in enumerate(table_VD.split(width, dim=1)):
            columns_VC.copy_(parts_HVC[part, :, : columns_VC.shape[1]])


@fast
def num_chunks(part: int, width: int, dim: int) -> int:
    """Chunks of a part that hold columns of the vector."""
    return max(0, min(width, dim - part * width) + CHUNK - 1) // CHUNK


# ---- What the ways of training share


@fast
def scores_of(
    first: int,
    last: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: npt.NDArray[np.int16],
    negatives: int,
    center_HVC: Floats,
    context_HVC: Floats,
    dim: int,
    begin: int,
    end: int,
    scores_J: Floats,
) -> int:
    """The share of parts ``begin`` to ``end`` in the scores v·u of rows ``first`` to ``last``; returns their number."""
    num_words, width = context_HVC.shape[1], context_HVC.shape[2]
    at = 0
    for row in range(first, last):
        targets_L = targets_BL[row]
        num_targets = num_contexts_B[row] * (1 + negatives)
        grouped = num_targets & ~3
        for part in range(begin, end):
            chunks = num_chunks(part, width, dim)
            base = np.int64(part) * num_words
            v = (base + center_B[row]) * width
            if part == begin:
                scores_J[at : at + num_targets] = 0
            for j in range(0, grouped, 4):
                u = (
                    (base + targets_L[j]) * width,
                    (base + targets_L[j + 1]) * width,
                    (base + targets_L[j + 2]) * width,
                    (base + targets_L[j + 3]) * width,
                )
                a, b, c, d = dot_4(context_HVC, u, center_HVC, v, chunks)
                k = at + j
                scores_J[k] += a
                scores_J[k + 1] += b
                scores_J[k + 2] += c
                scores_J[k + 3] += d
            for j in range(grouped, num_targets):
                (a,) = dot_1(context_HVC, ((base + targets_L[j]) * width,), center_HVC, v, chunks)
                scores_J[at + j] += a
        at += num_targets
    return at


@fast
def slopes_and_losses(scores_J: Floats, signs_J: Floats, count: int, losses_J: Floats) -> None:
    """Turns scores into their losses' slopes, sigmoid(score) - label; ``signs_J`` is 1 for label 1 and -1 for label 0.

    A score z = sign·v·u costs log(1 + exp(-z)). Exponential and logarithm are polynomials, since calls would keep the
    loop from using vectors: exp(x) = 2^k·exp(r), |r| <= ln(2)/2, to the 6th power; log(1 + e) = 2·atanh(e / (2 + e)),
    to the 13th. Both are right to 5e-7 or better.
    """
    for j in range(count):
        sign = signs_J[j]
        z = scores_J[j] * sign
        y = min(abs(z), np.float32(80)) * np.float32(-1.4426950408889634)
        k = np.floor(y + np.float32(0.5))
        r = (y - k) * np.float32(0.6931471805599453)
        e = np.float32(1 / 720)
        e = e * r + np.float32(1 / 120)
        e = e * r + np.float32(1 / 24)
        e = e * r + np.float32(1 / 6)
        e = e * r + np.float32(1 / 2)
        e = e * r + _F1
        e = e * r + _F1
        e *= power_of_two(k)  # exp(-|z|)
        both = _F1 / ((_F1 + e) * (np.float32(2) + e))  # one division for the two quotients
        sigmoid = both * (np.float32(2) + e)  # of |z|
        w = e * both * (_F1 + e)
        square = w * w
        log = np.float32(1 / 13)
        log = log * square + np.float32(1 / 11)
        log = log * square + np.float32(1 / 9)
        log = log * square + np.float32(1 / 7)
        log = log * square + np.float32(1 / 5)
        log = log * square + np.float32(1 / 3)
        log = log * square + _F1
        losses_J[j] = max(-z, _F0) + np.float32(2) * w * log
        scores_J[j] = -sign * (e * sigmoid if z >= 0 else sigmoid)


@fast
def signs_of(
    first: int, last: int, num_contexts_B: npt.NDArray[np.int16], negatives: int, signs_J: Floats
) -> None:
    """1 for the contexts and -1 for the negatives of rows ``first`` to ``last``."""
    at = 0
    for row in range(first, last):
        contexts = at + num_contexts_B[row]
        end = at + num_contexts_B[row] * (1 + negatives)
        for j in range(at, contexts):
            signs_J[j] = _F1
        for j in range(contexts, end):
            signs_J[j] = -_F1
        at = end


@fast
def mean_of(losses_J: Floats, first: int, count: int) -> float:
    total = _F0
    for j in range(first, first + count):
        total += losses_J[j]
    return total / np.float32(count)


# ---- In place


class InPlace:
    """Tables that ``update`` trains in place: SGD, or row-wise Adagrad where ``adagrad``; in ``ROWS_AT_ONCE`` blocks.

    It works on copies. ``push`` writes them into the tables, ``pull`` takes what was changed there.
    """

    def __init__(self, center_VD: Tensor, context_VD: Tensor, negatives: int, adagrad: bool = False):
        self.tables = (center_VD, context_VD)
        self.accumulators = tuple(torch.zeros(len(table)) for table in self.tables) if adagrad else ()
        self._negatives = negatives
        self._team = team_for(center_VD.shape[1])
        self._counters = self._team.counters()
        self.pull()

    def pull(self) -> None:
        self._parts = tuple(in_parts(table_VD, self._team.size) for table_VD in self.tables)
        # Every thread has its own, since all need all of them: (T, V).
        self._sums = tuple(sums_V.expand(self._team.size, -1).contiguous() for sums_V in self.accumulators)

    def push(self) -> None:
        for parts_HVC, table_VD in zip(self._parts, self.tables, strict=True):
            out_of_parts(parts_HVC, table_VD)
        for sums_TV, sums_V in zip(self._sums, self.accumulators, strict=True):
            sums_V.copy_(sums_TV[0])

    def update(self, center_B: Tensor, contexts_negatives_BL: Tensor, num_contexts_B: Tensor, lr: float) -> Tensor:
        """Trains on a batch as ``reference.update`` does; the losses, shape (B,)."""
        losses_B = torch.zeros(len(center_B))
        max_len = contexts_negatives_BL.shape[1]
        dim, width = self.tables[0].shape[1], self._parts[0].shape[2]
        size, most = self._team.size, ROWS_AT_ONCE * max_len
        none_TV = torch.zeros(size, 0)
        arrays = [
            tensor.numpy()
            for tensor in (center_B, contexts_negatives_BL, num_contexts_B, *self._parts)
            + (self._sums or (none_TV, none_TV))
            + (
                losses_B,
                torch.empty(size, 2, most + ROWS_AT_ONCE + CHUNK),  # shares
                torch.empty(size, 4, most + ROWS_AT_ONCE),  # scratch
                torch.empty(size, ROWS_AT_ONCE * self._parts[0].shape[0] * width),  # gradients of centers
            )
        ]
        self._team.run(
            lambda member: _update(
                member, size, self._counters, *arrays, self._negatives, dim, np.float32(lr), bool(self._sums)
            )
        )
        return losses_B


@fast
def _update(
    member: int,
    size: int,
    counters: Counters,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: npt.NDArray[np.int16],
    center_HVC: Floats,
    context_HVC: Floats,
    center_sums_TV: Floats,
    context_sums_TV: Floats,
    losses_B: Floats,
    shares: Floats,
    scratch: Floats,
    gradients: Floats,
    negatives: int,
    dim: int,
    lr: float,
    adagrad: bool,
) -> None:
    """One thread's columns of every row. All threads go through the same blocks and meet in each."""
    num_parts, num_words, width = center_HVC.shape
    begin, end = num_parts * member // size, num_parts * (member + 1) // size
    slopes_J, signs_J = scratch[member, 0], scratch[member, 1]
    losses_J, steps_J = scratch[member, 2], scratch[member, 3]
    gradients_BHC = gradients[member]
    center_sums_V, context_sums_V = center_sums_TV[member], context_sums_TV[member]
    epsilon = np.float32(ADAGRAD_EPSILON)
    turn = 0
    for first in range(0, center_B.size, ROWS_AT_ONCE):
        last = min(first + ROWS_AT_ONCE, center_B.size)

        # Scores, and for Adagrad |v|^2 behind them: this thread's columns, then everybody's.
        share_J = shares[member, turn & 1]
        count = scores_of(
            first,
            last,
            center_B,
            targets_BL,
            num_contexts_B,
            negatives,
            center_HVC,
            context_HVC,
            dim,
            begin,
            end,
            share_J,
        )
        signs_of(first, last, num_contexts_B, negatives, signs_J)
        if adagrad:
            share_J[count : count + last - first] = 0
            for row in range(first, last):
                for part in range(begin, end):
                    v = (np.int64(part) * num_words + center_B[row]) * width
                    (square,) = dot_1(center_HVC, (v,), center_HVC, v, num_chunks(part, width, dim))
                    share_J[count + row - first] += square
        turn = _add_up(counters, member, size, shares, turn, count + last - first, slopes_J)
        slopes_and_losses(slopes_J, signs_J, count, losses_J)

        # Steps of the contexts, in turn.
        if adagrad:
            at = 0
            for row in range(first, last):
                square = slopes_J[count + row - first] / np.float32(dim)
                for j in range(num_contexts_B[row] * (1 + negatives)):
                    target = targets_BL[row, j]
                    context_sums_V[target] += slopes_J[at] * slopes_J[at] * square
                    steps_J[at] = -lr / (np.sqrt(context_sums_V[target]) + epsilon) * slopes_J[at]
                    at += 1
        else:
            for j in range(count):
                steps_J[j] = -lr * slopes_J[j]

        # Contexts move; the centers' gradients add up.
        gradients_BHC[: (last - first) * num_parts * width] = 0
        _move_contexts(
            first,
            last,
            center_B,
            targets_BL,
            num_contexts_B,
            negatives,
            center_HVC,
            context_HVC,
            dim,
            begin,
            end,
            gradients_BHC,
            slopes_J,
            steps_J,
        )
        at = 0
        for row in range(first, last):
            num_targets = num_contexts_B[row] * (1 + negatives)
            if num_targets and row % size == member:
                losses_B[row] = mean_of(losses_J, at, num_targets)
            at += num_targets

        # Centers move, in turn.
        if adagrad:
            share_J = shares[member, turn & 1]
            for row in range(first, last):
                total = _F0
                for part in range(begin, end):
                    gradient = ((row - first) * num_parts + part) * width
                    for column in range(gradient, gradient + width):
                        total += gradients_BHC[column] * gradients_BHC[column]
                share_J[row - first] = total
            turn = _add_up(counters, member, size, shares, turn, last - first, steps_J)
        for row in range(first, last):
            center = center_B[row]
            rate = lr
            if num_contexts_B[row] == 0:
                continue
            if adagrad:
                center_sums_V[center] += steps_J[row - first] / np.float32(dim)
                rate = lr / (np.sqrt(center_sums_V[center]) + epsilon)
            for part in range(begin, end):
                gradient = ((row - first) * num_parts + part) * width
                v_C, gradient_C = center_HVC[part, center], gradients_BHC[gradient : gradient + width]
                for column in range(width):
                    v_C[column] -= rate * gradient_C[column]


@fast
def _add_up(
    counters: Counters, member: int, size: int, shares: Floats, turn: int, count: int, total_J: Floats
) -> int:
    """``total_J`` becomes the sum over the threads' shares; returns the next turn.

    Shares of odd and even turns lie apart: a thread can only be one turn ahead of another that still reads.
    """
    if size > 1:
        meet(counters, member, size)
    for j in range(count):
        total_J[j] = shares[0, turn & 1, j]
    for other in range(1, size):
        for j in range(count):
            total_J[j] += shares[other, turn & 1, j]
    return turn + 1


@fast
def _move_contexts(
    first: int,
    last: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: npt.NDArray[np.int16],
    negatives: int,
    center_HVC: Floats,
    context_HVC: Floats,
    dim: int,
    begin: int,
    end: int,
    gradients_BHC: Floats,
    slopes_J: Floats,
    steps_J: Floats,
) -> None:
    """For each target in turn: the center's gradient += slope·u, then u += step·v."""
    num_parts, num_words, width = context_HVC.shape
    at = 0
    for row in range(first, last):
        targets_L = targets_BL[row]
        num_targets = num_contexts_B[row] * (1 + negatives)
        grouped = num_targets & ~3
        for part in range(begin, end):
            chunks = num_chunks(part, width, dim)
            base = np.int64(part) * num_words
            v = (base + center_B[row]) * width
            gradient = ((row - first) * num_parts + part) * width
            for j in range(0, grouped, 4):
                u = (
                    (base + targets_L[j]) * width,
                    (base + targets_L[j + 1]) * width,
                    (base + targets_L[j + 2]) * width,
                    (base + targets_L[j + 3]) * width,
                )
                k = at + j
                slopes = (slopes_J[k], slopes_J[k + 1], slopes_J[k + 2], slopes_J[k + 3])
                steps = (steps_J[k], steps_J[k + 1], steps_J[k + 2], steps_J[k + 3])
                move_4(context_HVC, u, context_HVC, center_HVC, v, gradients_BHC, gradient, slopes, steps, chunks)
            for j in range(grouped, num_targets):
                u_1, slope, step = ((base + targets_L[j]) * width,), (slopes_J[at + j],), (steps_J[at + j],)
                move_1(context_HVC, u_1, context_HVC, center_HVC, v, gradients_BHC, gradient, slope, step, chunks)
        at += num_targets
