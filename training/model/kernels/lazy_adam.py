"""Adam whose step costs what the batch touches, not what the tables hold; on the CPU, in machine code.

B rows of a batch, L = max_len targets a row, D dimensions, V words, T threads, C columns of a thread, R rows of a
table that some example has touched.

Adam (Kingma and Ba 2014, arXiv 1412.6980, Algorithm 1) moves every row of the tables at every step, because moments
outlive the gradient that made them: the tables' traffic takes longer than everything else. But without a gradient a
row's steps are known in advance. After its gradient of step s, its moments are m and v, and step s + j moves it by

    lr_j · beta1^j·m / (sqrt(beta2^j·v) + eps')      lr_j = lr·sqrt(1 - beta2^(s+j)) / (1 - beta1^(s+j))

which is m / sqrt(v) times a number that depends on s and j alone. So ``owed_S[s]`` sums up these numbers for the rows
that step s was the last to touch, and such a row moves by owed_S[s]·m / sqrt(v + eps'^2) when it is next read. Nothing
is left out, unlike in torch's SparseAdam; what differs from torch.optim.Adam is rounding, and eps, which is taken as of
step s and inside of the root.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.shared.compiled import compiled_fast, inner_fast
from training.model.kernels.columns import (
    Counts,
    Floats,
    Ids,
    add_gradients,
    add_up,
    by_columns,
    by_rows,
    mean_losses,
    num_chunks,
    on_large_pages,
    page_aligned,
    scores_of,
    signs_of,
    slopes_and_losses,
    team_for,
)
from training.model.kernels.threads import Counters
from training.model.kernels.vector import CHUNK, first_guess, prefetch

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's
ROWS_AT_ONCE = 128
"""Rows whose scores lie in the cache until their gradients are taken."""

_MEMORY = 512
"""Steps after which what a row is owed changes by less than rounding: (beta1 / sqrt(beta2))^512 = 5e-24."""
_AGES = 1 << 15
"""Ages that are told apart; beta2^32768 = 6e-15."""
_COPIED_AT_ONCE = 1024
"""Words; numpy copies a part at a time, and the words' other parts must still be in the cache then."""
_AHEAD = 4
"""Rows that are asked for before they are needed."""

_WEIGHT, _MEAN, _SQUARE, _GRADIENT = range(4)

_FROZEN = np.iinfo(np.int32).max
"""As the step of a row's last gradient: no step is later, so none takes the row for one that it has to move."""


