"""The step on an NVIDIA GPU, fused, by Triton. Agrees with ``reference``; not the same bits from run to run.

A Triton program works on one row. It gathers the row's real targets once, as a block, and takes from it the scores, the
loss, the slopes (dloss/dscore) and the center's gradient; what is left is to scatter, which needs no second gather.
Tables of tens of MB stay in the L2 cache, so that launches and latency decide, not bandwidth: hence few kernels, and
all rows of a batch at once where they fit. Nothing here waits for the GPU or allocates by what is in the data, so that
``torch.cuda.graph`` can capture a step.

Rows meet in the tables through atomic additions of float32. Their order is the hardware's, so on a GPU the last bits of
gradients and tables differ from run to run. In Triton's interpreter (TRITON_INTERPRET=1 before this is imported), which
works on CPU tensors, programs run one after the other.

Tables are contiguous float32. Ids are not checked: one outside of a table reads or writes foreign memory. Row 0 of the
tables never moves, and of a batch only the real targets are read: padding may hold anything.

B rows of a batch, L = max_len targets a row, T of a block of them, D dimensions, V words.
"""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from training.model.batch import BatchTensors
from training.model.kernels import reference
from training.model.kernels.reference import ADAGRAD_EPSILON
from training.model.skip_gram import TableTensors

BLOCK_ELEMENTS = 4096
"""Floats of a gathered block, targets x dimensions: 32 targets of 65 to 128 dimensions. With window 5 and 5 negatives a
row has 60 targets at most, and fewer than 36 on average."""

WARPS = 8
"""Of a program. At 100 dimensions the forward kernel then takes 58 registers a thread (ptxas, sm_90), so that four
programs fit on a multiprocessor, and the 512 rows of the book's batch on the 132 of an H200 at once."""

ROWS_AT_ONCE = 512
"""Programs of ``update``; each trains its share of the rows in turn. More of them would fill a large GPU better, but a
frequent word would get more steps that do not know of each other."""

jit: Callable[[Callable[..., Any]], Any] = triton.jit  # Triton brings no types; a kernel's pointers are tl.tensor too
EPSILON = tl.constexpr(ADAGRAD_EPSILON)


def row_losses(batch: BatchTensors, tables: TableTensors, negatives: int) -> Tensor:
    """The losses of ``reference.row_losses``, shape (B,); their gradients by both tables are dense.

    Forwards one kernel computes scores, losses and slopes; backwards zeros are filled in and one kernel scatters.
    """
    losses_B: Tensor = _RowLosses.apply(*batch, *tables, negatives)  # type: ignore[no-untyped-call]
    return losses_B


def update(
    batch: BatchTensors,
    tables: TableTensors,
    negatives: int,
    lr: float | Tensor,
    accumulators: tuple[Tensor, ...] = (),
    frozen_V: Tensor | None = None,
) -> Tensor:
    """Trains both tables in place as ``reference.update`` does; returns the losses along the way, shape (B,).

    ``ROWS_AT_ONCE`` rows train at the same time, each on the tables as it finds them, like the threads of word2vec.c:
    only the steps within a row are in the reference's order. ``lr`` may be a float32 tensor of no dimensions on the
    tables' device, which a captured step reads again at every replay.
    """
    _check(*batch, *tables)
    center_VD, num_contexts_B = tables[0], batch[2]
    num_rows, max_len = batch[1].shape
    if not isinstance(lr, Tensor):
        lr = torch.full((), lr, dtype=torch.float32, device=center_VD.device)
    slopes_BL = torch.empty((num_rows, max_len), device=center_VD.device)
    losses_B = torch.empty(num_rows, device=center_VD.device)
    rows_each = max(1, triton.cdiv(num_rows, ROWS_AT_ONCE))
    _update[(triton.cdiv(num_rows, rows_each),)](
        *batch,
        *tables,
        *(accumulators or tables),  # pointers that are not read without accumulators
        num_contexts_B if frozen_V is None else frozen_V.view(torch.uint8),  # nor this one without frozen words
        slopes_BL,
        losses_B,
        lr,
        num_rows,
        rows_each,
        adagrad=bool(accumulators),
        freezes=frozen_V is not None,
        **_sizes(max_len, center_VD.shape[1], negatives),
    )
    return losses_B


