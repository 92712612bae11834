"""Adam on the CPU, in machine code. The cost of a step depends on the rows that the batch touches, not on the tables.

B rows of a batch, L = max_len targets a row, D dimensions, V words, T threads, C columns of a thread, R rows of a
table that the step has touched, S steps of a run.

Adam (Kingma and Ba 2014, arXiv 1412.6980, Algorithm 1) moves every row of the tables at every step, because its moments
outlive the gradient that they come from: the tables' memory traffic takes longer than everything else. But the steps of
a row without new gradients are known in advance. If m and v are the row's moments after its gradient of step s, step
s + j moves the row by

    lr_j · beta1^j·m / (sqrt(beta2^j·v) + eps')      lr_j = lr·sqrt(1 - beta2^(s+j)) / (1 - beta1^(s+j))

which is m / sqrt(v) times a number that depends only on s and j. ``owed_S[s]`` is the sum of these numbers for the rows
that step s was the last to touch. Such a row moves by owed_S[s]·m / sqrt(v + eps'^2) when it is next read. No step is
left out, unlike in torch's SparseAdam. Two things differ from torch.optim.Adam: rounding, and eps, which is taken at
step s and stands inside the root.
"""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.shared.compiled import CACHE_LINE, compiled_fast, inner_fast, prefetch
from training.model.batch import BatchTensors
from training.model.blocks import AnyTables, Blocks, BlockTables, spans
from training.model.kernels.columns import (
    Columns,
    Floats,
    Ids,
    Rows,
    Scratch,
    add_gradients,
    add_up,
    block_of,
    by_columns,
    by_rows,
    columns_of_thread,
    is_last,
    lay_out,
    mean_losses,
    next_turn,
    num_chunks,
    own_width,
    padded,
    rows_of,
    share_scores,
    slopes_and_losses,
    team_for,
    whole_loops,
)
from training.model.kernels.group import Group
from training.model.kernels.threads import Team
from training.model.kernels.vector import TOGETHER, first_guess
from training.model.memory import is_finite, page_aligned
from training.model.skip_gram import TABLES
from training.model.state import COPIED_BYTES, Slot, check_state, check_unknown

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8  # torch.optim.Adam's
ROWS_AT_ONCE = 32
"""Rows that stay in the cache, with their moments, until their gradients are computed."""
ROWS_OF_MANY = 512
"""The same for members that share cores: at each of their meetings, cores pass from one to another."""

_MEMORY = 512
"""Steps after which the amount owed to a row changes by less than rounding: (beta1 / sqrt(beta2))^512 = 5e-24."""
_AGES = 1 << 15
"""Ages with a decay of their own; beta2^32768 = 6e-15."""
_COPIED_AT_ONCE = 1024
"""Words. numpy copies one part after the other, and the words' other parts should still be in the cache."""
_AHEAD = 4
"""How many rows ahead to prefetch."""

_WEIGHT, _MEAN, _SQUARE, _GRADIENT = range(4)

_FROZEN = np.iinfo(np.int32).max
"""The step of a frozen row's last gradient: since no step is later, none moves the row."""


class AdamState(NamedTuple):
    """Both tables under Adam, centers first. Each thread writes only its own part."""

    rows: Floats
    """(2, T, V, 4, C): weight, mean, mean square and gradient of a word, side by side."""
    last: Ids
    """(T, 2, 2, V): the step of a row's last gradient, and the number of steps between it and the one before."""
    touched: Ids
    """(T, 2, V + 1): the rows that this step touches."""
    owed: Floats
    """(T, S): see the module's docstring."""
    epsilon_S: Floats
    rate_S: Floats
    decay: Floats
    """(3, ages): powers of beta1, of beta2, and of beta1 / sqrt(beta2)."""
    dim: int

    @classmethod
    def of(cls, tables: AnyTables, lr: float, num_steps: int, team: Team) -> "AdamState":
        num_words, dim = tables[0].shape
        rows = page_aligned(2, team.here, num_words, 4, own_width(dim, team))
        for index, table in enumerate(tables):
            by_columns(table, team, rows[index, :, :, _WEIGHT])
        steps, ages = np.arange(num_steps + 2, dtype=np.float64), np.arange(_AGES, dtype=np.float64)
        root = np.sqrt(-np.expm1(steps * np.log(BETA2)))
        with np.errstate(divide="ignore", invalid="ignore"):
            rate_S = (lr * root / -np.expm1(steps * np.log(BETA1))).astype(np.float32)
        return cls(
            rows=rows.numpy(),
            last=np.zeros((team.here, 2, 2, num_words), dtype=np.int32),
            touched=np.zeros((team.here, 2, num_words + 1), dtype=np.int32),
            owed=np.zeros((team.here, num_steps + 2), dtype=np.float32),
            epsilon_S=((EPSILON * root) ** 2).astype(np.float32),
            rate_S=rate_S,
            decay=np.stack([BETA1**ages, BETA2**ages, (BETA1 / BETA2**0.5) ** ages]).astype(np.float32),
            dim=dim,
        )


