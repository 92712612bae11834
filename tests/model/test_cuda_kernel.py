"""Laws of training.model.kernels.cuda: it computes what the reference does.

Where there is a GPU the kernels run on it; elsewhere Triton's interpreter runs them on CPU tensors.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import Tensor

from training.model.kernels import reference

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

with pytest.MonkeyPatch.context() as patch:
    # Triton looks at it whenever it decorates a function, its own library's too: hence here, before any test runs.
    if INTERPRETED:
        patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is made for Linux alone")
    from training.model.kernels import cuda


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


Batch = tuple[Tensor, Tensor, Tensor]
Tables = tuple[Tensor, Tensor]

WORDS = 9
POISON = WORDS - 1
"""A word that no real place names: its vectors are NaN."""

OUTSIDE = 2**31 - 1
"""What an empty row names: reading its vector would end the process."""

SHAPES = [(1, 1, 1, 1), (5, 2, 2, 3), (6, 5, 5, 100), (3, 1, 3, 128), (4, 2, 2, 300)]
"""Rows, window, negatives, dim. With nine words most rows name a word twice; 300 dimensions make two blocks a row."""


def example(
    num_rows: int, window: int, negatives: int, dim: int, scale: float = 1.0, lowest: int = 0
) -> tuple[Batch, Tables]:
    """Rows of real ids from ``lowest`` on and with the poisoned word as padding, the second one empty; tables."""
    rng = torch.Generator().manual_seed(num_rows)
    max_len = 2 * window * (1 + negatives)
    num_contexts = torch.randint(1, 2 * window + 1, (num_rows,), generator=rng, dtype=torch.int16)
    num_contexts[1:2] = 0
    targets = torch.randint(lowest, POISON, (num_rows, max_len), generator=rng, dtype=torch.int32)
    targets[~reference.label_and_mask(num_contexts, max_len, negatives)[1]] = POISON
    center = torch.randint(lowest, POISON, (num_rows,), generator=rng, dtype=torch.int32)
    center[num_contexts == 0] = OUTSIDE
    targets[num_contexts == 0] = OUTSIDE
    tables = [torch.randn(WORDS, dim, generator=rng) * scale for _ in range(2)]
    for table in tables:
        table[POISON] = torch.nan
    return (center, targets, num_contexts), (tables[0], tables[1])


def without_poison(batch: Batch, tables: Tables) -> tuple[Batch, Tables]:
    """The same for the reference, which reads padding."""
    center, targets, num_contexts = (tensor.clone() for tensor in batch)
    center[center >= POISON] = 0
    targets[targets >= POISON] = 0
    center_VD, context_VD = (table.nan_to_num(0.0) for table in tables)
    return (center, targets, num_contexts), (center_VD, context_VD)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5 * min(1.0, scale) + 1e-7)


def to_device(batch: Batch, tables: Tables) -> tuple[Batch, Tables]:
    """Copies on the device."""
    center, targets, num_contexts = (tensor.clone().to(DEVICE) for tensor in batch)
    center_VD, context_VD = (table.clone().to(DEVICE) for table in tables)
    return (center, targets, num_contexts), (center_VD, context_VD)


def assert_losses_and_gradients_equal(batch: Batch, tables: Tables, negatives: int) -> None:
    weight_B = torch.linspace(-1, 2, len(batch[0]))
    clean_batch, expected = without_poison(batch, tables)
    batch, found = to_device(batch, tables)
    for table in (*expected, *found):
        table.requires_grad_()
    expected_losses = reference.row_losses(clean_batch, expected, negatives)
    losses = cuda.row_losses(batch, found, negatives)
    torch.autograd.backward((expected_losses, losses), (weight_B, weight_B.to(DEVICE)))
    assert_equal(losses.detach(), expected_losses.detach())
    for found_VD, expected_VD in zip(found, expected, strict=True):
        assert found_VD.grad is not None
        assert expected_VD.grad is not None
        assert_equal(found_VD.grad, expected_VD.grad)
        assert not found_VD.grad[[0, POISON]].any()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_and_gradients_equal_the_references(shape: tuple[int, int, int, int]) -> None:
    assert_losses_and_gradients_equal(*example(*shape), negatives=shape[2])


def test_large_scores_neither_overflow_nor_make_nan() -> None:
    batch, tables = example(5, 2, 2, 3, scale=100.0)
    there, tables_there = to_device(batch, tables)
    assert cuda.row_losses(there, tables_there, 2).max() > 1e3
    assert_losses_and_gradients_equal(batch, tables, negatives=2)


def test_empty_rows_cost_nothing_and_move_nothing() -> None:
    (center, targets, num_contexts), tables = example(5, 2, 2, 3)
    assert_losses_and_gradients_equal((center, targets, torch.zeros_like(num_contexts)), tables, negatives=2)


@pytest.mark.parametrize("at_once", [2, 512])
@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "rowwise_adagrad"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_update_equals_the_references(
    shape: tuple[int, int, int, int], adagrad: bool, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "ROWS_AT_ONCE", at_once)
    batch, tables = example(*shape, lowest=1)
    clean_batch, expected = without_poison(batch, tables)
    batch, found = to_device(batch, tables)
    sums, expected_sums = ((torch.linspace(0, 1, WORDS), torch.linspace(1, 2, WORDS)) for _ in range(2))
    sums = (sums[0].to(DEVICE), sums[1].to(DEVICE))
    expected_losses = reference.update(clean_batch, expected, shape[2], 0.1, expected_sums if adagrad else ())
    lr = torch.tensor(0.1, device=DEVICE) if adagrad else 0.1
    # The interpreter's programs run in turn, as the reference's rows do; a GPU's only when they are called in turn.
    num_calls = 1 if INTERPRETED else len(expected_losses)
    calls = zip(batch[0].chunk(num_calls), batch[1].chunk(num_calls), batch[2].chunk(num_calls), strict=True)
    losses = [cuda.update(rows, found, shape[2], lr, sums if adagrad else ()) for rows in calls]
    assert_equal(torch.cat(losses), expected_losses)
    for found_VD, expected_VD, before_VD in zip(found, expected, tables, strict=True):
        assert_equal(found_VD[:POISON], expected_VD[:POISON])
        assert not torch.equal(found_VD[:POISON].cpu(), before_VD[:POISON])
    for found_V, expected_V in zip(sums, expected_sums, strict=True):
        assert_equal(found_V, expected_V)


@pytest.mark.parametrize("adagrad", [False, True], ids=["sgd", "rowwise_adagrad"])
def test_frozen_rows_stay_and_the_others_go_where_the_references_go(adagrad: bool) -> None:
    batch, tables = example(6, 5, 5, 100, lowest=1)
    clean_batch, expected = without_poison(batch, tables)
    batch, found = to_device(batch, tables)
    frozen_V = torch.arange(WORDS) % 3 == 1
    sums, expected_sums = ((torch.linspace(0, 1, WORDS), torch.linspace(1, 2, WORDS)) for _ in range(2))
    sums = (sums[0].to(DEVICE), sums[1].to(DEVICE))
    reference.update(clean_batch, expected, 5, 0.1, expected_sums if adagrad else (), frozen_V=frozen_V)
    for row in range(6):  # in turn, on a GPU too
        rows = batch[0][row : row + 1], batch[1][row : row + 1], batch[2][row : row + 1]
        cuda.update(rows, found, 5, 0.1, sums if adagrad else (), frozen_V.to(DEVICE))
    for found_VD, expected_VD, before_VD in zip(found, expected, tables, strict=True):
        assert_equal(found_VD[:POISON], expected_VD[:POISON])
        assert torch.equal(found_VD[:POISON].cpu()[frozen_V[:POISON]], before_VD[:POISON][frozen_V[:POISON]])
    for found_V, expected_V in zip(sums, expected_sums, strict=True):
        assert_equal(found_V, expected_V)


COMPILE = """
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from training.model.kernels import cuda

