"""Laws of the Triton kernels as compiled for GPUs that are not here, and of the report on what became of them."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.ladder import compiled, paper
from benchmarks.ladder.compiled import Kernel
from benchmarks.ladder.machine_code import Instruction, accesses, gathers_of_block, instructions_of_row
from pipeline.shared.errors import InputError

KERNELS = {"_forward", "_backward", "_update", "_share", "_move_contexts", "_move_centers"}
GATHERING = {"_forward", "_update", "_share", "_move_contexts"}
ADDING = {"_backward", "_update", "_move_contexts"}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessPoolExecutor]:
    """A process that compiles: in this one, Triton may be an interpreter."""
    try:
        compiled.check_triton()
    except InputError as error:
        pytest.skip(str(error))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            yield pool


def assert_close_to_the_bound(kernels: list[Kernel]) -> None:
    assert {kernel.name for kernel in kernels} == KERNELS
    for kernel in kernels:
        assert kernel.programs >= 4, kernel
        assert not any("ordered" in access for access in kernel.accesses), kernel
        if kernel.name in GATHERING:
            assert kernel.accesses["ld.cg v4"] >= kernel.gathers > 1, kernel
            assert kernel.together == kernel.gathers, kernel
        if kernel.name in ADDING and kernel.arch >= 90:  # A100 adds one number at a time
            additions = Counter(kernel.accesses)
            assert additions["red v4"] + additions["atom v4"] >= 4, kernel  # Triton 3.6 leaves the choice to ptxas


def test_on_hopper_nothing_spills_and_all_vectors_of_a_block_are_requested_at_once(pool: ProcessPoolExecutor) -> None:
    """Triton's compiler needs no GPU, and refuses much that its interpreter runs."""
    kernels = pool.submit(compiled.compiled, 90, 100).result(timeout=200)
    assert_close_to_the_bound(kernels)
    assert [kernel for kernel in kernels if kernel.spilled_bytes or kernel.spills] == []


@pytest.mark.long
@pytest.mark.parametrize("freezes", [False, True])
@pytest.mark.parametrize("dim", [100, 128, 300])
@pytest.mark.parametrize("arch", [80, 90, 100])
def test_every_mode_on_every_gpu_runs_four_programs_at_once(
    pool: ProcessPoolExecutor, arch: int, dim: int, freezes: bool
) -> None:
    kernels = pool.submit(compiled.compiled, arch, dim, freezes).result(timeout=200)
    assert_close_to_the_bound(kernels)
    assert [kernel for kernel in kernels if kernel.spilled_bytes > (0 if arch == 90 else 48)] == []


@pytest.mark.long
def test_the_report_has_every_kernel_and_every_card(pool: ProcessPoolExecutor) -> None:
    report = compiled.compiled_report()
    assert all(report.count(f"`{name}`") >= len(paper.MULTIPROCESSORS) for name in KERNELS)
    assert all(f"### {card.name}" in report for card in paper.CARDS)
    assert all(f"## sm_{arch}\n" in report for arch in paper.MULTIPROCESSORS)