class LazyAdam:
    """Both tables under Adam, by ``steps``; where a step's rows are spread over ranks, by ``slopes`` and ``apply``.

    It works on copies, which ``push`` writes into the tables.
    """

    def __init__(self, center_VD: Tensor, context_VD: Tensor, negatives: int, lr: float, num_steps: int):
        """For at most ``num_steps`` steps."""
        self.tables = (center_VD, context_VD)
        self._negatives, self._dim, self._step = negatives, center_VD.shape[1], 0
        self.team = team_for(self._dim)
        self._counters = self.team.counters()
        size, num_words = self.team.size, len(center_VD)
        weights = [by_columns(table_VD, size) for table_VD in self.tables]
        # (2, T, V, 4, C), of centers and of contexts: what belongs to a word lies side by side.
        self._rows = on_large_pages(2, *weights[0].shape[:2], 4, weights[0].shape[2]).numpy()
        for index, weights_TVC in enumerate(weights):
            self._rows[index, :, :, _WEIGHT] = weights_TVC
        # The step of a row's last gradient, and how many steps the one before was ago.
        self._last = np.zeros((size, 2, 2, num_words), dtype=np.int32)
        self._touched = np.zeros((size, 2, num_words + 1), dtype=np.int32)  # this step's rows
        self._owed = np.zeros((size, num_steps + 2), dtype=np.float32)
        steps = np.arange(num_steps + 2, dtype=np.float64)
        root = np.sqrt(-np.expm1(steps * np.log(BETA2)))
        with np.errstate(divide="ignore", invalid="ignore"):
            self._rate = (lr * root / -np.expm1(steps * np.log(BETA1))).astype(np.float32)
        self._epsilon = ((EPSILON * root) ** 2).astype(np.float32)
        self._copies: Tensor | None = None  # for ``state``, made when it is first asked for
        ages = np.arange(_AGES, dtype=np.float64)
        self._decay = np.stack([BETA1**ages, BETA2**ages, (BETA1 / BETA2**0.5) ** ages]).astype(np.float32)

    def steps(
        self, center_B: Tensor, contexts_negatives_BL: Tensor, num_contexts_B: Tensor, num_steps: int = 1
    ) -> Tensor:
        """``num_steps`` steps, each with an equal share of the rows, end to end; the losses, shape (B,).

        A step takes the gradient of the sum of its losses.
        """
        return self._run(center_B, contexts_negatives_BL, num_contexts_B, num_steps, finish=True)

    def slopes(self, center_B: Tensor, contexts_negatives_BL: Tensor, num_contexts_B: Tensor) -> tuple[Tensor, Tensor]:
        """Begins a step with some of its rows: what ``apply`` needs of them, int32, 1-D, always of one length; losses.

        What a row's gradient is made of is its words and the slopes of its scores, a hundredth of the gradient.
        """
        losses_B = self._run(center_B, contexts_negatives_BL, num_contexts_B, 1, finish=False)
        batch = (num_contexts_B.int(), center_B, contexts_negatives_BL.reshape(-1))
        return torch.cat([*batch, torch.from_numpy(self._slopes.view(np.int32))]), losses_B

    def apply(self, everybodys: Tensor, ranges: npt.NDArray[np.int64], max_len: int) -> None:
        """Ends a step with all of its rows: what ``slopes`` gave in each rank (W, ...), in the order of ``ranges``,
        (rank, first row, last row) each. Tables that were equal, and all get the same, stay equal to the bit.
        """
        arguments: list[Any] = [self._step, self._negatives, self._dim, max_len, ranges, everybodys.numpy()]
        self.team.run(lambda member: _apply(member, *arguments, *self._arrays()))

    def freeze(self, words_K: npt.NDArray[np.int64]) -> None:
        """Keeps the rows of words that no step has touched where they are, until ``thaw``; steps cost what they did."""
        self._last[:, :, 0, words_K] = _FROZEN

    def thaw(self) -> None:
        """Lets frozen rows move from now on, as rows that no step has touched."""
        frozen_V = self._last[0, 0, 0] == _FROZEN
        self._last[:, :, 0, frozen_V] = 0
        self._rows[:, :, frozen_V, _GRADIENT] = 0  # of steps that were not to move them

    def push(self) -> None:
        """Writes the tables as they are after the last step; changes nothing that comes later."""
        for index, table_VD in enumerate(self.tables):
            rows, last = self._rows[index], self._last[:, index]
            last = np.where(last == _FROZEN, np.int32(0), last)
            weights = on_large_pages(*rows[:, :, _WEIGHT].shape)
            row_4C = np.empty((4, rows.shape[3]), dtype=np.float32)
            state: list[Any] = [rows, last, self._owed, self._epsilon, self._decay, row_4C, weights.numpy()]
            _up_to_date(*state)
            by_rows(weights, table_VD)

    def state(self) -> dict[str, Tensor]:
        """All that the next step depends on, copied to memory that the next call uses again.

        ``rows`` (2, 4, V, D): of centers and contexts the weights, moments and last gradients; ``last``; ``owed``.
        """
        if self._copies is None:
            self._copies = page_aligned((2, 4, self._rows.shape[2], self._dim), torch.float32)
        rows, copies = self._rows, self._copies.numpy()
        self.team.run(lambda member: _copy(member, rows, copies))
        last, owed = self._last[0], self._owed[0, : self._step + 1]
        return {"rows": self._copies, "last": torch.from_numpy(last.copy()), "owed": torch.from_numpy(owed.copy())}

    def load(self, state: dict[str, Tensor]) -> None:
        """Goes on from what ``state`` gave, of any number of threads."""
        self._step = len(state["owed"]) - 1
        self._owed[:, : self._step + 1] = state["owed"].numpy()
        self._last[:] = state["last"].numpy()
        for table in range(2):
            for part in range(4):
                self._rows[table, :, :, part] = by_columns(state["rows"][table, part], self.team.size)

    def _arrays(self) -> list[Any]:
        return [
            *(self._rows, self._last, self._touched),
            *(self._owed, self._epsilon, self._rate, self._decay),
        ]

    def _run(
        self, center_B: Tensor, targets_BL: Tensor, num_contexts_B: Tensor, num_steps: int, finish: bool
    ) -> Tensor:
        size, most = self.team.size, ROWS_AT_ONCE * targets_BL.shape[1]
        losses_B = torch.from_numpy(np.zeros(len(center_B), dtype=np.float32))
        batch = [tensor.numpy() for tensor in (center_B, targets_BL, num_contexts_B, losses_B)]
        buffers = [np.empty((size, count, most + CHUNK), dtype=np.float32) for count in (2, 3)]
        self._slopes = np.zeros(0 if finish else targets_BL.numel(), dtype=np.float32)
        settings: list[Any] = [self._counters, self._step, num_steps, finish, self._negatives, self._dim]
        arguments = [*settings, *batch, *buffers, self._slopes, *self._arrays()]
        self.team.run(lambda member: _steps(member, *arguments))
        self._step += num_steps
        return losses_B


