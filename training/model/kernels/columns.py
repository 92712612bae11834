"""Rows of tables in machine code: threads share the columns, never a cache line that one of them writes.

B rows of a batch, L = max_len targets a row, J targets of several rows end to end, D dimensions, V words, T threads,
C columns of a thread.

Threads that take different *rows* all write the vectors of frequent words, and the cache lines go to and fro: two
threads were slower than one. So each thread has *columns* of its own in every row; the threads' shares of a score are
added up when they meet, and the result is the same for every number of threads but for rounding, and always the same
for one number. Processors fetch the next cache lines unasked, so the columns of two threads must lie far apart: a
table is kept as T tables of C columns.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.shared.compiled import inner_fast
from training.model.kernels.threads import Counters, Team, meet, num_cores, team_of
from training.model.kernels.vector import CHUNK, dot_1, dot_4, move_1, move_4, power_of_two, scatter_1, scatter_4

Ids = npt.NDArray[np.int32]
Counts = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float32]

PAGE = 4096
_F0, _F1 = np.float32(0), np.float32(1)


# ---- Tables by columns


def team_for(dim: int) -> Team:
    """torch's number of threads, as far as there are cores, and 32 columns for each."""
    return team_of(max(1, min(torch.get_num_threads(), num_cores(), dim // 32)))


def by_columns(table_VD: Tensor, num_threads: int) -> Tensor:
    """A copy, (T, V, C), filled up with zero columns, which stay zero."""
    num_words, dim = table_VD.shape
    width = -(-dim // (num_threads * CHUNK)) * CHUNK
    table_TVC = on_large_pages(num_threads, num_words, width)
    for thread in range(num_threads):
        columns_VC = table_VD.detach()[:, thread * width : (thread + 1) * width]
        table_TVC[thread, :, : columns_VC.shape[1]] = columns_VC
    return table_TVC


def by_rows(table_TVC: Tensor, table_VD: Tensor) -> None:
    """Copies the vectors back into an ordinary table."""
    width = table_TVC.shape[2]
    for thread in range(len(table_TVC)):
        columns_VC = table_VD.detach()[:, thread * width : (thread + 1) * width]
        columns_VC.copy_(table_TVC[thread, :, : columns_VC.shape[1]])


def page_aligned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Zeros that begin with a page of memory, as direct writing needs it."""
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + PAGE, dtype=np.uint8)
    skipped = -memory.ctypes.data % PAGE
    return torch.from_numpy(memory[skipped : skipped + num_bytes]).view(dtype).view(shape)


def on_large_pages(*shape: int) -> Tensor:
    """Zeros that begin with a cache line. numpy, unlike torch, asks Linux for 2 MB pages where an array is large.

    With pages of 4 kB most accesses to a large table would miss the TLB, too.
    """
    count = math.prod(shape)
    floats = np.zeros(count + CHUNK, dtype=np.float32)
    skipped = -floats.ctypes.data % 64 // floats.itemsize
    return torch.from_numpy(floats[skipped : skipped + count]).view(shape)


def is_finite(tensor: Tensor) -> bool:
    """Whether no number of the tensor is NaN or infinite; in one pass, without the mask that ``isfinite`` fills."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # NaN is passed on


@inner_fast
def num_chunks(member: int, width: int, dim: int) -> int:
    """Chunks of a thread's columns that hold something."""
    return (max(0, min(width, dim - member * width)) + CHUNK - 1) // CHUNK


# ---- The step's pieces, for rows ``first`` to ``last`` of a batch, and the columns of thread ``member``


@inner_fast
def scores_of(
    first: int,
    last: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    negatives: int,
    center_VC: Floats,
    context_VC: Floats,
    chunks: int,
    scores_J: Floats,
) -> int:
    """The columns' share in the scores v·u; returns how many there are."""
    width = context_VC.shape[1]
    at = 0
    for row in range(first, last):
        targets_L = targets_BL[row]
        num_targets = num_contexts_B[row] * (1 + negatives)
        grouped = num_targets & ~3
        v = center_B[row] * width
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
    first: int,
    last: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    negatives: int,
    center_VC: Floats,
    context_VC: Floats,
    chunks: int,
    slopes_J: Floats,
    steps_J: Floats,
    totals_BC: Floats,
) -> None:
    """In place, for each target in turn: the row's total += slope·u, then u += step·v."""
    width = context_VC.shape[1]
    at = 0
    for row in range(first, last):
        targets_L = targets_BL[row]
        num_targets = num_contexts_B[row] * (1 + negatives)
        grouped = num_targets & ~3
        v, total = center_B[row] * width, (row - first) * width
        for j in range(0, grouped, 4):
            u = (targets_L[j] * width, targets_L[j + 1] * width, targets_L[j + 2] * width, targets_L[j + 3] * width)
            k = at + j
            slopes = (slopes_J[k], slopes_J[k + 1], slopes_J[k + 2], slopes_J[k + 3])
            steps = (steps_J[k], steps_J[k + 1], steps_J[k + 2], steps_J[k + 3])
            move_4(context_VC, u, u, center_VC, v, totals_BC, total, slopes, steps, chunks)
        for j in range(grouped, num_targets):
            u_1, slope, step = (targets_L[j] * width,), (slopes_J[at + j],), (steps_J[at + j],)
            move_1(context_VC, u_1, u_1, center_VC, v, totals_BC, total, slope, step, chunks)
        at += num_targets


@inner_fast
def add_gradients(
    first: int,
    last: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    negatives: int,
    center_VC: Floats,
    context_VC: Floats,
    chunks: int,
    slopes_J: Floats,
    shift: int,
) -> None:
    """The gradients, ``shift`` floats behind the vectors: the center's += slope·u, the target's += slope·v."""
    width = context_VC.shape[1]
    at = 0
    for row in range(first, last):
        targets_L = targets_BL[row]
        num_targets = num_contexts_B[row] * (1 + negatives)
        grouped = num_targets & ~3
        v = center_B[row] * width
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


@inner_fast
def signs_of(first: int, last: int, num_contexts_B: Counts, negatives: int, signs_J: Floats) -> None:
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


@inner_fast
def mean_losses(
    first: int, last: int, num_contexts_B: Counts, negatives: int, losses_J: Floats, losses_B: Floats
) -> None:
    """Every row's mean loss over its targets; those of empty rows stay as they are."""
    at = 0
    for row in range(first, last):
        num_targets = num_contexts_B[row] * (1 + negatives)
        if num_targets:
            total = _F0
            for j in range(at, at + num_targets):
                total += losses_J[j]
            losses_B[row] = total / np.float32(num_targets)
        at += num_targets


@inner_fast
def add_up(counters: Counters, member: int, shares: Floats, turn: int, count: int, total_J: Floats) -> int:
    """``total_J`` becomes the sum of the threads' ``shares[thread, turn & 1]``; returns the next turn.

    Shares of odd and even turns lie apart, for a thread may be one turn ahead of another that still reads.
    """
    size = shares.shape[0]
    if size > 1:
        meet(counters, member, size)
    for j in range(count):
        total_J[j] = shares[0, turn & 1, j]
    for other in range(1, size):
        for j in range(count):
            total_J[j] += shares[other, turn & 1, j]
    return turn + 1