class LazyAdam:
    """Trains both tables by Adam: ``steps`` on a single rank; ``slopes``, then ``apply``, on several ranks.

    It trains its own columns of the tables; ``blocks`` returns what has become of all of them.
    """

    def __init__(
        self,
        tables: AnyTables,
        negatives: int,
        lr: float,
        num_steps: int,
        group: Group | None = None,
        deterministic: bool = False,
    ):
        """For at most ``num_steps`` steps. ``deterministic``: the same bits for any number of threads and processes."""
        self.team = team_for(tables[0].shape[1], group)
        self._negatives, self._step, self._deterministic = negatives, 0, deterministic
        self.state = AdamState.of(tables, lr, num_steps, self.team)
        self._scratch: Scratch | None = None
        self._copies: Tensor | None = None  # for ``state``, made when it is first called

    def steps(self, batch: BatchTensors, num_steps: int = 1) -> Tensor:
        """Takes ``num_steps`` steps, whose equal shares of the rows lie end to end. Returns the losses, shape (B,).

        A step follows the gradient of the sum of its losses.
        """
        return self._run(batch, num_steps, np.zeros(0, dtype=np.float32))

    def slopes(self, batch: BatchTensors) -> tuple[Tensor, Tensor]:
        """Begins a step with some of its rows. Returns the input of ``apply``, 1-D int32 of one length, and the losses.

        The input of ``apply`` is the words and the slopes of the scores, which have a hundredth of the gradients' size.
        """
        center_B, targets_BL, num_contexts_B = batch
        slopes_J = np.zeros(targets_BL.numel(), dtype=np.float32)
        losses_B = self._run(batch, 1, slopes_J)
        columns = (num_contexts_B.int(), center_B, targets_BL.reshape(-1), torch.from_numpy(slopes_J.view(np.int32)))
        return torch.cat(columns), losses_B

    def apply(self, gathered: Tensor, ranges: npt.NDArray[np.int64], max_len: int) -> None:
        """Ends a step. ``gathered``, (W, ...), is the tensor that ``slopes`` returned on each rank.

        Rows are applied in the order of ``ranges``: (rank, first row, last row). Tables that are equal on all ranks
        stay equal, bit for bit.
        """
        arrays, adam, step, scratch = gathered.numpy(), self.state, self._step, self.buffers(max_len)
        self.team.run(lambda thread: _apply(thread, arrays, ranges, max_len, self._negatives, adam, scratch, step))

    def freeze(self, words_K: npt.NDArray[np.int64]) -> None:
        """Freezes the rows of words that no step has touched, until ``unfreeze``. Steps are not faster meanwhile."""
        self.state.last[:, :, 0, words_K] = _FROZEN

    def unfreeze(self) -> None:
        """Lets frozen rows move again, as rows that no step has touched."""
        frozen_V = self.state.last[0, 0, 0] == _FROZEN
        self.state.last[:, :, 0, frozen_V] = 0
        self.state.rows[:, :, frozen_V, _GRADIENT] = 0  # of steps that did not move the rows

    def blocks(self) -> BlockTables:
        """The tables as they are after the last step. Has no effect on later steps."""
        num_words, dim = self.state.rows.shape[2], self.state.dim
        centers, contexts = (
            by_rows(partial(self._all_weights, table), num_words, dim, self.team) for table in range(2)
        )
        return centers, contexts

    def is_finite(self) -> bool:
        """Whether this process's columns of the tables contain neither NaN nor infinity."""
        return all(map(is_finite, chain(self._all_weights(0), self._all_weights(1))))

    def state_dict(self) -> dict[str, Tensor | Blocks]:
        """Everything that the next step depends on. What is copied is so to memory that the next call overwrites.

        ``rows`` (2, 4, V, D): weights, moments and last gradients of centers and of contexts; ``last``; ``owed``.
        """
        rows: Tensor | Blocks = self._blocks()
        if rows.nbytes <= COPIED_BYTES and self.team.size == self.team.on_machine:
            if self._copies is None:
                self._copies = torch.from_numpy(self.team.group.array(*rows.shape))
            copies, team = self._copies.numpy(), self.team
            team.group.barrier()  # the first process comes when it has written the copies to the disk
            own = [columns_of_thread(thread, team, self.state.dim) for thread in range(team.here)]
            team.run(lambda thread: _copy(own[thread], self.state.rows[:, thread], copies))
            team.group.barrier()
            rows = self._copies
        last, owed = self.state.last[0], self.state.owed[0, : self._step + 1]
        return {"rows": rows, "last": torch.from_numpy(last.copy()), "owed": torch.from_numpy(owed.copy())}

    def load_state_dict(self, state: dict[str, Tensor], step: int) -> None:
        """Restores the ``state_dict`` of ``step`` steps, for any number of threads. Raises ValueError."""
        num_words = self.state.rows.shape[2]
        slots = {
            "rows": Slot((2, 4, num_words, self.state.dim)),
            "last": Slot((2, 2, num_words), torch.int32, 0, _FROZEN),
            "owed": Slot((step + 1,)),
        }
        check_state(state, slots)
        last = state["last"]
        if bool(((last > step) & (last != _FROZEN)).any()):
            raise ValueError(f"last: found steps to come, expected 0 to {step}")
        if state["rows"][:, _SQUARE].min() < 0:
            raise ValueError("rows: found negative mean squares, expected 0 or more")
        check_unknown({name: rows_4VD[_WEIGHT] for name, rows_4VD in zip(TABLES, state["rows"], strict=True)})
        self._step = step
        self.state.owed[:, : self._step + 1] = state["owed"].numpy()
        self.state.last[:] = state["last"].numpy()
        rows = torch.from_numpy(self.state.rows)
        for table in range(2):
            for part in range(4):
                by_columns(state["rows"][table, part], self.team, rows[table, :, :, part])

    def _all_weights(self, table: int) -> Iterator[Tensor]:
        return (self._weights(table, rows) for rows in spans(self.state.rows.shape[2]))

    def _weights(self, table: int, rows: slice) -> Tensor:
        """This process's columns, (T, B, C), of some rows of a table, up to date."""
        width = self.state.rows.shape[4]
        row_4C = np.empty((4, width), dtype=np.float32)
        weights_TBC = np.empty((self.team.here, rows.stop - rows.start, width), dtype=np.float32)
        _up_to_date(table, rows.start, self.state, row_4C, weights_TBC)
        return torch.from_numpy(weights_TBC)

    def _blocks(self) -> Blocks:
        """``rows`` of the state."""
        rows, dim = torch.from_numpy(self.state.rows), self.state.dim
        tables = [
            by_rows(partial(rows_of, rows[table, :, :, part]), rows.shape[2], dim, self.team)
            for table in range(2)
            for part in range(4)
        ]
        shape = (2, 4, rows.shape[2], dim)
        return Blocks(shape, lambda: (block_BD for table in tables for block_BD in table.blocks()))

    def _run(self, batch: BatchTensors, num_steps: int, kept_slopes_J: Floats) -> Tensor:
        rows, adam, step = Rows.of(batch, self._negatives), self.state, self._step
        losses_B = np.zeros(len(rows.center_B), dtype=np.float32)
        scratch = self.buffers(rows.targets_BL.shape[1])
        self.team.run(lambda thread: _steps(thread, rows, adam, scratch, step, num_steps, kept_slopes_J, losses_B))
        self._step += num_steps
        return torch.from_numpy(losses_B)

    def buffers(self, max_len: int) -> Scratch:
        """The threads' buffers, made once: all batches have rows of ``max_len`` targets."""
        if self._scratch is None:
            alone = self.team.here <= self.team.group.cores and self.team.size == self.team.on_machine
            rows = ROWS_AT_ONCE if alone else ROWS_OF_MANY
            rows = self.team.group.agreed(rows)
            self._scratch = Scratch.of(self.team, rows, max_len, self.state.dim, self._deterministic)
        return self._scratch


