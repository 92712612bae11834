"""Compiles the Triton kernels for GPUs that are not here, and says what became of them and what bounds them.

    python -m benchmarks.ladder.compiled --output benchmarks/reports/gpu-compiled.md      some minutes

The launches are those of a step, with a driver that names a GPU and runs nothing. Registers and the rest are read from
the machine code (SASS) by NVIDIA's cuobjdump, which Triton brings along.
"""

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from textwrap import fill
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import patch

from benchmarks.ladder.machine_code import accesses, disassembled, gathers_of_block, instructions_of_row
from benchmarks.ladder.paper import (
    CARDS,
    MULTIPROCESSORS,
    STEP_ROWS,
    VOCABULARIES,
    Card,
    bytes_in_place,
    bytes_of_adam,
    bytes_of_recipe,
    in_place_tokens_per_s,
    issue_tokens_per_s,
    mean_blocks,
    programs_at_once,
    recipe_step_s,
    table_bytes,
    targets_of_rows,
)
from benchmarks.measuring.provenance import provenance, table
from pipeline.shared.cli import Parser, command, path
from pipeline.shared.errors import InputError

DIMS = (100, 128, 300)
WINDOW, NEGATIVES = 5, 5
FINDINGS = Path(__file__).with_name("findings.md")


class Kernel(NamedTuple):
    """A kernel as compiled for one GPU and one way to launch it."""

    name: str
    modes: tuple[str, ...]
    """Constants that are true, such as "adagrad"."""
    arch: int
    dim: int
    block_t: int
    warps: int
    registers: int
    """Of a thread, as everything below that is not of a row."""
    spilled_bytes: int
    spills: int
    """Instructions that move registers to memory and back."""
    shared_bytes: int
    """Dynamic; Triton allocates no static shared memory."""
    accesses: dict[str, int]
    """How many instructions of PTX access global memory, by what ``accesses`` calls them."""
    gathers: int
    """Loads of 16 bytes in a block of targets, and how many of them are requested before the first is used."""
    together: int
    instructions: int
    """Of a warp for a row, without those of blocks of targets, ..."""
    per_block: int
    """... and for each block."""

    @property
    def programs(self) -> int:
        """How many a multiprocessor runs at once."""
        return programs_at_once(self.arch, self.registers, self.warps, self.shared_bytes)

    @property
    def occupancy(self) -> float:
        return self.programs * self.warps / MULTIPROCESSORS[self.arch].warps

    def of_row(self, targets: list[int]) -> float:
        """The instructions of all warps for a row, on average."""
        return self.warps * (self.instructions + self.per_block * mean_blocks(targets, self.block_t))


def main() -> None:
    with command():
        parser = Parser(
            "python -m benchmarks.ladder.compiled",
            "Compiles the Triton kernels without a GPU. Reports registers, occupancy, accesses and bounds.",
            "python -m benchmarks.ladder.compiled --output benchmarks/reports/gpu-compiled.md",
        )
        parser.add_argument("--output", type=path, help="where to write the report (default: to stdout)")
        output = parser.parse_args().output
        report = compiled_report()
        if output:
            output.write_text(report, encoding="utf-8")
        else:
            print(report, end="")


def compiled_report() -> str:
    """Markdown: all kernels for all GPUs, then bounds, then what we make of it."""
    check_triton()
    origin = ["- Command: `python -m benchmarks.ladder.compiled`", *provenance("torch", "triton")[1:]]
    # Processes of their own: Triton reads TRITON_INTERPRET when it is imported, and its driver is the process's.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        shapes = product(MULTIPROCESSORS, DIMS)
        kernels = [kernel for found in pool.map(compiled, *zip(*shapes, strict=True)) for kernel in found]
    lines = ["# The Triton kernels, compiled without a GPU", "", *origin, "", *what_columns_say()]
    for arch in MULTIPROCESSORS:
        lines += ["", f"## sm_{arch}", "", *kernel_table([kernel for kernel in kernels if kernel.arch == arch])]
    lines += ["", "## Bounds", "", *what_bounds_say()]
    for card in CARDS:
        lines += ["", f"### {card.name}", "", *bounds(card, kernels)]
    return "\n".join([*lines, "", FINDINGS.read_text(encoding="utf-8")])


def check_triton() -> None:
    """Raises InputError if the compiler or NVIDIA's tools, which Triton brings along, are not installed."""
    found = find_spec("triton")
    if found is None or found.origin is None:
        raise InputError("triton is not installed, and it compiles the kernels; on Linux: pip install triton")
    tools = Path(found.origin).parent / "backends" / "nvidia" / "bin"
    if missing := [tool for tool in ("ptxas", "cuobjdump") if not (tools / tool).exists()]:
        raise InputError(f"{tools}: found no {' and no '.join(missing)}; take triton's wheel: pip install triton")


