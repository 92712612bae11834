"""Rows of tables in machine code. The threads divide the columns, so that no two of them write the same cache line.

B rows of a batch, L = max_len targets a row, J targets of several rows end to end, D dimensions, V words, T threads,
C columns of a thread.

If the threads divided the *rows*, all of them would write the vectors of frequent words, and those cache lines would
bounce between the cores: two threads were slower than one. So each thread has its own *columns* of every row. At a
barrier the threads add up their shares of each score. The result depends on the number of threads only by rounding, and
is always the same for the same number. Processors prefetch the next cache lines, so the columns of two threads must be
far apart in memory: a table is stored as T tables of C columns.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.shared.compiled import CACHE_LINE, inner_fast, prefetch
from training.model.batch import BatchTensors
from training.model.blocks import Blocks, blocks_of, spans
from training.model.kernels.barrier import Counters, barrier, turns
from training.model.kernels.group import Group
from training.model.kernels.links import Links
from training.model.kernels.threads import Team, team_of
from training.model.kernels.vector import AHEAD, TOGETHER, call, copy, dot_4, fill, norm_square, power_of_two, scatter_4
from training.model.limits import num_cores
from training.model.memory import page_aligned
from training.train_config import CHUNK, borders

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


class Block(NamedTuple):
    """Some rows of a batch as ``lay_out`` writes them: a row's targets fill whole groups of four, padded by word 0."""

    ids_J: Ids
    signs_J: Floats
    """1 for contexts, -1 for negatives, 0 for padding."""
    rows_G: Ids
    """For each group of four its row, counted from the block's first."""


class Scratch(NamedTuple):
    """Buffers of a step, for J targets in each of the T threads of this process, of M members of the team in all.

    The columns consist of parts: a member's, or, if the bits may not depend on the members, a chunk each.
    """

    first: int
    """The member that is this process's first thread."""
    size: int
    """M."""
    first_on_machine: int
    """Which of this machine's members that thread is."""
    on_machine: int
    """Members on this machine."""
    exchange: int
    """The address of the function by which the machine's first thread exchanges a turn's shares with other machines;
    not 0 for others either, but on a single machine."""
    borders: npt.NDArray[np.int64]
    """(M + 1,): where the chunks of each member begin, and their number."""
    by_chunk: bool
    """Whether a part is a chunk, not a member's columns. A sum over the columns has one share for each part."""
    num_rows: int
    """The most rows of a block."""
    counters: Counters
    """Of the barrier of this machine's members."""
    ids_TJ: Ids
    signs_TJ: Floats
    rows_TG: Ids
    shares_P2J: Floats
    """The shares of this machine's P parts of the sums that ``add_up`` computes, separate for even and odd turns."""
    sums_R2J: Floats
    """What ``add_up`` adds up: the shares themselves, or their sum over all machines."""
    slopes_TJ: Floats
    """Scores, then their slopes."""
    losses_TJ: Floats

    @classmethod
    def of(cls, team: Team, num_rows: int, max_len: int, dim: int, by_chunk: bool) -> "Scratch":
        """For blocks of at most ``num_rows`` rows. ``by_chunk``: a chunk of the columns is a part."""
        # Behind the padded targets there is room for a number per row, for one more row, and for what `fill` writes.
        most = num_rows * (padded(max_len) + 1) + max_len + max(AHEAD, 4 * CHUNK)

        def make(kind: torch.dtype, *shape: int) -> Any:
            return page_aligned(team.here, *shape, dtype=kind).numpy()

        ints, floats = torch.int32, torch.float32
        ids_TJ, signs_TJ, rows_TG = make(ints, most), make(floats, most), make(ints, most)
        slopes_TJ, losses_TJ = make(floats, most), make(floats, most)
        group, num_machines = team.group, team.group.machines.world_size
        begins = borders(dim, team.size)
        shares_P2J = sums_R2J = group.array(begins[-1] if by_chunk else team.on_machine, 2, most)
        exchange = 0 if num_machines == 1 else 1
        if num_machines > 1 and not by_chunk:
            sums_R2J = group.array(1, 2, most)
        if group.links and by_chunk:
            of_machines = np.split(shares_P2J, begins[team.on_machine : -1 : team.on_machine])
            exchange = group.callback(partial(_gather, group.links, of_machines))
        elif group.links:
            exchange = group.callback(partial(_reduce, group.links, shares_P2J, sums_R2J))
        return cls(
            first=team.first,
            size=team.size,
            first_on_machine=team.first_on_machine,
            on_machine=team.on_machine,
            exchange=exchange,
            borders=np.array(begins),
            by_chunk=by_chunk,
            num_rows=num_rows,
            counters=team.counters(),
            ids_TJ=ids_TJ,
            signs_TJ=signs_TJ,
            rows_TG=rows_TG,
            shares_P2J=shares_P2J,
            sums_R2J=sums_R2J,
            slopes_TJ=slopes_TJ,
            losses_TJ=losses_TJ,
        )