@compiled_fast
def _steps(
    thread: int,
    rows: Rows,
    adam: AdamState,
    scratch: Scratch,
    step: int,
    num_steps: int,
    kept_slopes_J: Floats,
    losses_B: Floats,
) -> None:
    """One thread's columns of whole steps. If ``kept_slopes_J`` has room, only keeps the slopes of a single step."""
    block, slopes_J, losses_J = block_of(scratch, thread), scratch.slopes_TJ[thread], scratch.losses_TJ[thread]
    member, width = scratch.first + thread, adam.rows.shape[4]
    columns = columns_of(thread, member, scratch, adam)
    per_step = rows.center_B.size // num_steps
    keeps = kept_slopes_J.size > 0
    turn = next_turn(scratch, thread)
    kept = 0
    for begin in range(0, per_step * num_steps, per_step):
        step += 1
        for first in range(begin, begin + per_step, scratch.num_rows):
            last = min(first + scratch.num_rows, begin + per_step)
            bring_up_to_date(thread, rows, first, last, adam, step)
            center_B, num_contexts_B = rows.center_B[first:last], rows.num_contexts_B[first:last]
            count = lay_out(rows, first, last, columns, block)
            share_scores(member, scratch, turn, block, count, center_B, columns)
            turn = add_up(member, scratch, turn, count, slopes_J)
            slopes_and_losses(slopes_J, block.signs_J, whole_loops(count), losses_J)
            if is_last(member, scratch):
                mean_losses(rows, first, last, losses_J, losses_B)
            # In one place, whether slopes are kept or used: compiled twice, they had different last bits.
            for group in range(count // TOGETHER):
                scale = np.float32(1) / np.float32(num_contexts_B[block.rows_G[group]] * (1 + rows.negatives))
                for j in range(group * TOGETHER, (group + 1) * TOGETHER):
                    slopes_J[j] *= scale
            if not keeps:
                add_gradients(block, count, center_B, columns, slopes_J, _GRADIENT * width)
            elif thread == 0:
                at = 0
                for row in range(first, last):
                    num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
                    for j in range(num_targets):
                        kept_slopes_J[kept + j] = slopes_J[at + j]
                    at += padded(num_targets)
                    kept += num_targets
        if not keeps:
            _owe(step, adam.owed[thread], adam.rate_S, adam.decay)


@compiled_fast
def _apply(
    thread: int,
    gathered: Ids,
    ranges: npt.NDArray[np.int64],
    max_len: int,
    negatives: int,
    adam: AdamState,
    scratch: Scratch,
    step: int,
) -> None:
    """One thread's columns: adds the gradients of all ranks' rows, computed from their slopes."""
    columns, width = columns_of(thread, scratch.first + thread, scratch, adam), adam.rows.shape[4]
    block, block_slopes_J = block_of(scratch, thread), scratch.slopes_TJ[thread]
    num_rows = gathered.shape[1] // (2 + 2 * max_len)
    for index in range(ranges.shape[0]):
        rank, first, last = ranges[index]
        num_contexts_B = gathered[rank, :num_rows]
        center_B = gathered[rank, num_rows : 2 * num_rows]
        targets_BL = gathered[rank, 2 * num_rows : (2 + max_len) * num_rows].reshape(num_rows, max_len)
        slopes_J = gathered[rank, (2 + max_len) * num_rows :].view(np.float32)
        at = 0
        for row in range(first):
            at += num_contexts_B[row] * (1 + negatives)
        rows = Rows(center_B, targets_BL, num_contexts_B, negatives)
        for begin in range(first, last, scratch.num_rows):
            end = min(begin + scratch.num_rows, last)
            bring_up_to_date(thread, rows, begin, end, adam, step)
            count = lay_out(rows, begin, end, columns, block)
            to = 0
            for row in range(begin, end):
                num_targets = num_contexts_B[row] * (1 + negatives)
                for j in range(num_targets):
                    block_slopes_J[to + j] = slopes_J[at + j]
                for j in range(num_targets, padded(num_targets)):
                    block_slopes_J[to + j] = 0
                at += num_targets
                to += padded(num_targets)
            add_gradients(block, count, center_B[begin:end], columns, block_slopes_J, _GRADIENT * width)
    _owe(step, adam.owed[thread], adam.rate_S, adam.decay)


@inner_fast
def columns_of(thread: int, member: int, scratch: Scratch, adam: AdamState) -> Columns:
    """A thread's columns of both tables: rows of 4·C, of which the first C are the weights."""
    num_words, row = adam.rows.shape[2], 4 * adam.rows.shape[4]
    center_VC = adam.rows[0, thread].reshape(num_words, row)
    context_VC = adam.rows[1, thread].reshape(num_words, row)
    return Columns(center_VC, context_VC, num_chunks(member, scratch))


@inner_fast
def _owe(step: int, owed_S: Floats, rate_S: Floats, decay: Floats) -> None:
    """Adds this step to the amounts owed to the rows of this step and of all earlier steps that still matter."""
    for age in range(min(_MEMORY, step)):
        owed_S[step - age] += rate_S[step] * decay[2, age]


@inner_fast
def bring_up_to_date(thread: int, rows: Rows, first: int, last: int, adam: AdamState, step: int) -> None:
    """One thread's columns: brings up to date the table rows that ``rows`` touch for the first time in this step."""
    for table in range(2):
        last_V, touched_R = adam.last[thread, table, 0], adam.touched[thread, table]
        count: int = np.int64(0)  # type: ignore[assignment]  # likewise _note and _catch_up
        for row in range(first, last):
            num_targets = rows.num_contexts_B[row] * (1 + rows.negatives)
            if table == 0:
                count = _note(rows.center_B[row : row + min(1, num_targets)], step, last_V, touched_R, count)
            else:
                count = _note(rows.targets_BL[row, :num_targets], step, last_V, touched_R, count)
        _catch_up(thread, table, count, adam, step)


@inner_fast
def _note(words: Ids, step: int, last_V: Ids, touched_R: Ids, count: int) -> int:
    """Appends the words that this step has not touched yet, and marks each by a negative step. Returns their count."""
    for index in range(words.size):
        word = words[index]
        before = last_V[word]
        fresh = (before >= 0) & (before < step)
        touched_R[count] = word  # without a branch, which no processor could predict
        count += fresh
        last_V[word] = ~before if fresh else before
    return count


@inner_fast
def _catch_up(thread: int, table: int, count: int, adam: AdamState, step: int) -> None:
    """Brings the first ``count`` touched rows up to date, and records this step as their last."""
    rows_V4C, owed_S, touched_R = adam.rows[table, thread], adam.owed[thread], adam.touched[thread, table]
    last_V, age_V = adam.last[thread, table, 0], adam.last[thread, table, 1]
    row_bytes = rows_V4C[0].nbytes
    for index in range(count):
        if index + _AHEAD < count:
            begin = touched_R[index + _AHEAD] * row_bytes
            for byte in range(begin, begin + row_bytes, CACHE_LINE):
                prefetch(rows_V4C, byte)
        word = touched_R[index]
        before = ~last_V[word]
        if before:
            _bring_up(rows_V4C[word], age_V[word], owed_S[before], adam.epsilon_S[before], adam.decay)
            age_V[word] = step - before
        last_V[word] = step


@inner_fast
def _bring_up(row_4C: Floats, age: int, owed: float, epsilon: float, decay: Floats) -> None:
    """Adds the row's last gradient to its moments, ``age`` steps after the one before, and takes the owed steps."""
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
    """1 / sqrt(number) of a positive number to 5e-6, by Newton's method, which is faster than a root and a division."""
    half = np.float32(0.5) * number
    root = first_guess(number)
    root *= np.float32(1.5) - half * root * root
    root *= np.float32(1.5) - half * root * root
    return root


def _copy(columns: slice, rows_2V4C: Floats, copies_24VD: Floats) -> None:
    """Copies one member's ``columns`` of all rows."""
    num_words = rows_2V4C.shape[1]
    for table in range(2):
        for first in range(0, num_words, _COPIED_AT_ONCE):
            columns_4VC = copies_24VD[table, :, first : first + _COPIED_AT_ONCE, columns]
            ours_V4C = rows_2V4C[table, first : first + _COPIED_AT_ONCE, :, : columns_4VC.shape[2]]
            np.copyto(columns_4VC, ours_V4C.transpose(1, 0, 2))


@compiled_fast
def _up_to_date(table: int, first: int, adam: AdamState, row_4C: Floats, weights_TBC: Floats) -> None:
    """Writes the weights that ``_bring_up`` would give the rows from ``first`` on. ``row_4C`` is a buffer."""
    for thread in range(weights_TBC.shape[0]):
        for row in range(weights_TBC.shape[1]):
            word = first + row
            word_4C, before = adam.rows[table, thread, word], adam.last[thread, table, 0, word]
            if before and before != _FROZEN:
                _copy_row(word_4C.reshape(-1), row_4C.reshape(-1))
                age, owed = adam.last[thread, table, 1, word], adam.owed[thread, before]
                _bring_up(row_4C, age, owed, adam.epsilon_S[before], adam.decay)
                _copy_row(row_4C[_WEIGHT], weights_TBC[thread, row])
            else:
                _copy_row(word_4C[_WEIGHT], weights_TBC[thread, row])


@inner_fast
def _copy_row(source_C: Floats, copy_C: Floats) -> None:
    """A loop, because numba takes seconds to compile an assignment of slices and its error message with both shapes."""
    for column in range(copy_C.size):
        copy_C[column] = source_C[column]