@compiled_fast
def _steps(
    member: int,
    counters: Counters,
    step: int,
    num_steps: int,
    finish: bool,
    negatives: int,
    dim: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    losses_B: Floats,
    shares: Floats,
    scratch: Floats,
    all_slopes_J: Floats,
    rows: Floats,
    last: Ids,
    touched: Ids,
    owed: Floats,
    epsilon_S: Floats,
    rate_S: Floats,
    decay: Floats,
) -> None:
    """One thread's columns of whole steps; or, without ``finish``, up to the slopes, which are kept."""
    slopes_J, signs_J, losses_J = scratch[member, 0], scratch[member, 1], scratch[member, 2]
    num_words, width = rows.shape[2], rows.shape[4]
    center_VC, context_VC = rows[0, member].reshape(num_words, 4 * width), rows[1, member].reshape(num_words, 4 * width)
    chunks = num_chunks(member, width, dim)
    per_step = center_B.size // num_steps
    turn: int = np.int64(0)  # type: ignore[assignment]  # for a plain 0 numba would compile add_up once more
    kept = 0
    for begin in range(0, per_step * num_steps, per_step):
        step += 1
        _prepare(
            member,
            step,
            negatives,
            center_B[begin : begin + per_step],
            targets_BL[begin : begin + per_step],
            num_contexts_B[begin : begin + per_step],
            rows,
            last,
            touched,
            owed,
            epsilon_S,
            decay,
        )
        for first in range(begin, begin + per_step, ROWS_AT_ONCE):
            end = min(first + ROWS_AT_ONCE, begin + per_step)
            share_J = shares[member, turn & 1]
            batch = (first, end, center_B, targets_BL, num_contexts_B, negatives)
            count = scores_of(*batch, center_VC, context_VC, chunks, share_J)
            turn = add_up(counters, member, shares, turn, count, slopes_J)
            signs_of(first, end, num_contexts_B, negatives, signs_J)
            slopes_and_losses(slopes_J, signs_J, count, losses_J)
            if member == 0:
                mean_losses(first, end, num_contexts_B, negatives, losses_J, losses_B)
            at = 0
            for row in range(first, end):
                num_targets = num_contexts_B[row] * (1 + negatives)
                for j in range(at, at + num_targets):
                    slopes_J[j] /= np.float32(num_targets)
                at += num_targets
            if finish:
                add_gradients(*batch, center_VC, context_VC, chunks, slopes_J, _GRADIENT * width)
            elif member == 0:
                for j in range(count):
                    all_slopes_J[kept + j] = slopes_J[j]
            kept += count
        if finish:
            _owe(step, owed[member], rate_S, decay)


