"""Rows of tables in machine code. The threads divide the columns, so that no two of them write the same cache line.

B rows of a batch, L = max_len targets a row, J targets of several rows end to end, D dimensions, V words, T threads,
C columns of a thread.

If the threads divided the *rows*, all of them would write the vectors of frequent words, and those cache lines would
bounce between the cores: two threads were slower than one. So each thread has its own *columns* of every row. At a
barrier the threads add up their shares of each score. The result depends on the number of threads only by rounding, and
is always the same for the same number. Processors prefetch the next cache lines, so the columns of two threads must be
far apart in memory: a table is stored as T tables of C columns.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.shared.compiled import inner_fast
from training.model.batch import BatchTensors
from training.model.kernels.barrier import Counters, barrier
from training.model.kernels.cores import num_cores
from training.model.kernels.threads import Team, team_of
from training.model.kernels.vector import CHUNK, dot_1, dot_4, power_of_two, scatter_1, scatter_4
from training.model.memory import page_aligned

Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]

_F0, _F1 = np.float32(0), np.float32(1)


class Rows(NamedTuple):
    """A batch for compiled code: int32 ``center_B`` and ``targets_BL``, integers ``num_contexts_B``; K negatives.

    The first n·(1 + K) targets of a row with n contexts are real: the contexts, then the negatives.
    """

    center_B: Ids
    targets_BL: Ids
    num_contexts_B: Counts
    negatives: int

    @classmethod
    def of(cls, batch: BatchTensors, negatives: int) -> "Rows":
        center_B, targets_BL, num_contexts_B = (tensor.contiguous().numpy() for tensor in batch)
        return cls(center_B, targets_BL, num_contexts_B, negatives)


class Columns(NamedTuple):
    """One thread's columns of both tables, (V, C) or wider each, and how many chunks of the C are not padding."""

    center_VC: Floats
    context_VC: Floats
    chunks: int


class Scratch(NamedTuple):
    """Buffers of a step, for J targets in each of T threads, and the state of the threads' barrier."""

    counters: Counters
    shares_T2J: Floats
    """Each thread's shares of the sums that ``add_up`` computes, separate for even and odd turns."""
    slopes_TJ: Floats
    """Scores, then their slopes."""
    signs_TJ: Floats
    losses_TJ: Floats

    @classmethod
    def of(cls, team: Team, num_targets: int) -> "Scratch":
        shares_T2J, *others = (page_aligned(team.size, *more, num_targets + CHUNK) for more in ((2,), (), (), ()))
        return cls(team.counters(), shares_T2J.numpy(), *(each.numpy() for each in others))


# ---- Tables by columns