machine = {"target": GPUTarget("cuda", 90, 32), "device": 0}
driver.set_active(SimpleNamespace(
    get_current_stream=lambda device: 0, **{f"get_current_{name}": lambda it=it: it for name, it in machine.items()}
))

class Compiled:
    def __init__(self, kernel):
        self.kernel = kernel

    def __getitem__(self, grid):
        return self.compile

    def compile(self, *arguments, **options):
        assembly = self.kernel.warmup(*arguments, grid=(1,), **options).asm["ptx"]
        print(*sorted({word for word in assembly.split() if word.startswith(("ld.global", "red.", "atom."))}))

for name in ("_forward", "_backward", "_update"):
    setattr(cuda, name, Compiled(getattr(cuda, name)))
batch = torch.zeros(512, dtype=torch.int32), torch.zeros(512, 60, dtype=torch.int32), torch.ones(512, dtype=torch.int16)
tables, sums = [torch.zeros(9, 100, requires_grad=True) for _ in range(2)], [torch.zeros(9) for _ in range(2)]
cuda.row_losses(batch, tables, 5).sum().backward()
for accumulators, frozen_V in (((), None), (sums, None), (sums, torch.zeros(9, dtype=torch.bool))):
    cuda.update(batch, [table.detach() for table in tables], 5, 0.1, accumulators, frozen_V)
"""
"""The launches of a step, by Triton's own binder of arguments, as far as the compiled code."""


def test_kernels_compile_for_a_gpu_with_wide_reads_and_relaxed_additions(tmp_path: Path) -> None:
    """Triton's compiler needs no GPU, and refuses much that its interpreter runs. Hopper moves four floats at once."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", COMPILE],
        cwd=ROOT,
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    forward, backward, sgd, adagrad, frozen = (set(line.split()) for line in done.stdout.splitlines())
    for reads in (forward, sgd, adagrad, frozen):
        assert "ld.global.cg.v4.b32" in reads
    for adds in (backward, sgd, adagrad, frozen):
        assert "red.global.gpu.relaxed.add.v4.f32" in adds
    assert not [word for word in forward | backward | sgd | adagrad | frozen if "acq_rel" in word]
