"""The step on an NVIDIA GPU, fused, by Triton. Agrees with ``reference``; not the same bits from run to run.

A Triton program processes one row. It gathers the row's real targets once, as a block, and computes from them the
scores, the loss, the slopes (dloss/dscore) and the center's gradient, so the scatter needs no second gather. Tables of
tens of MB stay in the L2 cache, so the time depends on launches and latency, not on bandwidth: hence there are few
kernels, and each processes all rows of a batch at once if they fit. Nothing here waits for the GPU, and no allocation
depends on the data, so that ``torch.cuda.graph`` can capture a step.

Rows change the tables through atomic additions of float32. The hardware decides their order, so on a GPU the last bits
of gradients and tables differ from run to run. In Triton's interpreter (TRITON_INTERPRET=1, set before this module is
imported), which works on CPU tensors, programs run one after the other.

If ranks share the columns of the tables, a rank's ``tables`` are its own columns, and ``add_up`` sums shares over the
ranks. Every score is needed before the first slope, and a kernel cannot wait for other GPUs: so ``_share`` writes the
shares of the scores, and after ``add_up`` a second kernel continues from their sums (``Constants.shared``).

Tables are contiguous float32. Ids are not checked: an id outside a table reads or writes other memory. Row 0 of the
tables never moves. Only the real targets of a batch are read, so padding may contain any value.

B rows of a batch, L = max_len targets a row, T of a block of them, D dimensions (of a rank's own columns), V words,
P programs.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from training.model.batch import BatchTensors
from training.model.kernels.reference import ADAGRAD_EPSILON, AddUp, InPlaceTrainer
from training.model.skip_gram import TableTensors

BLOCK_ELEMENTS = 4096
"""Floats of a gathered block, targets x dimensions: 32 targets of 65 to 128 dimensions. With window 5 and 5 negatives,
a row has at most 60 targets, and fewer than 36 on average."""

PROGRAMS_PER_MULTIPROCESSOR = 4
"""Programs that a multiprocessor runs at once: the 132 of an H100 run the 512 of a batch of the book."""

LAUNCH = {"num_warps": 8, "maxnreg": 65536 // (PROGRAMS_PER_MULTIPROCESSOR * 8 * 32)}
"""Warps of a program, and the registers that a multiprocessor then has for a thread: 64. Without the limit, ptxas lets
a thread use the first vector of a block before it requests the others. With it, the thread requests all of them first
(benchmarks/reports/gpu-compiled.md)."""

ROWS_AT_ONCE = 512
"""Programs that train in place, at most; each trains its share of the rows in turn. More programs would use a large GPU
better, but more steps of a frequent word would not see each other. A smaller GPU has as many as run at once: others
would only begin when those end."""

ROWS_BETWEEN_MEETINGS = 512
"""Rows whose scores the ranks add up in one message, if they share the columns. More rows would pay the latency of a
message (some 20 µs over NVLink, 100 µs over a network) and of three launches less often. But their slopes are computed
before any of them moves a vector, so that the steps of a frequent word add up: on Penn Treebank without subsampling,
where every 16th row has the same center, sgd is stable with 512 rows and diverges with 1024 (CpuTrainer with as many
``cpu.ROWS_AT_ONCE``). With --sample 1e-4, up to 1024 rows end at the same loss."""

jit: Callable[[Callable[..., Any]], Any] = triton.jit  # Triton has no types for mypy; a kernel's pointers are tl.tensor
EPSILON = tl.constexpr(ADAGRAD_EPSILON)


class Constants(NamedTuple):
    """Compile-time constants of a kernel, the same throughout a run."""

    max_len: int
    dim: int
    negatives: int
    block_t: int
    block_d: int
    total_dim: int = 0
    """The dimensions of all ranks' columns, over which Adagrad takes means."""
    adagrad: bool = False
    freezes: bool = False
    shared: bool = False
    """Whether ranks share the columns, so that ``_score`` finds the scores summed."""

    @classmethod
    def of(cls, max_len: int, dim: int, negatives: int, **others: Any) -> "Constants":
        block_d = triton.next_power_of_2(dim)
        block_t = min(triton.next_power_of_2(max_len), max(1, BLOCK_ELEMENTS // block_d))
        return cls(max_len, dim, negatives, block_t, block_d, **others)


# Tensors in Python, pointers in a kernel.


class Rows(NamedTuple):
    """A batch."""

    center_B: tl.tensor
    contexts_negatives_BL: tl.tensor
    num_contexts_B: tl.tensor


class Tables(NamedTuple):
    """Both tables, or their gradients."""

    center_VD: tl.tensor
    context_VD: tl.tensor


class Results(NamedTuple):
    """For each row the slopes (or the scores, before their slopes), the loss, and the center's gradient."""

    slopes_BL: tl.tensor
    losses_B: tl.tensor
    center_gradients_BD: tl.tensor


class Trained(NamedTuple):
    """What training in place reads and changes: the tables, Adagrad's sums, and frozen words if there are any."""

    center_VD: tl.tensor
    context_VD: tl.tensor
    center_sums_V: tl.tensor
    context_sums_V: tl.tensor
    frozen_V: tl.tensor


def row_losses(batch: BatchTensors, tables: TableTensors, negatives: int, add_up: AddUp | None = None) -> Tensor:
    """The losses of ``reference.row_losses``, shape (B,); their gradients by both tables are dense.

    Forward, one kernel computes scores, losses and slopes (two kernels with ``add_up``, which is called once between
    them). Backward, one kernel scatters into zeroed gradients.
    """
    losses_B: Tensor = _RowLosses.apply(*batch, *tables, negatives, add_up)  # type: ignore[no-untyped-call]
    return losses_B


class CudaTrainer(InPlaceTrainer):
    """Tables that Triton trains in place.

    ``ROWS_AT_ONCE`` rows train at the same time without synchronization, like the threads of word2vec.c: only the steps
    within a row are in the reference's order. If ranks share the columns, the tables are trained as by the reference
    with ``ROWS_BETWEEN_MEETINGS``, except that rows which train at the same time see some of each other's moves.
    """

    def update(self, batch: BatchTensors, lr: float) -> Tensor:
        """Trains on a batch. Returns the losses, shape (B,)."""
        _check(*batch, *self.tables)
        (num_rows, max_len), (dim, device) = batch[1].shape, (self.tables[0].shape[1], self.tables[0].device)
        losses_B = torch.empty(num_rows, device=device)
        modes = {"adagrad": self._adagrad, "freezes": self.frozen_V is not None, "shared": self.add_up is not None}
        constants = Constants.of(max_len, dim, self._negatives, total_dim=self.dim, **modes)
        # The kernel does not read pointers that its constants exclude, so any tensor will do.
        frozen_V = batch[2] if self.frozen_V is None else self.frozen_V.view(torch.uint8)
        center_sums_V, context_sums_V = self._sums or self.tables
        trained = Trained(*self.tables, center_sums_V, context_sums_V, frozen_V)
        if self.add_up is None:
            rows_each = _rows_each(num_rows, device)
            grid = (triton.cdiv(num_rows, rows_each),)
            slopes_PL = torch.empty((*grid, max_len), device=device)
            _update[grid](Rows(*batch), trained, slopes_PL, losses_B, lr, num_rows, rows_each, constants, **LAUNCH)
            return losses_B
        num_rows = self.rows_at_once or ROWS_BETWEEN_MEETINGS
        for block in zip(*(torch.split(tensor, num_rows) for tensor in (*batch, losses_B)), strict=True):
            _update_columns(Rows(*block[:3]), trained, block[3], lr, self.add_up, constants)
        return losses_B


def _rows_each(num_rows: int, device: torch.device) -> int:
    """The rows of each program that trains in place."""
    at_once = ROWS_AT_ONCE
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        at_once = min(at_once, PROGRAMS_PER_MULTIPROCESSOR * multiprocessors)
    return max(1, -(-num_rows // at_once))


def _update_columns(
    batch: Rows, trained: Trained, losses_B: Tensor, lr: float, add_up: AddUp, constants: Constants
) -> None:
    """Trains this rank's columns on rows whose slopes are computed before any of them moves a vector.

    The centers move last, after all contexts. For Adagrad, |v|^2 travels with the scores, and |g|^2 after them.
    """
    num_rows, device = len(losses_B), losses_B.device
    scores_BL, norms_B = _summed_scores(batch, Tables(trained.center_VD, trained.context_VD), add_up, constants)
    results = Results(scores_BL, losses_B, torch.empty((num_rows, constants.dim), device=device))
    squares_B = torch.empty(num_rows, device=device)
    _move_contexts[(num_rows,)](batch, trained, results, norms_B, squares_B, lr, constants, **LAUNCH)
    if constants.adagrad:
        add_up(squares_B)
    gradients_BD = results.center_gradients_BD
    _move_centers[(num_rows,)](batch, trained, gradients_BD, squares_B, lr, constants, **LAUNCH)


def _summed_scores(batch: Rows, tables: Tables, add_up: AddUp, constants: Constants) -> tuple[Tensor, Tensor]:
    """The scores, (B, L), and the centers' |v|^2, (B,), of all ranks' columns: a kernel and a message."""
    num_rows, max_len = batch.contexts_negatives_BL.shape
    shares = torch.empty(num_rows * (max_len + 1), device=tables.center_VD.device)
    scores, norms_B = torch.split(shares, [num_rows * max_len, num_rows])
    scores_BL = scores.view(num_rows, max_len)
    _share[(num_rows,)](batch, tables, scores_BL, norms_B, constants, **LAUNCH)
    add_up(shares)
    return scores_BL, norms_B


class _RowLosses(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, *arguments: Any) -> Tensor:
        *batch_and_tables, negatives, add_up = arguments
        _check(*batch_and_tables)
        *batch, center_VD, context_VD = batch_and_tables
        rows, tables = Rows(*batch), Tables(center_VD, context_VD)
        (num_rows, max_len), dim = batch[1].shape, center_VD.shape[1]
        constants = Constants.of(max_len, dim, negatives, shared=add_up is not None)
        if add_up is None:
            slopes_BL = torch.empty((num_rows, max_len), device=center_VD.device)
        else:
            slopes_BL, _ = _summed_scores(rows, tables, add_up, constants)
        shapes = (num_rows,), (num_rows, dim)
        results = Results(slopes_BL, *(torch.empty(shape, device=center_VD.device) for shape in shapes))
        _forward[(num_rows,)](rows, tables, results, constants, **LAUNCH)
        ctx.save_for_backward(*batch, center_VD, results.slopes_BL, results.center_gradients_BD)
        ctx.constants = constants  # type: ignore[attr-defined]
        losses_B: Tensor = results.losses_B
        return losses_B

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, weight_B: Tensor) -> tuple[Tensor | None, ...]:
        *batch, center_VD, slopes_BL, center_gradients_BD = ctx.saved_tensors
        gradients = Tables(*torch.zeros((2, *center_VD.shape), device=center_VD.device))
        weights = weight_B.contiguous()
        results = (slopes_BL, center_gradients_BD)
        _backward[weights.shape](Rows(*batch), center_VD, *results, weights, gradients, ctx.constants, **LAUNCH)
        return None, None, None, *gradients, None, None


def _check(*tensors: Tensor) -> None:
    center_B, contexts_negatives_BL, num_contexts_B, center_VD, context_VD = tensors
    assert center_VD.dtype == context_VD.dtype == torch.float32
    assert center_VD.shape == context_VD.shape
    assert center_B.shape == num_contexts_B.shape == contexts_negatives_BL.shape[:1]
    assert all(tensor.is_contiguous() and tensor.device == center_VD.device for tensor in tensors)


@jit
def _forward(batch: Rows, tables: Tables, results: Results, constants: tl.constexpr) -> None:
    _score_row(tl.program_id(0).to(tl.int64), batch, tables, results, constants)


@jit
def _backward(
    batch: Rows,
    center_VD: tl.tensor,
    slopes_BL: tl.tensor,
    center_gradients_BD: tl.tensor,
    weight_B: tl.tensor,
    gradients: Tables,
    constants: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    _, num_targets, center, v_D = _row(row, batch, center_VD, constants)
    weight = tl.load(weight_B + row) / tl.maximum(num_targets, 1)  # a row's loss is the mean over its targets
    targets_L = batch.contexts_negatives_BL + row * constants.max_len
    slopes_L = slopes_BL + row * constants.max_len
    for first in range(0, num_targets, constants.block_t):
        targets_T, slopes_T, moves_T = _targets(targets_L, slopes_L, first, num_targets, constants.block_t)
        _add(gradients.context_VD, targets_T, (weight * slopes_T)[:, None] * v_D[None, :], moves_T, constants)
    place_D = tl.arange(0, constants.block_d)
    gradient_D = center_gradients_BD + row * constants.dim + place_D
    center_gradient_D = tl.load(gradient_D, mask=place_D < constants.dim, other=0.0)
    _add_one(gradients.center_VD, center, weight * center_gradient_D, constants)


@jit
def _update(
    batch: Rows,
    trained: Trained,
    slopes_PL: tl.tensor,
    losses_B: tl.tensor,
    lr: float,
    num_rows: int,
    rows_each: int,
    constants: tl.constexpr,
) -> None:
    program = tl.program_id(0)
    slopes_L = slopes_PL + program * constants.max_len
    begin = program * rows_each
    # If LLVM hoisted addresses out of the loops, a thread would need 116 registers: too many for four programs.
    for index in tl.range(begin, tl.minimum(begin + rows_each, num_rows), disable_licm=True):
        row = tl.cast(index, tl.int64)
        num_contexts, num_targets, center, v_D = _row(row, batch, trained.center_VD, constants)
        targets_L = batch.contexts_negatives_BL + row * constants.max_len
        loss, center_gradient_D = _score(
            targets_L, slopes_L, v_D, num_contexts, num_targets, trained.context_VD, constants
        )
        tl.store(losses_B + row, loss)
        tl.debug_barrier()  # every thread sees the slopes, and no word moves before all words were gathered
        norm = tl.sum(v_D * v_D, axis=0)
        _move_targets(targets_L, slopes_L, num_targets, v_D, norm, trained, lr, constants)
        square = tl.sum(center_gradient_D * center_gradient_D, axis=0)
        _move_center(center, center_gradient_D, square, trained, lr, constants)
        tl.debug_barrier()  # the next row sees what this one changed, and may replace its slopes


@jit
def _share(batch: Rows, tables: Tables, scores_BL: tl.tensor, norms_B: tl.tensor, constants: tl.constexpr) -> None:
    """Writes the shares that these columns have in the scores and in |v|^2. Padding scores 0."""
    row = tl.program_id(0).to(tl.int64)
    _, num_targets, _, v_D = _row(row, batch, tables.center_VD, constants)
    targets_L = batch.contexts_negatives_BL + row * constants.max_len
    scores_L = scores_BL + row * constants.max_len
    for first in range(0, constants.max_len, constants.block_t):
        place_T, u_TD = _gather(targets_L, first, num_targets, tables.context_VD, constants)
        tl.store(scores_L + place_T, tl.sum(u_TD * v_D[None, :], axis=1), mask=place_T < constants.max_len)
    tl.store(norms_B + row, tl.sum(v_D * v_D, axis=0))


@jit
def _move_contexts(
    batch: Rows,
    trained: Trained,
    results: Results,
    norms_B: tl.tensor,
    squares_B: tl.tensor,
    lr: float,
    constants: tl.constexpr,
) -> None:
    """Moves a row's contexts by the summed scores. Writes the center's gradient and its share of |g|^2."""
    row = tl.program_id(0).to(tl.int64)
    num_targets, v_D, center_gradient_D = _score_row(row, batch, trained, results, constants)
    tl.store(squares_B + row, tl.sum(center_gradient_D * center_gradient_D, axis=0))
    tl.debug_barrier()  # every thread sees the slopes, and no word moves before all words were gathered
    norm = tl.load(norms_B + row)
    targets_L = batch.contexts_negatives_BL + row * constants.max_len
    slopes_L = results.slopes_BL + row * constants.max_len
    _move_targets(targets_L, slopes_L, num_targets, v_D, norm, trained, lr, constants)


@jit
def _move_centers(
    batch: Rows,
    trained: Trained,
    gradients_BD: tl.tensor,
    squares_B: tl.tensor,
    lr: float,
    constants: tl.constexpr,
) -> None:
    """Moves a row's center by its gradient, whose |g|^2 is summed."""
    row = tl.program_id(0).to(tl.int64)
    _, _, center, _ = _row(row, batch, trained.center_VD, constants)
    place_D = tl.arange(0, constants.block_d)
    gradient_D = tl.load(gradients_BD + row * constants.dim + place_D, mask=place_D < constants.dim, other=0.0)
    _move_center(center, gradient_D, tl.load(squares_B + row), trained, lr, constants)


@jit
def _row(row: tl.tensor, batch: Rows, center_VD: tl.tensor, constants: tl.constexpr) -> tl.tensor:
    """num_contexts, num_targets, center (0 for an empty row) and v_D of a row."""
    num_contexts = tl.load(batch.num_contexts_B + row).to(tl.int32)
    center = tl.load(batch.center_B + row, mask=num_contexts > 0, other=0).to(tl.int64)
    place_D = tl.arange(0, constants.block_d)
    vector_D = center_VD + center * constants.dim + place_D
    v_D = tl.load(vector_D, mask=place_D < constants.dim, other=0.0, cache_modifier=".cg")
    return num_contexts, num_contexts * (1 + constants.negatives), center, v_D


@jit
def _score_row(row: tl.tensor, batch: Rows, tables: Tables, results: Results, constants: tl.constexpr) -> tl.tensor:
    """Writes a row's results. Returns num_targets, v_D and the center's gradient."""
    num_contexts, num_targets, _, v_D = _row(row, batch, tables.center_VD, constants)
    targets_L = batch.contexts_negatives_BL + row * constants.max_len
    slopes_L = results.slopes_BL + row * constants.max_len
    loss, center_gradient_D = _score(targets_L, slopes_L, v_D, num_contexts, num_targets, tables.context_VD, constants)
    tl.store(results.losses_B + row, loss)
    place_D = tl.arange(0, constants.block_d)
    gradient_D = results.center_gradients_BD + row * constants.dim + place_D
    tl.store(gradient_D, center_gradient_D, mask=place_D < constants.dim)
    return num_targets, v_D, center_gradient_D


@jit
def _score(
    targets_L: tl.tensor,
    slopes_L: tl.tensor,
    v_D: tl.tensor,
    num_contexts: tl.tensor,
    num_targets: tl.tensor,
    context_VD: tl.tensor,
    constants: tl.constexpr,
) -> tl.tensor:
    """A row's mean loss, and the center's gradient of its *sum*; writes the slopes of the sum.

    If the columns are shared, ``slopes_L`` are the scores before.
    """
    center_gradient_D = tl.full([constants.block_d], 0.0, tl.float32)
    loss_T = tl.full([constants.block_t], 0.0, tl.float32)
    for first in tl.range(0, num_targets, constants.block_t, disable_licm=True):
        place_T, u_TD = _gather(targets_L, first, num_targets, context_VD, constants)
        real_T = place_T < num_targets
        if constants.shared:
            scores_T = tl.load(slopes_L + place_T, mask=real_T, other=0.0)
            tl.debug_barrier()  # every thread has the scores before the slopes replace them
        else:
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
def _gather(
    targets_L: tl.tensor, first: tl.tensor, num_targets: tl.tensor, context_VD: tl.tensor, constants: tl.constexpr
) -> tl.tensor:
    """A block of targets: their places in the row, and their vectors u_TD, 0 for padding."""
    place_T = first + tl.arange(0, constants.block_t)
    place_D = tl.arange(0, constants.block_d)
    real_T = place_T < num_targets
    targets_T = tl.load(targets_L + place_T, mask=real_T, other=0).to(tl.int64)
    # .cg bypasses the L1 cache, which does not see what atomics do to the table.
    u_TD = tl.load(
        context_VD + targets_T[:, None] * constants.dim + place_D[None, :],
        mask=real_T[:, None] & (place_D < constants.dim)[None, :],
        other=0.0,
        cache_modifier=".cg",
    )
    return place_T, u_TD


@jit
def _move_targets(
    targets_L: tl.tensor,
    slopes_L: tl.tensor,
    num_targets: tl.tensor,
    v_D: tl.tensor,
    norm: tl.tensor,
    trained: Trained,
    lr: float,
    constants: tl.constexpr,
) -> None:
    """Moves a row's contexts and negatives by their slopes. ``norm`` is |v|^2, for Adagrad."""
    for first in tl.range(0, num_targets, constants.block_t, disable_licm=True):
        targets_T, slopes_T, moves_T = _targets(targets_L, slopes_L, first, num_targets, constants.block_t)
        if constants.freezes:
            moves_T &= tl.load(trained.frozen_V + targets_T) == 0
        step_T = tl.full([constants.block_t], 0.0, tl.float32) + lr
        if constants.adagrad:
            # In a dataset no negative is a context, so a word that occurs twice has the same slope twice.
            square_T = slopes_T * slopes_T * (norm / constants.total_dim)
            step_T = lr / _accumulate(trained.context_sums_V + targets_T, square_T, moves_T)
        _add(trained.context_VD, targets_T, (-step_T * slopes_T)[:, None] * v_D[None, :], moves_T, constants)


@jit
def _move_center(
    center: tl.tensor,
    gradient_D: tl.tensor,
    square: tl.tensor,
    trained: Trained,
    lr: float,
    constants: tl.constexpr,
) -> None:
    """Moves a center by its gradient. ``square`` is |g|^2, for Adagrad."""
    step = lr
    if constants.freezes:
        center = tl.where(tl.load(trained.frozen_V + center) == 0, center, 0)  # row 0 never moves
    if constants.adagrad:
        step = lr / _accumulate(trained.center_sums_V + center, square / constants.total_dim, center > 0)
    _add_one(trained.center_VD, center, -step * gradient_D, constants)


@jit
def _targets(
    targets_L: tl.tensor, slopes_L: tl.tensor, first: tl.tensor, num_targets: tl.tensor, block_t: tl.constexpr
) -> tl.tensor:
    """Ids and slopes of a block of targets, and whether each target moves."""
    place_T = first + tl.arange(0, block_t)
    real_T = place_T < num_targets
    targets_T = tl.load(targets_L + place_T, mask=real_T, other=0).to(tl.int64)
    return targets_T, tl.load(slopes_L + place_T, mask=real_T, other=0.0), targets_T > 0


@jit
def _add(
    table_VD: tl.tensor, rows_T: tl.tensor, change_TD: tl.tensor, moves_T: tl.tensor, constants: tl.constexpr
) -> None:
    place_D = tl.arange(0, constants.block_d)
    places_TD = table_VD + rows_T[:, None] * constants.dim + place_D[None, :]
    tl.atomic_add(places_TD, change_TD, mask=moves_T[:, None] & (place_D < constants.dim)[None, :], sem="relaxed")


@jit
def _add_one(table_VD: tl.tensor, row: tl.tensor, change_D: tl.tensor, constants: tl.constexpr) -> None:
    place_D = tl.arange(0, constants.block_d)
    moves_D = place_D < tl.where(row > 0, constants.dim, 0)
    tl.atomic_add(table_VD + row * constants.dim + place_D, change_D, mask=moves_D, sem="relaxed")


@jit
def _accumulate(sums: tl.tensor, squares: tl.tensor, moves: tl.tensor) -> tl.tensor:
    """Adds to Adagrad's sums and returns their roots, by which the rate is divided."""
    before = tl.atomic_add(sums, squares, mask=moves, sem="relaxed")
    return tl.sqrt(before + squares) + EPSILON