def team_for(dim: int) -> Team:
    """A team of torch's number of threads, but at most one per core, and at least 32 columns for each."""
    return team_of(max(1, min(torch.get_num_threads(), num_cores(), dim // 32)))


def by_columns(table_VD: Tensor, num_threads: int) -> Tensor:
    """A copy of the table, (T, V, C), padded with columns of zeros, which stay zero."""
    num_words, dim = table_VD.shape
    width = -(-dim // (num_threads * CHUNK)) * CHUNK
    table_TVC = page_aligned(num_threads, num_words, width)
    for thread in range(num_threads):
        columns_VC = table_VD.detach()[:, thread * width : (thread + 1) * width]
        table_TVC[thread, :, : columns_VC.shape[1]] = columns_VC
    return table_TVC


def by_rows(table_TVC: Tensor, table_VD: Tensor) -> None:
    """Copies a table by columns back into an ordinary table."""
    width = table_TVC.shape[2]
    for thread in range(len(table_TVC)):
        columns_VC = table_VD.detach()[:, thread * width : (thread + 1) * width]
        columns_VC.copy_(table_TVC[thread, :, : columns_VC.shape[1]])


@inner_fast
def num_chunks(member: int, width: int, dim: int) -> int:
    """The number of chunks in a thread's columns that are not padding."""
    return (max(0, min(width, dim - member * width)) + CHUNK - 1) // CHUNK


# ---- The parts of a step, for rows ``first`` to ``last`` of a batch


@inner_fast
def scores_of(rows: Rows, first: int, last: int, columns: Columns, scores_J: Floats) -> int:
    """Writes the columns' share of the scores v·u. Returns the number of scores."""
    center_VC, context_VC, chunks = columns
    width = context_VC.shape[1]
    at = 0
    for row in range(first, last):
        targets_L = rows.targets_BL[row]
        num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
        grouped = num_targets & ~3
        v = rows.center_B[row] * width
        for j in range(0, grouped, 4):
            u = (targets_L[j] * width, targets_L[j + 1] * width, targets_L[j + 2] * width, targets_L[j + 3] * width)
            a, b, c, d = dot_4(context_VC, u, center_VC, v, chunks)
            k = at + j
            scores_J[k], scores_J[k + 1], scores_J[k + 2], scores_J[k + 3] = a, b, c, d
        for j in range(grouped, num_targets):
            (scores_J[at + j],) = dot_1(context_VC, (targets_L[j] * width,), center_VC, v, chunks)
        at += num_targets
    return at


@inner_fast
def spread(
    rows: Rows, first: int, last: int, columns: Columns, slopes_J: Floats, steps_J: Floats, totals_BC: Floats
) -> None:
    """In place, for each target in turn: the row's total += slope·u, then u += step·v."""
    center_VC, context_VC, chunks = columns
    width = context_VC.shape[1]
    at = 0
    for row in range(first, last):
        targets_L = rows.targets_BL[row]
        num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
        grouped = num_targets & ~3
        v, total = rows.center_B[row] * width, (row - first) * width
        for j in range(0, grouped, 4):
            u = (targets_L[j] * width, targets_L[j + 1] * width, targets_L[j + 2] * width, targets_L[j + 3] * width)
            k = at + j
            slopes = (slopes_J[k], slopes_J[k + 1], slopes_J[k + 2], slopes_J[k + 3])
            steps = (steps_J[k], steps_J[k + 1], steps_J[k + 2], steps_J[k + 3])
            scatter_4(context_VC, u, u, center_VC, v, totals_BC, total, slopes, steps, chunks)
        for j in range(grouped, num_targets):
            u_1, slope, step = (targets_L[j] * width,), (slopes_J[at + j],), (steps_J[at + j],)
            scatter_1(context_VC, u_1, u_1, center_VC, v, totals_BC, total, slope, step, chunks)
        at += num_targets


@inner_fast
def add_gradients(rows: Rows, first: int, last: int, columns: Columns, slopes_J: Floats, shift: int) -> None:
    """Adds to the gradients, ``shift`` floats behind the vectors: slope·u to the center's, slope·v to the target's."""
    center_VC, context_VC, chunks = columns
    width = context_VC.shape[1]
    at = 0
    for row in range(first, last):
        targets_L = rows.targets_BL[row]
        num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
        grouped = num_targets & ~3
        v = rows.center_B[row] * width
        for j in range(0, grouped, 4):
            u = (targets_L[j] * width, targets_L[j + 1] * width, targets_L[j + 2] * width, targets_L[j + 3] * width)
            to = (u[0] + shift, u[1] + shift, u[2] + shift, u[3] + shift)
            k = at + j
            slopes = (slopes_J[k], slopes_J[k + 1], slopes_J[k + 2], slopes_J[k + 3])
            scatter_4(context_VC, u, to, center_VC, v, center_VC, v + shift, slopes, slopes, chunks)
        for j in range(grouped, num_targets):
            u_1, slope = (targets_L[j] * width,), (slopes_J[at + j],)
            scatter_1(context_VC, u_1, (u_1[0] + shift,), center_VC, v, center_VC, v + shift, slope, slope, chunks)
        at += num_targets


@inner_fast
def slopes_and_losses(scores_J: Floats, signs_J: Floats, count: int, losses_J: Floats) -> None:
    """Replaces scores by the slopes of their losses, sigmoid(score) - label. Signs are 1 for label 1, -1 for label 0.

    The loss of a score is log(1 + exp(-z)) with z = sign·v·u. Exponential and logarithm are polynomials, because LLVM
    cannot vectorise a loop that calls functions: exp(x) = 2^k·exp(r) with |r| <= ln(2)/2, to the 6th power; and
    log(1 + e) = 2·atanh(e / (2 + e)), to the 13th. The error of both is at most 5e-7.
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


@inner_fast
def signs_of(rows: Rows, first: int, last: int, signs_J: Floats) -> None:
    """Writes 1 for the contexts and -1 for the negatives of the rows."""
    at = 0
    for row in range(first, last):
        contexts = at + rows.num_contexts_B[row]
        end = at + rows.num_contexts_B[row] * (1 + rows.negatives)
        for j in range(at, contexts):
            signs_J[j] = _F1
        for j in range(contexts, end):
            signs_J[j] = -_F1
        at = end


@inner_fast
def mean_losses(rows: Rows, first: int, last: int, losses_J: Floats, losses_B: Floats) -> None:
    """Writes the mean loss of each row over its targets. Skips empty rows."""
    at = 0
    for row in range(first, last):
        num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
        if num_targets:
            total = _F0
            for j in range(at, at + num_targets):
                total += losses_J[j]
            losses_B[row] = total / np.float32(num_targets)
        at += num_targets


@inner_fast
def add_up(member: int, scratch: Scratch, turn: int, count: int, total_J: Floats) -> int:
    """Writes the sum of the threads' ``shares_T2J[thread, turn & 1]`` to ``total_J``. Returns the next turn.

    Even and odd turns have separate shares, because a thread may be one turn ahead of another that is still reading.
    """
    shares, size = scratch.shares_T2J, scratch.shares_T2J.shape[0]
    if size > 1:
        barrier(scratch.counters, member, size)
    for j in range(count):
        total_J[j] = shares[0, turn & 1, j]
    for other in range(1, size):
        for j in range(count):
            total_J[j] += shares[other, turn & 1, j]
    return turn + 1
