"""Laws of training.model.kernels.cuda: it computes what the reference does.

Where there is a GPU the kernels run on it; elsewhere Triton's interpreter runs them on CPU tensors.
"""

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROOT
from torch import Tensor
from triton_kernels import (
    DEVICE,
    INTERPRETED,
    POISON,
    WORDS,
    Batch,
    Tables,
    assert_equal,
    cuda,
    example,
    to_device,
    without_poison,
)
from triton_kernels import interpreted as interpreted  # a fixture

from training.distributed import SINGLE
from training.model import steps
from training.model.blocks import initial_tables
from training.model.kernels import reference
from training.model.kernels.reference import InPlaceTrainer
from training.train_config import IN_PLACE, TrainConfig

SHAPES = [(1, 1, 1, 1), (5, 2, 2, 3), (6, 5, 5, 100), (3, 1, 3, 128), (4, 2, 2, 300)]
"""Rows, window, negatives, dim. With nine words most rows name a word twice; 300 dimensions make two blocks a row."""


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


OPTIMIZERS = pytest.mark.parametrize("optimizer", IN_PLACE)


def trained_in_place(
    trainer: InPlaceTrainer, batch: Batch, num_calls: int, frozen_V: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Losses, tables and state after the rows, an equal share of them in each call; the state starts at 0 to 2."""
    for index, values_V in enumerate(trainer.state.values()):
        values_V.copy_(torch.linspace(index, index + 1, WORDS))
    trainer.frozen_V = frozen_V
    calls = zip(*(column.chunk(num_calls) for column in batch), strict=True)
    losses = [trainer.update((center, targets, counts), 0.1) for center, targets, counts in calls]
    return (torch.cat(losses), *(table_VD[:POISON] for table_VD in trainer.tables), *trainer.state.values())


@pytest.mark.parametrize("at_once", [2, 512])
@OPTIMIZERS
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_in_place_equals_the_reference(
    shape: tuple[int, int, int, int], optimizer: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "ROWS_AT_ONCE", at_once)
    batch, tables = example(*shape, lowest=1)
    clean_batch, clean_tables = without_poison(batch, tables)
    there, tables_there = to_device(batch, tables)
    expected = trained_in_place(InPlaceTrainer(clean_tables, shape[2], optimizer), clean_batch, 1)
    # The interpreter's programs run in turn, as the reference's rows do; a GPU's only when they are called in turn.
    num_calls = 1 if INTERPRETED else shape[0]
    found = trained_in_place(cuda.CudaTrainer(tables_there, shape[2], optimizer), there, num_calls)
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal(ours, theirs)
    for ours_VD, before_VD in zip(found[1:3], tables, strict=True):
        assert not torch.equal(ours_VD.cpu(), before_VD[:POISON])


@OPTIMIZERS
def test_frozen_rows_stay_and_the_others_go_where_the_references_go(optimizer: str) -> None:
    batch, tables = example(6, 5, 5, 100, lowest=1)
    clean_batch, clean_tables = without_poison(batch, tables)
    there, tables_there = to_device(batch, tables)
    frozen_V = torch.arange(WORDS) % 3 == 1
    expected = trained_in_place(InPlaceTrainer(clean_tables, 5, optimizer), clean_batch, 1, frozen_V)
    trainer = cuda.CudaTrainer(tables_there, 5, optimizer)
    found = trained_in_place(trainer, there, 6, frozen_V.to(DEVICE))  # in turn, on a GPU too
    for ours, theirs in zip(found, expected, strict=True):
        assert_equal(ours, theirs)
    for ours_VD, before_VD in zip(found[1:3], tables, strict=True):
        assert torch.equal(ours_VD.cpu()[frozen_V[:POISON]], before_VD[:POISON][frozen_V[:POISON]])


@pytest.mark.parametrize("settings", [{}, {"sync_every": 4}], ids=["adam", "in place"])
@pytest.mark.parametrize(("deterministic", "expected"), [(False, "cuda"), (True, "reference")])
def test_any_gpu_of_a_machine_has_the_kernel_of_gpus(
    settings: dict[str, Any], deterministic: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its device is cuda:1, not cuda; --kernel auto once took the reference there. No GPU is needed to ask."""

    def asked(name: str) -> None:
        raise LookupError(name)

    monkeypatch.setattr(steps, "kernel_of", asked)
    config = TrainConfig(deterministic=deterministic, **settings)
    with pytest.raises(LookupError, match=f"^{expected}$"):
        steps.make_step(config, initial_tables(3, 4), 1, 1, SINGLE, "cuda:1")


COMPILE = """
from types import SimpleNamespace

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from training.model.kernels import cuda
from training.train_config import IN_PLACE

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
        words = {word for word in assembly.split() if word.startswith(("ld.global", "red.", "atom."))}
        print(self.kernel.fn.__name__, *sorted(words))

for name in ("_forward", "_backward", "_update", "_share", "_move_contexts", "_move_centers"):
    setattr(cuda, name, Compiled(getattr(cuda, name)))
batch = torch.zeros(512, dtype=torch.int32), torch.zeros(512, 60, dtype=torch.int32), torch.ones(512, dtype=torch.int16)
tables = [torch.zeros(9, 100, requires_grad=True) for _ in range(2)]
for add_up in None, lambda shares: None:
    cuda.row_losses(batch, tables, 5, add_up).sum().backward()
    for optimizer in IN_PLACE:
        for frozen_V in None, torch.zeros(9, dtype=torch.bool):
            trainer = cuda.CudaTrainer(tables, 5, optimizer, add_up=add_up)
            trainer.frozen_V = frozen_V
            trainer.update(batch, 0.1)
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
    launches = [line.split() for line in done.stdout.splitlines()]
    times = Counter(name for name, *_ in launches)
    modes = 2 * len(IN_PLACE)
    assert times == {
        "_forward": 2,
        "_backward": 2,
        "_update": modes,
        "_share": 1 + modes,
        "_move_contexts": modes,
        "_move_centers": modes,
    }
    for name, *words in launches:
        if name in ("_forward", "_update", "_share", "_move_contexts"):
            assert "ld.global.cg.v4.b32" in words
        if name in ("_backward", "_update", "_move_contexts"):
            assert "red.global.gpu.relaxed.add.v4.f32" in words
    assert "acq_rel" not in done.stdout