def test_without_triton_the_report_ends_with_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="triton is not installed"):
        compiled.compiled_report()
    monkeypatch.setattr(compiled, "find_spec", lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")))
    with pytest.raises(InputError, match="found no ptxas and no cuobjdump"):
        compiled.compiled_report()


# What is read


def code(text: str) -> list[Instruction]:
    words = (line.split(maxsplit=1) for line in text.strip().splitlines())
    return [Instruction(16 * place, *(word.strip() for word in line)) for place, line in enumerate(words)]


PROGRAM = """
S2R R0, SR_TID.X
LDG.E R1, desc[UR4][R2.64]
LDG.E.128.STRONG.GPU R4, desc[UR4][R2.64]
LDG.E.128.STRONG.GPU R8, desc[UR4][R2.64]
{}
LDG.E.128.STRONG.GPU R12, desc[UR4][R2.64]
FADD R20, R8, R12
BRA 0x20
STG.E desc[UR4][R2.64], R20
BRA 0x10
EXIT R0
BRA 0xb0
"""
"""A loop over rows, from 0x10 to 0x90, and in it one over blocks of targets, from 0x20 to 0x70."""


@pytest.mark.parametrize(
    ("between", "together"),
    [("FADD R20, R21, R22", 3), ("FADD R20, R11, R22", 2), ("MOV R4, R22", 3), ("IMAD R0, R12, R12, R2", 3)],
)
def test_loads_are_together_until_one_of_their_numbers_is_used(between: str, together: int) -> None:
    assert gathers_of_block(code(PROGRAM.format(between))) == (3, together)


def test_instructions_of_a_row_and_of_a_block_are_counted() -> None:
    assert instructions_of_row(code(PROGRAM.format("FADD R20, R21, R22"))) == (3, 6)
    without_rows = [one for one in code(PROGRAM.format("FADD R20, R21, R22")) if one.address != 0x90]
    assert instructions_of_row(without_rows) == (5, 6)


def test_accesses_are_named_by_operation_cache_width_and_order() -> None:
    ptx = """
    @%p1 ld.global.cg.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
    ld.global.b16 { %rs1 }, [ %rd2 + 0 ];
    ld.shared.v4.b32 {%r1, %r2, %r3, %r4}, [%r5];
    red.global.gpu.relaxed.add.v4.f32 [ %rd3 + 0 ], { %r1, %r2, %r3, %r4 };
    atom.global.gpu.acq_rel.add.f32 %r1, [ %rd3 + 0 ], %r2;
    """
    assert [*accesses(ptx)] == ["ld.cg v4", "ld v1", "red v4", "atom v1 ordered"]


# What is computed


def placed(arch: int, registers: int, warps: int, shared_bytes: int) -> int:
    """Programs put on a multiprocessor one after the other, each warp where most registers are free."""
    limits = paper.MULTIPROCESSORS[arch]
    free, warps_left, shared_left, programs = [16384] * 4, 64, limits.shared_bytes, 0
    while programs < 32:
        for _ in range(warps):
            most = free.index(max(free))
            free[most] -= -(-registers * 32 // 256) * 256
        warps_left -= warps
        shared_left -= shared_bytes + 1024
        if min(*free, warps_left, shared_left) < 0:
            return programs
        programs += 1
    return programs


@pytest.mark.parametrize("arch", paper.MULTIPROCESSORS)
@pytest.mark.parametrize("warps", [4, 8])
@pytest.mark.parametrize("shared_bytes", [0, 4096, 100 << 10])
def test_a_multiprocessor_runs_as_many_programs_as_fit(arch: int, warps: int, shared_bytes: int) -> None:
    for registers in range(8, 256):
        found = paper.programs_at_once(arch, registers, warps, shared_bytes)
        assert found == placed(arch, registers, warps, shared_bytes)


@pytest.mark.parametrize("card", paper.CARDS, ids=lambda card: card.name)
def test_tables_beyond_l2_are_bound_by_hbm(card: paper.Card) -> None:
    fits = card.l2_bytes // paper.table_bytes(1, 100)
    inside, outside = (paper.in_place_tokens_per_s(card, vocab, 100, 36) for vocab in (fits, fits + 1))
    assert inside / outside == pytest.approx(card.l2 / card.hbm)
    assert outside * 2 * 37 * 400 < card.hbm
    steps = [paper.recipe_step_s(card, vocab, 100, 36) for vocab in (10**5, 10**6, 10**7)]
    assert steps[1] / steps[0] == pytest.approx(10, rel=0.3)
    assert steps[2] / steps[1] == pytest.approx(10, rel=0.03)


def test_rows_far_from_the_ends_have_as_many_targets_as_their_radius_gives() -> None:
    targets = paper.targets_of_rows(5, 5)
    assert targets == [12, 24, 36, 48, 60]
    assert paper.mean_blocks(targets, 32) == (1 + 1 + 2 + 2 + 2) / 5
