r"""Measures the parts of the CPU kernels, and what bounds each: the processor's arithmetic or its memory.

    python benchmarks/bounds.py --data data/ptb                 a minute

A thread trains its columns of the dataset's first rows. Nanoseconds are those of its CPU time, per target:

- *measured*: the block loop is run with its first part, with its first two parts, and so on. Differences are the parts.
- *arithmetic*: the same with 32 words instead of all, so that everything is in the first-level cache.
- *memory*: instead of the part, one number of each cache line that it needs is read, or read and written.

*together* is what each of several threads takes longer than one alone: exchanging shares of scores, and waiting.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np
import torch

from benchmarks.measuring.provenance import provenance, table
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.cli import Parser, command, count, path
from pipeline.shared.compiled import CACHE_LINE, compiled_fast, inner_fast, prefetch
from pipeline.shared.errors import InputError
from training.model.batch import BatchTensors
from training.model.kernels import cpu, lazy_adam
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
    lay_out,
    mean_losses,
    share_scores,
    slopes_and_losses,
    spread,
    whole_loops,
)
from training.model.kernels.lazy_adam import AdamState, LazyAdam, bring_up_to_date, columns_of
from training.model.kernels.threads import team_of
from training.model.kernels.vector import AHEAD
from training.model.limits import num_cores
from training.model.skip_gram import SkipGram
from training.reading.plan import plan_epoch
from training.reading.stream import ArrowStream

IN_PLACE = ("lay out", "scores", "slopes and losses", "spread", "centers")
ADAM = ("up to date", "lay out", "scores", "slopes and losses", "gradients", "scale, rates owed")
GLOBAL_BATCH, STEP_ROWS = 65_536, 512
FEW_WORDS = 32
FLOATS_OF_A_LINE = CACHE_LINE // 4


@command()
def main() -> None:
    arguments = parse()
    lines = provenance("torch", "numba", "numpy")
    manifest = Manifest.load(arguments.data)
    batches = first_batches(arguments.data, manifest, arguments.batches)
    few = [(center_B % FEW_WORDS, targets_BL % FEW_WORDS, counts_B) for center_B, targets_BL, counts_B in batches]
    dim, negatives = arguments.columns, manifest.config.negatives
    for mode in ("in place", "Adam"):
        measure = in_place if mode == "in place" else adam
        runs = [
            (
                measure(batches, manifest.vocab_size, negatives, dim, False),
                measure(few, FEW_WORDS, negatives, dim, False),
                measure(batches, manifest.vocab_size, negatives, dim, True),
                together(mode, batches, manifest.vocab_size, negatives, dim),
            )
            for _ in range(arguments.repeats)
        ]
        lines += ["", f"## {mode}", "", *report(IN_PLACE if mode == "in place" else ADAM, runs)]
    print("\n".join(["# What bounds the CPU kernels", "", *lines, "", *explained(arguments, manifest, batches)]))


def parse() -> argparse.Namespace:
    parser = Parser(
        "benchmarks/bounds.py",
        "Measures the parts of the CPU kernels, and what bounds each.",
        "python benchmarks/bounds.py --data data/ptb",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument("--columns", type=count, default=64, help="columns of a thread: 64 of dim 100 on two threads")
    parser.add_argument("--batches", type=count, default=4, help=f"how many times {GLOBAL_BATCH:,} rows to read")
    parser.add_argument("--repeats", type=count, default=3, help="turns; a figure is their median")
    arguments = parser.parse_args()
    if arguments.columns % FLOATS_OF_A_LINE:
        raise InputError.flag("columns", arguments.columns, f"a multiple of {FLOATS_OF_A_LINE}, a cache line's floats")
    return arguments


def first_batches(data: Path, manifest: Manifest, count: int) -> list[BatchTensors]:
    shards = manifest.select(0)
    plan = plan_epoch(shards, manifest.row_group_rows, 0, 0, 16, GLOBAL_BATCH)
    stream = ArrowStream(data, manifest, shards, plan)
    batches = (batch.tensors() for batch in stream.batches(0, 1))
    return [(center_B.clone(), targets_BL.clone(), n_B.clone()) for center_B, targets_BL, n_B in islice(batches, count)]


def num_targets(batches: list[BatchTensors], negatives: int) -> int:
    return sum(int(num_contexts_B.sum()) for _, _, num_contexts_B in batches) * (1 + negatives)


def nanoseconds(work: Callable[[], object], targets: int, clock: Callable[[], float] = time.process_time) -> float:
    work()  # compiles
    began = clock()
    work()
    return (clock() - began) / targets * 1e9


# In place


@compiled_fast
def _in_place(parts: int, only_memory: bool, rows: Rows, columns: Columns, scratch: Scratch, buffer_BC: Floats) -> None:
    """The first ``parts`` parts of cpu._update, for SGD and one thread, with a learning rate of 0."""
    block, slopes_J, losses_J = block_of(scratch, 0), scratch.slopes_TJ[0], scratch.losses_TJ[0]
    steps_J, losses_B = scratch.shares_P2J[0, 1], np.empty(rows.center_B.size, dtype=np.float32)
    steps_J[:] = 0
    for first in range(0, rows.center_B.size, cpu.ROWS_AT_ONCE):
        last = min(first + cpu.ROWS_AT_ONCE, rows.center_B.size)
        center_B = rows.center_B[first:last]
        count = lay_out(rows, first, last, columns, block)
        if only_memory:
            if parts > 1:
                _touch(columns.context_VC, columns.chunks, block.ids_J, count, False)
            if parts > 3:
                _touch(columns.context_VC, columns.chunks, block.ids_J, count, True)
            continue
        if parts > 1:
            share_scores(0, scratch, 0, block, count, center_B, columns)
            add_up(0, scratch, 0, count, slopes_J)
        if parts > 2:
            slopes_and_losses(slopes_J, block.signs_J, whole_loops(count), losses_J)
            mean_losses(rows, first, last, losses_J, losses_B)
        if parts > 3:
            spread(block, count, center_B, columns, slopes_J, steps_J, buffer_BC)


@inner_fast
def _touch(table_VC: Floats, chunks: int, ids_J: Ids, count: int, writes: bool) -> None:
    """Reads one number of each of the rows' cache lines, prefetched like ``dot_4`` does, and writes it back changed."""
    row_bytes, total = table_VC[0].nbytes, np.float32(0)
    for j in range(count):
        begin = ids_J[j + AHEAD] * row_bytes
        for chunk in range(chunks):
            prefetch(table_VC, begin + chunk * CACHE_LINE)
        for chunk in range(chunks):
            total += table_VC[ids_J[j], chunk * FLOATS_OF_A_LINE]
            if writes:
                table_VC[ids_J[j], chunk * FLOATS_OF_A_LINE] += np.float32(1e-30)
    ids_J[count + AHEAD] = np.int32(total > 1e30)  # so that LLVM keeps the reading


