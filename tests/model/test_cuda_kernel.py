"""Laws of training.model.kernels.cuda: it computes what the reference does.

Where there is a GPU the kernels run on it; elsewhere Triton's interpreter runs them on CPU tensors. What the compiler
makes of them is in tests/house/test_compiled_kernels.py.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
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


def test_no_program_that_trains_in_place_waits_for_another_to_end(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    for multiprocessors, programs in ((16, 64), (108, 432), (132, 512), (148, 512)):
        machine = SimpleNamespace(multi_processor_count=multiprocessors)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, machine=machine: machine)
        for num_rows in (1, programs, programs + 1, 65536):
            rows_each = cuda._rows_each(num_rows, gpu)
            assert -(-num_rows // rows_each) <= programs
            assert rows_each == 1 or -(-num_rows // (rows_each - 1)) > programs
    assert cuda._rows_each(0, gpu) == 1


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