# Compiling


def compiled(arch: int, dim: int, freezes: bool = False) -> list[Kernel]:
    """The kernels of all steps, each as often as its code differs. Call it in a process of its own."""
    os.environ.pop("TRITON_INTERPRET", None)
    import torch

    from training.model.kernels import cuda
    from training.train_config import IN_PLACE

    max_len = 2 * WINDOW * (1 + NEGATIVES)
    batch = (
        torch.zeros(STEP_ROWS, dtype=torch.int32),
        torch.zeros(STEP_ROWS, max_len, dtype=torch.int32),
        torch.ones(STEP_ROWS, dtype=torch.int16),
    )
    tables = torch.zeros(9, dim, requires_grad=True), torch.zeros(9, dim, requires_grad=True)
    with _launches(arch) as launched:
        for add_up in None, lambda shares: None:
            cuda.row_losses(batch, tables, NEGATIVES, add_up).sum().backward()  # type: ignore[no-untyped-call]
            for optimizer in IN_PLACE:
                trainer = cuda.CudaTrainer(tables, NEGATIVES, optimizer, add_up=add_up)
                trainer.frozen_V = torch.zeros(9, dtype=torch.bool) if freezes else None
                trainer.update(batch, 0.1)
    distinct: dict[tuple[str, str], tuple[Any, Any]] = {}
    for name, constants, built in launched:
        distinct.setdefault((name, built.asm["ptx"]), (constants, built))
    return [_kernel(name, constants, built, arch) for (name, _), (constants, built) in distinct.items()]