def in_place(batches: list[BatchTensors], vocab: int, negatives: int, dim: int, only_memory: bool) -> list[float]:
    """Nanoseconds per target of each prefix of the parts; of the whole kernel last."""
    torch.set_num_threads(1)
    tables = [by_columns(table_VD, team_of(1))[0].numpy() for table_VD in SkipGram(vocab, dim, 0, True).tables]
    columns = Columns(tables[0], tables[1], dim // FLOATS_OF_A_LINE)
    scratch = Scratch.of(team_of(1), cpu.ROWS_AT_ONCE, batches[0][1].shape[1], dim, False)
    buffer_BC, targets = np.zeros(cpu.ROWS_AT_ONCE * dim, dtype=np.float32), num_targets(batches, negatives)

    def prefix(parts: int) -> None:
        for batch in batches:
            _in_place(parts, only_memory, Rows.of(batch, negatives), columns, scratch, buffer_BC)

    found = [nanoseconds(partial(prefix, parts), targets) for parts in range(1, len(IN_PLACE))]
    return [*found, nanoseconds(whole("in place", batches, vocab, negatives, dim), targets)]


# Adam


@compiled_fast
def _adam(
    parts: int, only_memory: bool, rows: Rows, adam: AdamState, scratch: Scratch, seen_2V: Ids, first_step: int
) -> None:
    """The first ``parts`` parts of lazy_adam._steps, for one thread. Their steps count on from ``first_step``."""
    block, slopes_J, losses_J = block_of(scratch, 0), scratch.slopes_TJ[0], scratch.losses_TJ[0]
    columns, width = columns_of(0, 0, scratch, adam), adam.rows.shape[4]
    losses_B, step = np.empty(rows.center_B.size, dtype=np.float32), first_step
    for first in range(0, rows.center_B.size, lazy_adam.ROWS_AT_ONCE):
        last = min(first + lazy_adam.ROWS_AT_ONCE, rows.center_B.size)
        center_B = rows.center_B[first:last]
        step += first % STEP_ROWS == 0
        if only_memory:
            count = lay_out(rows, first, last, columns, block)
            for table in range(2):
                table_VC = columns.context_VC if table else columns.center_VC
                ids, fresh = block.ids_J if table else center_B, 0
                for j in range(count if table else center_B.size):
                    scratch.rows_TG[0, fresh] = ids[j]
                    fresh += seen_2V[table, ids[j]] != step
                    seen_2V[table, ids[j]] = step
                _touch(table_VC, 4 * columns.chunks, scratch.rows_TG[0], fresh, True)
            if parts > 2:
                _touch(columns.context_VC, columns.chunks, block.ids_J, count, False)
            if parts > 4:
                _touch(columns.context_VC, columns.chunks, block.ids_J, count, True)
            continue
        bring_up_to_date(0, rows, first, last, adam, step)
        if parts > 1:
            count = lay_out(rows, first, last, columns, block)
        if parts > 2:
            share_scores(0, scratch, 0, block, count, center_B, columns)
            add_up(0, scratch, 0, count, slopes_J)
        if parts > 3:
            slopes_and_losses(slopes_J, block.signs_J, whole_loops(count), losses_J)
            mean_losses(rows, first, last, losses_J, losses_B)
        if parts > 4:
            add_gradients(block, count, center_B, columns, slopes_J, 3 * width)


def adam(batches: list[BatchTensors], vocab: int, negatives: int, dim: int, only_memory: bool) -> list[float]:
    """Nanoseconds per target of each prefix of the parts; of the whole kernel last."""
    torch.set_num_threads(1)
    steps = sum(len(center_B) // STEP_ROWS for center_B, _, _ in batches)
    trainer = LazyAdam(SkipGram(vocab, dim, 0, False).tables, negatives, 1e-5, 2 * len(ADAM) * steps)
    targets, scratch = num_targets(batches, negatives), trainer.buffers(batches[0][1].shape[1])
    seen_2V, step = np.zeros((2, vocab), dtype=np.int32), 0

    def prefix(parts: int) -> None:
        nonlocal step
        for batch in batches:
            _adam(parts, only_memory, Rows.of(batch, negatives), trainer.state, scratch, seen_2V, step)
            step += len(batch[0]) // STEP_ROWS

    found = [nanoseconds(partial(prefix, parts), targets) for parts in range(1, len(ADAM))]
    return [*found, nanoseconds(whole("Adam", batches, vocab, negatives, dim), targets)]


# The report


def whole(mode: str, batches: list[BatchTensors], vocab: int, negatives: int, dim: int) -> Callable[[], object]:
    """The kernel as training uses it, with torch's number of threads, on all batches."""
    model, steps = SkipGram(vocab, dim, 0, mode == "in place"), [len(batch[0]) // STEP_ROWS for batch in batches]
    if mode == "in place":
        in_place = cpu.CpuTrainer(model.tables, negatives, "sgd")
        return lambda: [in_place.update(batch, 0.0) for batch in batches]
    adam = LazyAdam(model.tables, negatives, 1e-5, 2 * sum(steps))
    return lambda: [adam.steps(batch, count) for batch, count in zip(batches, steps, strict=True)]


def together(mode: str, batches: list[BatchTensors], vocab: int, negatives: int, dim: int) -> float:
    """How much longer a target takes several threads than one, by the wall clock, if each has ``dim`` columns."""
    taken = []
    for threads in (1, num_cores()):
        torch.set_num_threads(threads)
        work = whole(mode, batches, vocab, negatives, threads * dim)
        taken.append(nanoseconds(work, num_targets(batches, negatives), time.perf_counter))
    return taken[1] - taken[0]


def report(parts: tuple[str, ...], runs: list[tuple[list[float], list[float], list[float], float]]) -> list[str]:
    def of_parts(column: int) -> list[float]:
        prefixes = [statistics.median(run[column][index] for run in runs) for index in range(len(parts))]  # type: ignore[index]
        return [after - before for before, after in zip([0.0, *prefixes], prefixes, strict=False)]

    measured, arithmetic, memory = (of_parts(column) for column in range(3))
    rows = []
    for index, part in enumerate(parts):
        has_memory = part in ("scores", "spread", "up to date", "gradients")
        memory_ns = f"{max(0.0, memory[index]):.1f}" if has_memory else ""
        rows.append((part, f"{measured[index]:.1f}", f"{arithmetic[index]:.1f}", memory_ns))
    rows.append(("together", f"{statistics.median(run[3] for run in runs):.1f}", "", ""))
    return table(("part", "measured, ns a target", "arithmetic", "memory"), rows)


def explained(arguments: argparse.Namespace, manifest: Manifest, batches: list[BatchTensors]) -> list[str]:
    rows = sum(len(center_B) for center_B, _, _ in batches)
    megabytes = manifest.vocab_size * arguments.columns * 4 / 1e6
    mean = num_targets(batches, manifest.config.negatives) / rows
    return [
        f"- {rows:,} rows of {mean:.1f} targets each; {arguments.columns} columns of {manifest.vocab_size:,} words are "
        f"{megabytes:.1f} MB a table, four times as much with Adam's moments and gradients.",
        f"- Medians of {arguments.repeats} turn(s). *together* is for {num_cores()} threads.",
    ]


if __name__ == "__main__":
    main()