@compiled_fast
def _apply(
    member: int,
    step: int,
    negatives: int,
    dim: int,
    max_len: int,
    ranges: npt.NDArray[np.int64],
    everybodys: Ids,
    rows: Floats,
    last: Ids,
    touched: Ids,
    owed: Floats,
    epsilon_S: Floats,
    rate_S: Floats,
    decay: Floats,
) -> None:
    """One thread's columns: the gradients of all ranks' rows, from their slopes."""
    num_words, width = rows.shape[2], rows.shape[4]
    center_VC, context_VC = rows[0, member].reshape(num_words, 4 * width), rows[1, member].reshape(num_words, 4 * width)
    chunks = num_chunks(member, width, dim)
    num_rows = everybodys.shape[1] // (2 + 2 * max_len)
    for index in range(ranges.shape[0]):
        rank, first, end = ranges[index]
        num_contexts_B = everybodys[rank, :num_rows]
        center_B = everybodys[rank, num_rows : 2 * num_rows]
        targets_BL = everybodys[rank, 2 * num_rows : (2 + max_len) * num_rows].reshape(num_rows, max_len)
        slopes_J = everybodys[rank, (2 + max_len) * num_rows :].view(np.float32)
        at = 0
        for row in range(first):
            at += num_contexts_B[row] * (1 + negatives)
        _prepare(
            member,
            step,
            negatives,
            center_B[first:end],
            targets_BL[first:end],
            num_contexts_B[first:end],
            rows,
            last,
            touched,
            owed,
            epsilon_S,
            decay,
        )
        batch = (first, end, center_B, targets_BL, num_contexts_B, negatives)
        add_gradients(*batch, center_VC, context_VC, chunks, slopes_J[at:], _GRADIENT * width)
    _owe(step, owed[member], rate_S, decay)


@inner_fast
def _owe(step: int, owed_S: Floats, rate_S: Floats, decay: Floats) -> None:
    """Adds the step to what rows are owed: those of this step, and of all before that still matter."""
    for age in range(min(_MEMORY, step)):
        owed_S[step - age] += rate_S[step] * decay[2, age]


@inner_fast
def _prepare(
    member: int,
    step: int,
    negatives: int,
    center_B: Ids,
    targets_BL: Ids,
    num_contexts_B: Counts,
    rows: Floats,
    last: Ids,
    touched: Ids,
    owed: Floats,
    epsilon_S: Floats,
    decay: Floats,
) -> None:
    """Brings the rows up to date that a batch touches, and that the step has not touched yet; one thread's columns."""
    for table in range(2):
        last_V, age_V, touched_R = last[member, table, 0], last[member, table, 1], touched[member, table]
        count: int = np.int64(0)  # type: ignore[assignment]  # likewise _note and _catch_up
        for row in range(center_B.size):
            num_targets = num_contexts_B[row] * (1 + negatives)
            if table == 0:
                count = _note(center_B[row : row + min(1, num_targets)], step, last_V, touched_R, count)
            else:
                count = _note(targets_BL[row, :num_targets], step, last_V, touched_R, count)
        _catch_up(touched_R, count, step, rows[table, member], last_V, age_V, owed[member], epsilon_S, decay)


@inner_fast
def _note(words: Ids, step: int, last_V: Ids, touched_R: Ids, count: int) -> int:
    """Appends the words that the step has not touched yet, and marks them, by a negative step; returns how many."""
    for index in range(words.size):
        word = words[index]
        before = last_V[word]
        fresh = (before >= 0) & (before < step)
        touched_R[count] = word  # without a branch, since nobody can predict it
        count += fresh
        last_V[word] = ~before if fresh else before
    return count