@contextmanager
def _launches(arch: int) -> Iterator[list[tuple[str, Any, Any]]]:
    """Meanwhile launches compile for ``arch`` and run nothing: name, constants and code of each are in the list."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime import JITFunction, driver

    machine = SimpleNamespace(
        get_current_device=lambda: arch,  # kernels remember what they were compiled for by the device's number
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", arch, 32),
    )
    driver.set_active(machine)
    launched: list[tuple[str, Any, Any]] = []
    run = JITFunction.run

    def compile_only(kernel: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        (constants,) = (argument for argument in arguments if type(argument).__name__ == "Constants")
        launched.append((kernel.__name__, constants, run(kernel, *arguments, warmup=True, **options)))

    with patch.object(JITFunction, "run", compile_only):
        yield launched


def _kernel(name: str, constants: Any, built: Any, arch: int) -> Kernel:
    usage, code = disassembled(built.asm["cubin"])
    gathers, together = gathers_of_block(code)
    instructions, per_block = instructions_of_row(code)
    return Kernel(
        name=name,
        modes=tuple(mode for mode in ("shared", "adagrad", "freezes") if getattr(constants, mode)),
        arch=arch,
        dim=constants.dim,
        block_t=constants.block_t,
        warps=built.metadata.num_warps,
        registers=usage["REG"],
        spilled_bytes=usage["STACK"] + usage["LOCAL"],
        spills=sum(instruction.operation.startswith(("LDL", "STL")) for instruction in code),
        shared_bytes=built.metadata.shared,
        accesses=dict(Counter(accesses(built.asm["ptx"]))),
        gathers=gathers,
        together=together,
        instructions=instructions,
        per_block=per_block,
    )


# The report


def kernel_table(kernels: list[Kernel]) -> list[str]:
    """A row for each kernel and mode; figures of DIMS are separated by a slash unless all are equal."""
    names = dict.fromkeys((kernel.name, kernel.modes) for kernel in kernels)
    rows = []
    for name, modes in names:
        same = [kernel for kernel in kernels if (kernel.name, kernel.modes) == (name, modes)]
        cells = [
            (
                str(kernel.registers),
                f"{kernel.spilled_bytes} ({kernel.spills})" if kernel.spills else "0",
                f"{kernel.shared_bytes:,}",
                f"{kernel.programs} ({kernel.occupancy:.0%})",
                _shown(kernel.accesses, "ld", "st"),
                _shown(kernel.accesses, "red", "atom") or "0",
                f"{kernel.together} of {kernel.gathers}" if kernel.gathers else "",
                f"{kernel.instructions} + {kernel.per_block}",
            )
            for kernel in same
        ]
        figures = (" / ".join(column if len({*column}) > 1 else column[:1]) for column in zip(*cells, strict=True))
        rows.append((", ".join((f"`{name}`", *modes)), *figures))
    header = ("kernel", "registers", "spilled", "shared", "at once", "loads, stores", "additions", "gathers", "warp")
    return table(header, rows)


def _shown(accesses: dict[str, int], *operations: str) -> str:
    return ", ".join(f"{accesses[key]} {key}" for key in sorted(accesses) if key.startswith(operations))


def what_columns_say() -> list[str]:
    return [
        wrapped(
            f"Figures of dim {', '.join(map(str, DIMS))} are separated by slashes unless all are equal. Window "
            f"{WINDOW}, K = {NEGATIVES}, float32, which is all that the kernels have. No mode freezes words."
        ),
        "",
        "- *registers*: of a thread. *spilled*: bytes of a thread, and instructions that move them.",
        "- *shared*: dynamic bytes of a program; there are no static ones but the 1,024 that the system takes.",
        "- *at once*: programs on a multiprocessor by registers, shared memory and warps (theoretical occupancy).",
        "- *loads, stores*, *additions*: instructions of PTX on global memory. v4 is 16 bytes of a thread, v1 up to 4;",
        "  cg bypasses L1; red returns nothing, atom the number before.",
        "- *gathers*: loads of 16 bytes of a block of targets that a thread requests before it uses the first.",
        "- *warp*: instructions of one warp for a row, and in addition for each block of its targets.",
    ]


def what_bounds_say() -> list[str]:
    targets, dim = targets_of_rows(WINDOW, NEGATIVES), DIMS[0]
    mean = sum(targets) / len(targets)
    in_place, recipe = bytes_in_place(dim, mean), bytes_of_recipe(dim, mean)
    header = ("card", "multiprocessors", "GHz", "HBM, TB/s", "L2, MB", "L2, TB/s", "from")
    rows = [
        (
            card.name,
            str(card.multiprocessors),
            f"{card.clock_hz / 1e9:.2f}",
            f"{card.hbm / 1e12:.2f}",
            str(card.l2_bytes >> 20),
            f"{card.l2 / 1e12:.1f}",
            card.sources,
        )
        for card in CARDS
    ]
    return [
        wrapped(
            f"A row far from its sentence's ends has {mean:.0f} targets on average. At dim {dim} it moves, in place, "
            f"{in_place.read:,.0f} bytes by gathers, {in_place.added:,.0f} by additions and {in_place.others:,.0f} of "
            f"ids, counts and losses; forward and backward of the book's recipe move {recipe.read:,.0f} + "
            f"{recipe.added:,.0f} + {recipe.others:,.0f}. torch's Adam moves {bytes_of_adam(1, dim):,.0f} bytes of "
            f"each word in every step of {STEP_ROWS} rows: the gradient is zeroed and read, weight and both moments "
            "are read and written. A token is a row."
        ),
        "",
        "- *memory*: these bytes by the bandwidth of L2 if it holds the tables (with Adam: four times the tables),",
        "  else of HBM, as if L2 held none of them.",
        "- *instructions*: if each of a multiprocessor's four schedulers issues one per clock.",
        "",
        *table(header, rows),
        "",
        "L2's bandwidth is 5,120 bytes per clock, which NVIDIA has published for A100. It is assumed for the others.",
    ]


def wrapped(text: str) -> str:
    return fill(text, 120, break_long_words=False, break_on_hyphens=False)


def bounds(card: Card, kernels: list[Kernel]) -> list[str]:
    targets, rows = targets_of_rows(WINDOW, NEGATIVES), []
    mean = sum(targets) / len(targets)
    for vocab, dim in product(VOCABULARIES, DIMS):
        (update,) = (
            kernel
            for kernel in kernels
            if (kernel.name, kernel.modes, kernel.arch, kernel.dim) == ("_update", (), card.arch, dim)
        )
        seconds = recipe_step_s(card, vocab, dim, mean)
        size = table_bytes(vocab, dim)
        rows.append(
            (
                f"{vocab:,}, {dim}",
                f"{size / 1e6:,.0f} ({'L2' if size <= card.l2_bytes else 'HBM'})",
                f"{in_place_tokens_per_s(card, vocab, dim, mean) / 1e6:,.0f}",
                f"{issue_tokens_per_s(card, update.of_row(targets)) / 1e6:,.0f}",
                f"{seconds * 1e6:,.0f} ({'L2' if 4 * size <= card.l2_bytes else 'HBM'})",
                f"{STEP_ROWS / seconds / 1e6:,.2f}",
            )
        )
    header = (
        "V, dim",
        "tables, MB",
        "in place, M tokens/s: memory",
        "instructions",
        "recipe: µs a step",
        "M tokens/s",
    )
    return table(header, rows)


if __name__ == "__main__":
    main()