# ---- Tables by columns


def team_for(dim: int, group: Group | None = None) -> Team:
    """A team of torch's number of threads, but at most one per core, and at least 32 columns for each."""
    size = group.size if group else 1
    here = max(1, min(torch.get_num_threads(), num_cores(), dim // (32 * size)))
    return team_of(group.agreed(here) if group else here, group)


def by_columns(table: Tensor | Blocks, team: Team, table_TVC: Tensor | None = None) -> Tensor:
    """This process's columns of a table, (V, D), as (T, V, C), padded with columns of zeros, which stay zero.

    They are written into ``table_TVC`` if it is given. The table itself is only read block by block.
    """
    num_words, dim = table.shape
    if table_TVC is None:
        table_TVC = page_aligned(team.here, num_words, own_width(dim, team))
    for rows, block_BD in zip(spans(num_words), blocks_of(table).blocks(), strict=True):
        for thread in range(team.here):
            columns_BC = block_BD.detach()[:, columns_of_thread(thread, team, dim)]
            table_TVC[thread, rows, : columns_BC.shape[1]] = columns_BC
    return table_TVC


def own_width(dim: int, team: Team) -> int:
    """C: the columns that each thread of this process has at most, whole chunks."""
    first, *rest = borders(dim, team.size)[team.first : team.first + team.here + 1]
    return max(1, *(end - begin for begin, end in pairwise([first, *rest]))) * CHUNK


def columns_of_thread(thread: int, team: Team, dim: int) -> slice:
    """The columns, of ``dim``, that a thread of this process has."""
    begin, end = borders(dim, team.size)[team.first + thread :][:2]
    return slice(begin * CHUNK, min(end * CHUNK, dim))


def to_rows(columns_TBC: Tensor, rows_BD: Tensor, team: Team) -> None:
    """Copies this process's columns of some rows to where all processes of the group write theirs."""
    for thread in range(team.here):
        columns_BC = rows_BD[:, columns_of_thread(thread, team, rows_BD.shape[1])]
        columns_BC.copy_(columns_TBC[thread, :, : columns_BC.shape[1]])


def by_rows(columns: Callable[[], Iterator[Tensor]], num_words: int, dim: int, team: Team) -> Blocks:
    """A table, (V, D), of which ``columns`` yields this process's columns of block after block, (T, B, C).

    All processes of the group read the blocks, and each on the first one's machine has the whole block.
    """
    group = team.group
    of_machines = [begin * CHUNK for begin in borders(dim, team.size)[:: team.on_machine]]

    def blocks() -> Iterator[Tensor]:
        block_BD = team.block(dim)
        for columns_TBC in columns():
            rows_BD = block_BD[: columns_TBC.shape[1]]
            group.barrier()  # now all have read the last block
            to_rows(columns_TBC, rows_BD, team)
            group.barrier()
            if group.here.is_first and group.machines.world_size > 1:
                group.machines.gather_columns(rows_BD, of_machines)
            group.barrier()
            yield rows_BD

    return Blocks((num_words, dim), blocks)


def rows_of(table_TVC: Tensor) -> Iterator[Tensor]:
    """Blocks of rows of all of this process's columns, (T, B, C)."""
    return (table_TVC[:, rows] for rows in spans(table_TVC.shape[1]))


class OwnColumns:
    """The columns of one of a group's processes, in one piece, for kernels that know nothing of others."""

    def __init__(self, group: Group, dim: int):
        self.group, self.dim, self._team = group, dim, team_of(1, group)

    def of(self, table: Tensor | Blocks) -> Blocks:
        """Of a table, (V, D), the process's columns, (V, C), whose last ones may be padding: zeros."""
        whole, columns = blocks_of(table), columns_of_thread(0, self._team, self.dim)
        width = own_width(self.dim, self._team)

        def blocks() -> Iterator[Tensor]:
            for block_BD in whole.blocks():
                own_BC = block_BD.new_zeros(len(block_BD), width)
                own_BC[:, : columns.stop - columns.start] = block_BD[:, columns]
                yield own_BC

        return Blocks((table.shape[0], width), blocks)

    def whole(self, table: Tensor | Blocks) -> Blocks:
        """The table, (V, D), of which ``table`` has this process's columns; as ``by_rows`` returns it."""
        own = blocks_of(table)
        return by_rows(lambda: (block[None].cpu() for block in own.blocks()), own.shape[0], self.dim, self._team)

    def add_up(self, shares: Tensor) -> None:
        """Replaces the processes' shares by their sums."""
        self.group.members.all_reduce(shares)


@inner_fast
def block_of(scratch: Scratch, thread: int) -> Block:
    """A thread's block."""
    return Block(scratch.ids_TJ[thread], scratch.signs_TJ[thread], scratch.rows_TG[thread])


@inner_fast
def is_last(member: int, scratch: Scratch) -> bool:
    """Whether this member also sums up the losses: the last one has the fewest columns."""
    return bool(member == scratch.size - 1)


@inner_fast
def num_chunks(member: int, scratch: Scratch) -> int:
    """The number of chunks in a member's columns that are not padding."""
    return scratch.borders[member + 1] - scratch.borders[member]  # type: ignore[no-any-return]


# ---- The parts of a step, for rows ``first`` to ``last`` of a batch


@inner_fast
def lay_out(rows: Rows, first: int, last: int, columns: Columns, block: Block) -> int:
    """Writes a block and prefetches its centers. Returns its number of targets, with the padding."""
    ids_J, signs_J, rows_G = block
    max_len, row_bytes = rows.targets_BL.shape[1], columns.center_VC[0].nbytes
    max_groups = padded(max_len) // TOGETHER
    at: int = np.int64(0)  # type: ignore[assignment]
    for row in range(first, last):
        begin = rows.center_B[row] * row_bytes
        for byte in range(begin, begin + columns.chunks * CACHE_LINE, CACHE_LINE):
            prefetch(columns.center_VC, byte)
        contexts = rows.num_contexts_B[row]
        # A row is written as if it were full, and the next one over its rest: processors predict loops of equal counts.
        copy(rows.targets_BL, row * max_len, max_len, ids_J, at)
        fill(signs_J, at, at + contexts, _F1)
        fill(signs_J, at + contexts, at + contexts + max_len, -_F1)
        fill(rows_G, at // TOGETHER, at // TOGETHER + max_groups, row - first)
        at += contexts * (1 + rows.negatives)
        fill(ids_J, at, at + TOGETHER, 0)
        fill(signs_J, at, at + TOGETHER, _F0)
        at = padded(at)
    return at


@inner_fast
def padded(num_targets: int) -> int:
    """``num_targets``, rounded up to whole groups."""
    return (num_targets + TOGETHER - 1) & ~(TOGETHER - 1)


@inner_fast
def whole_loops(count: int) -> int:
    """``count``, rounded up to what vectorised loops do at a time: LLVM's code for the rest has other last bits."""
    return (count + 4 * CHUNK - 1) & ~(4 * CHUNK - 1)


@inner_fast
def share_scores(
    member: int, scratch: Scratch, turn: int, block: Block, count: int, center_B: Ids, columns: Columns
) -> None:
    """Writes a member's shares of the scores v·u, for ``add_up``. ``center_B`` are the block's."""
    center_VC, context_VC, chunks = columns
    width, part = context_VC.shape[1], first_part(member, scratch)
    chunks_at_once = 1 if scratch.by_chunk else max(1, chunks)
    for first in range(0, chunks, chunks_at_once):
        shift = first * CHUNK
        scores_J = scratch.shares_P2J[part, turn & 1]
        for group in range(count // TOGETHER):
            v = center_B[block.rows_G[group]] * width + shift
            dot_4(context_VC, block.ids_J, group * TOGETHER, shift, center_VC, v, chunks_at_once, scores_J)
        part += 1


@inner_fast
def share_norms(
    member: int, scratch: Scratch, turn: int, at: int, vectors: Floats, ids_B: Ids, width: int, chunks: int
) -> None:
    """Writes a member's shares of |v|^2 for the vectors ``ids_B``, each ``width`` long, from place ``at`` on."""
    part = first_part(member, scratch)
    chunks_at_once = 1 if scratch.by_chunk else max(1, chunks)
    for first in range(0, chunks, chunks_at_once):
        squares_J = scratch.shares_P2J[part, turn & 1]
        for row in range(ids_B.size):
            squares_J[at + row] = norm_square(vectors, ids_B[row] * width + first * CHUNK, chunks_at_once)
        part += 1


@inner_fast
def spread(
    block: Block, count: int, center_B: Ids, columns: Columns, slopes_J: Floats, steps_J: Floats, totals_BC: Floats
) -> None:
    """In place, for each target in turn: the row's total += slope·u, then u += step·v."""
    center_VC, context_VC, chunks = columns
    width = context_VC.shape[1]
    for group in range(count // TOGETHER):
        row, at = block.rows_G[group], group * TOGETHER
        v = center_B[row] * width
        scatter_4(context_VC, block.ids_J, at, 0, center_VC, v, totals_BC, row * width, slopes_J, steps_J, chunks)


@inner_fast
def add_gradients(block: Block, count: int, center_B: Ids, columns: Columns, slopes_J: Floats, shift: int) -> None:
    """Adds to the gradients, ``shift`` floats behind the vectors: slope·u to the center's, slope·v to the target's."""
    center_VC, context_VC, chunks = columns
    width = context_VC.shape[1]
    for group in range(count // TOGETHER):
        v, at = center_B[block.rows_G[group]] * width, group * TOGETHER
        scatter_4(context_VC, block.ids_J, at, shift, center_VC, v, center_VC, v + shift, slopes_J, slopes_J, chunks)


@inner_fast
def slopes_and_losses(scores_J: Floats, signs_J: Floats, count: int, losses_J: Floats) -> None:
    """Replaces scores by the slopes of their losses, sigmoid(score) - label, or 0 for padding. ``signs_J``: see Block.

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
        at += padded(num_targets)


@inner_fast
def first_part(member: int, scratch: Scratch) -> int:
    """The first of a member's parts in ``shares_P2J``."""
    if scratch.by_chunk:
        return scratch.borders[member]  # type: ignore[no-any-return]
    return member - scratch.first + scratch.first_on_machine


@inner_fast
def next_turn(scratch: Scratch, thread: int) -> int:
    """The turn to begin with. Not 0: members may still be reading the shares of the last turn."""
    barriers = 2 if scratch.exchange else 1
    return turns(scratch.counters, scratch.first_on_machine + thread) // barriers


@inner_fast
def add_up(member: int, scratch: Scratch, turn: int, count: int, total_J: Floats) -> int:
    """Writes the sum of all parts' ``shares_P2J[part, turn & 1]`` to ``total_J``. Returns the next turn.

    Even and odd turns have separate shares, because a member may be one turn ahead of another that is still reading.
    """
    sums, here = scratch.sums_R2J, member - scratch.first + scratch.first_on_machine
    if scratch.on_machine > 1:
        barrier(scratch.counters, here, scratch.on_machine)
    if scratch.exchange:
        if here == 0:
            call(scratch.exchange, turn & 1, count)
        if scratch.on_machine > 1:
            barrier(scratch.counters, here, scratch.on_machine)
    for j in range(count):
        total_J[j] = sums[0, turn & 1, j]
    for part in range(1, sums.shape[0]):
        for j in range(count):
            total_J[j] += sums[part, turn & 1, j]
    return turn + 1


# ---- What a machine's first thread does in each turn, when all of its threads have written their shares


def _reduce(links: Links, shares_P2J: Floats, sums_12J: Floats, turn: int, count: int) -> None:
    """Adds up this machine's shares, then all machines' sums."""
    total_J = sums_12J[0, turn, :count]
    np.add.reduce(shares_P2J[:, turn, :count], axis=0, out=total_J)
    links.all_reduce(total_J)


def _gather(links: Links, shares_of: Sequence[Floats], turn: int, count: int) -> None:
    """Gets the other machines' shares, so that everybody adds up all of them in one order."""
    messages = [shares_P2J[:, turn, :count].copy() for shares_P2J in shares_of]
    links.all_gather(messages)
    for shares_P2J, theirs in zip(shares_of, messages, strict=True):
        shares_P2J[:, turn, :count] = theirs