class InPlace(reference.InPlace):
    """The tables under ``update``."""

    def update(self, batch: BatchTensors, lr: float) -> Tensor:
        """Trains on a batch; the losses, shape (B,)."""
        return update(batch, self.tables, self._negatives, lr, self.accumulators, self.frozen_V)


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *arguments: Any) -> Tensor:
        *batch_and_tables, negatives = arguments
        _check(*batch_and_tables)
        center_B, contexts_negatives_BL, num_contexts_B, center_VD, _ = batch_and_tables
        (num_rows, max_len), dim = contexts_negatives_BL.shape, center_VD.shape[1]
        slopes_BL, center_gradients_BD, losses_B = (
            torch.empty(shape, device=center_VD.device) for shape in ((num_rows, max_len), (num_rows, dim), (num_rows,))
        )
        sizes = _sizes(max_len, dim, negatives)
        _forward[(num_rows,)](*batch_and_tables, slopes_BL, center_gradients_BD, losses_B, **sizes)
        saved = center_B, contexts_negatives_BL, num_contexts_B, center_VD, slopes_BL, center_gradients_BD
        ctx.save_for_backward(*saved)
        ctx.sizes = sizes  # type: ignore[attr-defined]
        return losses_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight_B: Tensor) -> tuple[Tensor | None, ...]:
        center_VD = ctx.saved_tensors[3]
        gradients_2VD = torch.zeros((2, *center_VD.shape), device=center_VD.device)
        center_gradient_VD, context_gradient_VD = gradients_2VD
        _backward[weight_B.shape](
            *ctx.saved_tensors, weight_B.contiguous(), center_gradient_VD, context_gradient_VD, **ctx.sizes
        )
        return None, None, None, center_gradient_VD, context_gradient_VD, None


def _check(*tensors: Tensor) -> None:
    center_B, contexts_negatives_BL, num_contexts_B, center_VD, context_VD = tensors
    assert center_VD.dtype == context_VD.dtype == torch.float32
    assert center_VD.shape == context_VD.shape
    assert center_B.shape == num_contexts_B.shape == contexts_negatives_BL.shape[:1]
    assert all(tensor.is_contiguous() and tensor.device == center_VD.device for tensor in tensors)