@inner_fast
def _catch_up(
    touched_R: Ids,
    count: int,
    step: int,
    rows_V4C: Floats,
    last_V: Ids,
    age_V: Ids,
    owed_S: Floats,
    epsilon_S: Floats,
    decay: Floats,
) -> None:
    """Brings ``count`` rows up to date, and counts this step as their last."""
    stride = 4 * rows_V4C.shape[2]
    for index in range(count):
        if index + _AHEAD < count:
            prefetch(rows_V4C, touched_R[index + _AHEAD] * stride, stride // CHUNK)
        word = touched_R[index]
        before = ~last_V[word]
        if before:
            _bring_up(rows_V4C[word], age_V[word], owed_S[before], epsilon_S[before], decay)
            age_V[word] = step - before
        last_V[word] = step


@inner_fast
def _bring_up(row_4C: Floats, age: int, owed: float, epsilon: float, decay: Floats) -> None:
    """Puts the row's last gradient, ``age`` steps after the one before, into its moments, and takes the owed steps."""
    keep1, keep2 = decay[0, min(age, _AGES - 1)], decay[1, min(age, _AGES - 1)]
    fresh1, fresh2 = np.float32(1 - BETA1), np.float32(1 - BETA2)
    weight_C, mean_C, square_C, gradient_C = row_4C[0], row_4C[1], row_4C[2], row_4C[3]
    for c in range(row_4C.shape[1]):
        gradient = gradient_C[c]
        mean = keep1 * mean_C[c] + fresh1 * gradient
        square = keep2 * square_C[c] + fresh2 * gradient * gradient
        weight_C[c] -= owed * mean * inverse_root(square + epsilon)
        mean_C[c] = mean
        square_C[c] = square
        gradient_C[c] = np.float32(0)


@inner_fast
def inverse_root(number: Any) -> Any:
    """1 / sqrt(number) of a positive number to 5e-6, by Newton's method: root and division are the slowest of all."""
    half = np.float32(0.5) * number
    root = first_guess(number)
    root *= np.float32(1.5) - half * root * root
    root *= np.float32(1.5) - half * root * root
    return root


def _copy(member: int, rows: Floats, copies_24VD: Floats) -> None:
    """One thread's columns of everything."""
    begin = member * rows.shape[4]
    for table in range(2):
        for first in range(0, rows.shape[2], _COPIED_AT_ONCE):
            columns_4VC = copies_24VD[table, :, first : first + _COPIED_AT_ONCE, begin : begin + rows.shape[4]]
            ours_V4C = rows[table, member, first : first + _COPIED_AT_ONCE, :, : columns_4VC.shape[2]]
            np.copyto(columns_4VC, ours_V4C.transpose(1, 0, 2))


@compiled_fast
def _up_to_date(
    rows_TV4C: Floats, last: Ids, owed: Floats, epsilon_S: Floats, decay: Floats, row_4C: Floats, weights_TVC: Floats
) -> None:
    """The weights that ``_bring_up`` would give, elsewhere; ``row_4C`` is for one row at a time."""
    for thread in range(rows_TV4C.shape[0]):
        for word in range(rows_TV4C.shape[1]):
            before = last[thread, 0, word]
            if before:
                _copy_row(rows_TV4C[thread, word].reshape(-1), row_4C.reshape(-1))
                _bring_up(row_4C, last[thread, 1, word], owed[thread, before], epsilon_S[before], decay)
                _copy_row(row_4C[_WEIGHT], weights_TVC[thread, word])
            else:
                _copy_row(rows_TV4C[thread, word, _WEIGHT], weights_TVC[thread, word])


@inner_fast
def _copy_row(source_C: Floats, copy_C: Floats) -> None:
    """A loop, since numba spends seconds on an assignment of slices, whose error tells both shapes."""
    for column in range(copy_C.size):
        copy_C[column] = source_C[column]