def _sizes(max_len: int, dim: int, negatives: int) -> dict[str, int]:
    """What kernels are compiled for: the same through a run."""
    block_d = triton.next_power_of_2(dim)
    block_t = min(triton.next_power_of_2(max_len), max(1, BLOCK_ELEMENTS // block_d))
    sizes = {"max_len": max_len, "dim": dim, "negatives": negatives, "block_t": block_t, "block_d": block_d}
    return {**sizes, "num_warps": WARPS}


@jit
def _forward(
    center_B: tl.tensor,
    contexts_negatives_BL: tl.tensor,
    num_contexts_B: tl.tensor,
    center_VD: tl.tensor,
    context_VD: tl.tensor,
    slopes_BL: tl.tensor,
    center_gradients_BD: tl.tensor,
    losses_B: tl.tensor,
    max_len: tl.constexpr,
    dim: tl.constexpr,
    negatives: tl.constexpr,
    block_t: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    num_contexts, num_targets, _, v_D = _row(row, center_B, num_contexts_B, center_VD, negatives, dim, block_d)
    targets_L, slopes_L = contexts_negatives_BL + row * max_len, slopes_BL + row * max_len
    loss, center_gradient_D = _score(
        targets_L, slopes_L, v_D, num_contexts, num_targets, context_VD, dim, block_t, block_d
    )
    tl.store(losses_B + row, loss)
    place_D = tl.arange(0, block_d)
    tl.store(center_gradients_BD + row * dim + place_D, center_gradient_D, mask=place_D < dim)


@jit
def _backward(
    center_B: tl.tensor,
    contexts_negatives_BL: tl.tensor,
    num_contexts_B: tl.tensor,
    center_VD: tl.tensor,
    slopes_BL: tl.tensor,
    center_gradients_BD: tl.tensor,
    weight_B: tl.tensor,
    center_gradient_VD: tl.tensor,
    context_gradient_VD: tl.tensor,
    max_len: tl.constexpr,
    dim: tl.constexpr,
    negatives: tl.constexpr,
    block_t: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    _, num_targets, center, v_D = _row(row, center_B, num_contexts_B, center_VD, negatives, dim, block_d)
    weight = tl.load(weight_B + row) / tl.maximum(num_targets, 1)  # a row's loss is the mean over its targets
    targets_L, slopes_L = contexts_negatives_BL + row * max_len, slopes_BL + row * max_len
    for first in range(0, num_targets, block_t):
        targets_T, slopes_T, moves_T = _targets(targets_L, slopes_L, first, num_targets, block_t)
        _add(context_gradient_VD, targets_T, (weight * slopes_T)[:, None] * v_D[None, :], moves_T, dim, block_d)
    place_D = tl.arange(0, block_d)
    center_gradient_D = tl.load(center_gradients_BD + row * dim + place_D, mask=place_D < dim, other=0.0)
    _add_one(center_gradient_VD, center, weight * center_gradient_D, dim, block_d)


@jit
def _update(
    center_B: tl.tensor,
    contexts_negatives_BL: tl.tensor,
    num_contexts_B: tl.tensor,
    center_VD: tl.tensor,
    context_VD: tl.tensor,
    center_accumulator_V: tl.tensor,
    context_accumulator_V: tl.tensor,
    frozen_V: tl.tensor,
    slopes_BL: tl.tensor,
    losses_B: tl.tensor,
    lr: tl.tensor,
    num_rows: int,
    rows_each: int,
    adagrad: tl.constexpr,
    freezes: tl.constexpr,
    max_len: tl.constexpr,
    dim: tl.constexpr,
    negatives: tl.constexpr,
    block_t: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    rate = tl.load(lr)
    begin = tl.program_id(0) * rows_each
    for index in range(begin, tl.minimum(begin + rows_each, num_rows)):
        row = tl.cast(index, tl.int64)
        num_contexts, num_targets, center, v_D = _row(row, center_B, num_contexts_B, center_VD, negatives, dim, block_d)
        targets_L, slopes_L = contexts_negatives_BL + row * max_len, slopes_BL + row * max_len
        loss, center_gradient_D = _score(
            targets_L, slopes_L, v_D, num_contexts, num_targets, context_VD, dim, block_t, block_d
        )
        tl.store(losses_B + row, loss)
        tl.debug_barrier()  # every thread sees the slopes, and no word moves before all were gathered
        for first in range(0, num_targets, block_t):
            targets_T, slopes_T, moves_T = _targets(targets_L, slopes_L, first, num_targets, block_t)
            if freezes:
                moves_T &= tl.load(frozen_V + targets_T) == 0
            step_T = tl.full([block_t], 0.0, tl.float32) + rate
            if adagrad:
                # A word that comes twice has the same slope twice, so that their order is nothing.
                square_T = slopes_T * slopes_T * (tl.sum(v_D * v_D, axis=0) / dim)
                step_T = rate / _accumulate(context_accumulator_V + targets_T, square_T, moves_T)
            _add(context_VD, targets_T, (-step_T * slopes_T)[:, None] * v_D[None, :], moves_T, dim, block_d)
        step = rate
        if freezes:
            center = tl.where(tl.load(frozen_V + center) == 0, center, 0)  # row 0 never moves
        if adagrad:
            square = tl.sum(center_gradient_D * center_gradient_D, axis=0) / dim
            step = rate / _accumulate(center_accumulator_V + center, square, center > 0)
        _add_one(center_VD, center, -step * center_gradient_D, dim, block_d)
        tl.debug_barrier()  # the next row finds what this one did


@jit
def _row(
    row: tl.tensor,
    center_B: tl.tensor,
    num_contexts_B: tl.tensor,
    center_VD: tl.tensor,
    negatives: tl.constexpr,
    dim: tl.constexpr,
    block_d: tl.constexpr,
) -> tl.tensor:
    """num_contexts, num_targets, center (0 for an empty row) and v_D of a row."""
    num_contexts = tl.load(num_contexts_B + row).to(tl.int32)
    center = tl.load(center_B + row, mask=num_contexts > 0, other=0).to(tl.int64)
    place_D = tl.arange(0, block_d)
    v_D = tl.load(center_VD + center * dim + place_D, mask=place_D < dim, other=0.0, cache_modifier=".cg")
    return num_contexts, num_contexts * (1 + negatives), center, v_D


@jit
def _score(
    targets_L: tl.tensor,
    slopes_L: tl.tensor,
    v_D: tl.tensor,
    num_contexts: tl.tensor,
    num_targets: tl.tensor,
    context_VD: tl.tensor,
    dim: tl.constexpr,
    block_t: tl.constexpr,
    block_d: tl.constexpr,
) -> tl.tensor:
    """A row's mean loss, and the center's gradient of its *sum*; writes the slopes of the sum."""
    place_D = tl.arange(0, block_d)
    center_gradient_D = tl.full([block_d], 0.0, tl.float32)
    loss_T = tl.full([block_t], 0.0, tl.float32)
    for first in range(0, num_targets, block_t):
        place_T = first + tl.arange(0, block_t)
        real_T = place_T < num_targets
        targets_T = tl.load(targets_L + place_T, mask=real_T, other=0).to(tl.int64)
        # .cg is past the L1 cache, which does not see what atomics do to the table.
        u_TD = tl.load(
            context_VD + targets_T[:, None] * dim + place_D[None, :],
            mask=real_T[:, None] & (place_D < dim)[None, :],
            other=0.0,
            cache_modifier=".cg",
        )
        scores_T = tl.sum(u_TD * v_D[None, :], axis=1)
        label_T = (place_T < num_contexts).to(tl.float32)
        small_T = tl.exp(-tl.abs(scores_T))  # never above 1, so that nothing overflows
        sigmoid_T = tl.where(scores_T >= 0, 1.0, small_T) / (1.0 + small_T)
        loss_T += tl.where(real_T, tl.maximum(scores_T, 0.0) - scores_T * label_T + tl.log(1.0 + small_T), 0.0)
        slopes_T = tl.where(real_T, sigmoid_T - label_T, 0.0)
        tl.store(slopes_L + place_T, slopes_T, mask=real_T)
        center_gradient_D += tl.sum(slopes_T[:, None] * u_TD, axis=0)
    return tl.sum(loss_T, axis=0) / tl.maximum(num_targets, 1), center_gradient_D


@jit
def _targets(
    targets_L: tl.tensor, slopes_L: tl.tensor, first: tl.tensor, num_targets: tl.tensor, block_t: tl.constexpr
) -> tl.tensor:
    """Ids and slopes of a block of targets, and which of them move."""
    place_T = first + tl.arange(0, block_t)
    real_T = place_T < num_targets
    targets_T = tl.load(targets_L + place_T, mask=real_T, other=0).to(tl.int64)
    return targets_T, tl.load(slopes_L + place_T, mask=real_T, other=0.0), targets_T > 0


@jit
def _add(
    table_VD: tl.tensor,
    rows_T: tl.tensor,
    change_TD: tl.tensor,
    moves_T: tl.tensor,
    dim: tl.constexpr,
    block_d: tl.constexpr,
) -> None:
    place_D = tl.arange(0, block_d)
    places_TD = table_VD + rows_T[:, None] * dim + place_D[None, :]
    tl.atomic_add(places_TD, change_TD, mask=moves_T[:, None] & (place_D < dim)[None, :], sem="relaxed")


@jit
def _add_one(
    table_VD: tl.tensor, row: tl.tensor, change_D: tl.tensor, dim: tl.constexpr, block_d: tl.constexpr
) -> None:
    place_D = tl.arange(0, block_d)
    tl.atomic_add(table_VD + row * dim + place_D, change_D, mask=place_D < tl.where(row > 0, dim, 0), sem="relaxed")


@jit
def _accumulate(accumulators: tl.tensor, squares: tl.tensor, moves: tl.tensor) -> tl.tensor:
    """Adds to Adagrad's accumulators and returns their roots, by which the rate is divided."""
    before = tl.atomic_add(accumulators, squares, mask=moves, sem="relaxed")
    return tl.sqrt(before + squares) + EPSILON
