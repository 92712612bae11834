"""Laws of training.model.kernels.cpu and of what it is built from: it computes what the reference does."""

import os
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numba
import numpy as np
import oracles
import pytest
import torch
from conftest import Threads
from tiny import Rows, random_rows, random_tables
from torch import Tensor

from training.model.kernels import cpu, reference
from training.model.kernels.columns import by_columns, by_rows, rows_of, slopes_and_losses
from training.model.kernels.lazy_adam import inverse_root
from training.model.kernels.threads import team_of
from training.model.memory import is_finite
from training.train_config import IN_PLACE

WORDS = 40
DIMS = (1, 3, 16, 50, 100, 300)


@pytest.fixture(autouse=True)
def one_thread(threads: Threads) -> None:
    """Unless a test says otherwise: for tables as small as these the reference is as fast with one."""
    threads(1)


# Loss and gradients


def losses_and_gradients(
    kernel: Callable[..., Tensor], rows: Rows, tables: tuple[Tensor, Tensor], negatives: int, weights_B: Tensor
) -> list[Tensor]:
    leaves = [table.clone().requires_grad_() for table in tables]
    losses_B = kernel(rows, (leaves[0], leaves[1]), negatives)
    losses_B.backward(weights_B)  # type: ignore[no-untyped-call]
    gradients = [leaf.grad for leaf in leaves if leaf.grad is not None]
    assert len(gradients) == 2
    return [losses_B.detach(), *gradients]


@pytest.mark.parametrize("num_threads", [1, 2, 5])
@pytest.mark.parametrize("dim", DIMS)
@pytest.mark.parametrize(("num_rows", "window", "negatives"), [(1, 1, 1), (37, 2, 3), (130, 5, 5)])
def test_losses_and_gradients_equal_the_references(
    threads: Threads, num_threads: int, dim: int, num_rows: int, window: int, negatives: int
) -> None:
    rows = random_rows(num_rows, WORDS, window, negatives, seed=dim)
    if num_rows == 1:
        rows[2][:] = 1
    tables = random_tables(WORDS, dim, dim**-0.5)
    for weights_B in (torch.ones(1).expand(num_rows), torch.linspace(-1, 3, num_rows)):
        threads(1)
        expected = losses_and_gradients(reference.row_losses, rows, tables, negatives, weights_B)
        threads(num_threads)
        found = losses_and_gradients(cpu.row_losses, rows, tables, negatives, weights_B)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert expected[1].any()


def test_rows_without_a_context_cost_nothing_and_have_no_gradient() -> None:
    rows = random_rows(20, WORDS, num_contexts=0)
    assert not any(
        found.any() for found in losses_and_gradients(cpu.row_losses, rows, random_tables(WORDS, 16), 2, torch.ones(20))
    )


def test_padding_is_never_read() -> None:
    """Left-over ids of padding name vectors that are no numbers."""
    rows, tables = random_rows(50, WORDS // 2), random_tables(WORDS, 16)
    expected = losses_and_gradients(cpu.row_losses, rows, tables, 2, torch.ones(50))
    _, mask_BL = reference.label_and_mask(rows[2], rows[1].shape[1], 2)
    rows[1][~mask_BL] = WORDS - 1
    rows[0][rows[2] == 0] = WORDS - 1
    for table in tables:
        table[WORDS - 1] = torch.nan
    for ours, theirs in zip(
        losses_and_gradients(cpu.row_losses, rows, tables, 2, torch.ones(50)), expected, strict=True
    ):
        assert torch.equal(ours, theirs)


def test_word_0_gets_no_gradient() -> None:
    """It is padding's, and the unknown words'; the reference keeps it where it is even if a row should name it."""
    rows = random_rows(50, WORDS, num_contexts=2)
    rows[0][::3] = 0
    rows[1][::2, ::2] = 0
    tables = random_tables(WORDS, 16)
    found = losses_and_gradients(cpu.row_losses, rows, tables, 2, torch.ones(50))
    expected = losses_and_gradients(reference.row_losses, rows, tables, 2, torch.ones(50))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.RMSprop])
def test_any_optimizer_of_torch_takes_the_gradients(kind: type[torch.optim.Optimizer]) -> None:
    trained = []
    for kernel in (cpu.row_losses, reference.row_losses):
        tables = [table.requires_grad_() for table in random_tables(WORDS, 20)]
        optimizer = kind(tables, lr=0.01)  # type: ignore[call-arg]
        for step in range(5):
            optimizer.zero_grad()
            kernel(random_rows(64, WORDS, seed=step), (tables[0], tables[1]), 2).sum().backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        trained.append(torch.stack(tables).detach())
    torch.testing.assert_close(*trained, rtol=0, atol=1e-5)
    assert not trained[0][:, 0].any()


# In place


def trained_in_place(
    rows: Rows, tables: tuple[Tensor, Tensor], lr: float, optimizer: str, state: float = 1.0
) -> tuple[Tensor, ...]:
    """Losses, tables and the optimizer's state after CpuTrainer has seen the rows."""
    trainer = cpu.CpuTrainer(tables, 2, optimizer)
    trainer.load(tables, {name: torch.full((len(tables[0]),), state) for name in trainer.state_names})
    losses_B = trainer.update(rows, lr)
    return (losses_B, *tables_of(trainer), *trainer.state.values())


def tables_of(trainer: cpu.CpuTrainer) -> list[Tensor]:
    return [table.whole() for table in trainer.blocks()]


def by_reference(
    rows: Rows,
    tables: tuple[Tensor, Tensor],
    lr: float,
    optimizer: str,
    rows_at_once: int,
    frozen_V: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The same by the definition."""
    tables = (tables[0].clone(), tables[1].clone())
    state = [torch.ones(WORDS) for _ in range(2 * len(IN_PLACE[optimizer].row_state))]
    losses_B = reference.update(rows, tables, 2, lr, optimizer, state, rows_at_once, frozen_V)
    return (losses_B, *tables, *state)


OPTIMIZERS = pytest.mark.parametrize("optimizer", IN_PLACE)


@OPTIMIZERS
def test_the_reference_trains_in_the_order_of_word2vec(optimizer: str) -> None:
    rows, tables = random_rows(60, WORDS, num_contexts=None), random_tables(WORDS, 5)
    losses_B, *found = by_reference(rows, tables, 0.1, optimizer, rows_at_once=1)
    center, context = tables[0].tolist(), tables[1].tolist()
    state = [[1.0] * WORDS for _ in range(2 * len(IN_PLACE[optimizer].row_state))]
    lists = zip(*(column.tolist() for column in rows), strict=True)
    expected_losses = oracles.train_in_place(lists, (center, context), 2, 0.1, optimizer, state)
    assert losses_B.tolist() == pytest.approx(expected_losses, abs=1e-5)
    for ours, theirs in zip(found, [center, context, *state], strict=True):
        torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-5, atol=1e-5)


@OPTIMIZERS
@pytest.mark.parametrize(("dim", "num_threads"), [*((dim, 1) for dim in DIMS), (100, 2), (100, 4), (300, 2), (300, 4)])
def test_in_place_equals_the_reference_where_rows_name_no_word_twice(
    threads: Threads, num_threads: int, dim: int, optimizer: str
) -> None:
    """A smaller dim employs no second thread."""
    rows, tables = random_rows(150, WORDS, repeat=False), random_tables(WORDS, dim, dim**-0.5)
    expected = by_reference(rows, tables, 0.05, optimizer, cpu.ROWS_AT_ONCE)
    threads(num_threads)
    found = trained_in_place(rows, tables, 0.05, optimizer)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (found[1] - tables[0]).abs().max() > 0.01


@pytest.mark.parametrize(("window", "negatives"), [(12, 1), (3, 2), (2, 4), (1, 1), (20, 0)])
def test_rows_of_every_length_are_trained(window: int, negatives: int) -> None:
    """The kernel fills rows up to whole groups of four targets, and writes contexts by sixteen.

    Left-over ids of padding name a vector that is no number.
    """
    rows, lr, many = random_rows(150, 200, window, negatives, repeat=False), 0.05, random_tables(201, 20)
    expected = (many[0].clone(), many[1].clone())
    expected_losses_B = reference.update(rows, expected, negatives, lr, "sgd", [], cpu.ROWS_AT_ONCE, None)
    _, mask_BL = reference.label_and_mask(rows[2], rows[1].shape[1], negatives)
    rows[1][~mask_BL] = 200
    for table_VD in (*many, *expected):
        table_VD[200] = torch.nan
    trainer = cpu.CpuTrainer(many, negatives, "sgd")
    losses_B = trainer.update(rows, lr)
    found = tables_of(trainer)
    torch.testing.assert_close(losses_B, expected_losses_B, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip((found[0][:200], found[1][:200]), (expected[0][:200], expected[1][:200]), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert not found[1][0].any()


@OPTIMIZERS
def test_a_word_named_twice_in_a_row_makes_a_difference_of_the_second_order(optimizer: str) -> None:
    """The center sees u - lr·slope·v instead of u the second time: a pair of equal targets adds lr²·|v| to its step at
    most, for slopes are below 1, and Adagrad's roots here above 1. The context vectors move by what was known before.
    """
    lr, (center_B, targets_BL, num_contexts_B) = 0.02, random_rows(cpu.ROWS_AT_ONCE, 8)
    rows, tables = (center_B, targets_BL, num_contexts_B), random_tables(WORDS, 20)
    _, center, context, *sums = trained_in_place(rows, tables, lr, optimizer)
    _, expected_center, expected_context, *expected_sums = by_reference(rows, tables, lr, optimizer, cpu.ROWS_AT_ONCE)
    torch.testing.assert_close(context, expected_context, rtol=0, atol=1e-6)
    pairs = torch.zeros(WORDS)
    for word, targets, n in zip(center_B.tolist(), targets_BL.tolist(), num_contexts_B.tolist(), strict=True):
        pairs[word] += sum(a == b for a, b in combinations(targets[: 3 * n], 2))
    bound_VD = lr**2 * tables[0].abs().max() * pairs[:, None] + 1e-6
    difference_VD = (center - expected_center).abs()
    assert (difference_VD <= bound_VD).all()
    assert difference_VD.max() > 1e-5
    for ours, theirs in zip(sums, expected_sums, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0)


@OPTIMIZERS
@pytest.mark.parametrize("dim", [20, 63, 65, 130])
def test_in_place_any_number_of_threads_gives_the_same_and_repeats_its_bits(
    threads: Threads, optimizer: str, dim: int
) -> None:
    rows, tables = random_rows(300, WORDS), random_tables(WORDS, dim, dim**-0.5)
    results = []
    for num_threads in (1, 2, 3, 4):
        threads(num_threads)
        results.append(trained_in_place(rows, tables, 0.05, optimizer))
        for again, first in zip(trained_in_place(rows, tables, 0.05, optimizer), results[-1], strict=True):
            assert torch.equal(again, first)
    for other in results[1:]:
        for ours, theirs in zip(other, results[0], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@OPTIMIZERS
def test_in_place_continues_with_what_was_loaded(threads: Threads, optimizer: str) -> None:
    threads(2)
    rows, tables = random_rows(100, WORDS), random_tables(WORDS, 70)
    other = random_tables(WORDS, 70, seed=1)
    trainer = cpu.CpuTrainer(tables, 2, optimizer)
    trainer.update(rows, 0.05)
    trainer.load(other, {name: torch.full((WORDS,), 3.0) for name in trainer.state_names})
    losses_B = trainer.update(rows, 0.05)
    expected = trained_in_place(rows, other, 0.05, optimizer, state=3.0)
    for ours, theirs in zip((losses_B, *tables_of(trainer), *trainer.state.values()), expected, strict=True):
        assert torch.equal(ours, theirs)


@OPTIMIZERS
def test_in_place_empty_rows_cost_and_move_nothing(optimizer: str) -> None:
    rows, tables = random_rows(100, WORDS, num_contexts=0), random_tables(WORDS, 33)
    losses_B, *found = trained_in_place(rows, tables, 0.05, optimizer)
    assert not losses_B.any()
    for ours, before in zip(found, (*tables, torch.ones(WORDS), torch.ones(WORDS)), strict=False):
        assert torch.equal(ours, before)


@OPTIMIZERS
@pytest.mark.parametrize("lr", [1e30, 3e38])
def test_in_place_a_rate_beyond_reason_is_seen_in_the_tables(optimizer: str, lr: float) -> None:
    trainer = cpu.CpuTrainer(random_tables(WORDS, 33), 2, optimizer)
    assert trainer.is_finite()
    for seed in range(3):
        trainer.update(random_rows(200, WORDS, seed=seed), lr)
    assert not trainer.is_finite()


@OPTIMIZERS
@pytest.mark.parametrize("num_threads", [1, 2])
def test_in_place_frozen_rows_and_state_stay_and_the_others_go_where_the_references_go(
    threads: Threads, optimizer: str, num_threads: int
) -> None:
    rows, tables = random_rows(150, WORDS, repeat=False), random_tables(WORDS, 100, 0.1)
    frozen_V = torch.arange(WORDS) % 3 == 1
    expected_losses, *expected = by_reference(rows, tables, 0.05, optimizer, cpu.ROWS_AT_ONCE, frozen_V)
    threads(num_threads)
    trainer = cpu.CpuTrainer(tables, 2, optimizer)
    trainer.load(tables, {name: torch.ones(WORDS) for name in trainer.state_names})
    trainer.frozen_V = frozen_V
    torch.testing.assert_close(trainer.update(rows, 0.05), expected_losses, rtol=1e-5, atol=1e-5)
    before = (*tables, *(torch.ones(WORDS) for _ in trainer.state))
    for ours, theirs, start in zip((*tables_of(trainer), *trainer.state.values()), expected, before, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours[frozen_V], start[frozen_V])
        assert torch.equal(theirs[frozen_V], start[frozen_V])
        assert not torch.equal(ours[~frozen_V], start[~frozen_V])
    trainer.frozen_V = None
    trainer.update(rows, 0.05)
    assert not torch.equal(tables_of(trainer)[1][frozen_V], tables[1][frozen_V])


# What they are built from


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (1, 6, 15), (1, 3, 7)])
def test_one_number_that_is_none_is_found_anywhere(place: tuple[int, int, int], value: float) -> None:
    table_TVC = torch.full((2, 7, 16), 3e38)
    table_TVC[:, ::2] *= -1
    assert is_finite(table_TVC)
    table_TVC[place] = value
    assert not is_finite(table_TVC)


@pytest.mark.parametrize("num_threads", [1, 2, 3, 7])
@pytest.mark.parametrize("dim", [1, 16, 17, 64, 100, 130])
def test_a_table_by_columns_comes_back_by_rows(num_threads: int, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.model.blocks.ROWS", 7)
    table_VD, team = torch.randn(WORDS, dim), team_of(num_threads)
    columns_TVC = by_columns(table_VD, team)
    assert torch.equal(by_rows(lambda: rows_of(columns_TVC), WORDS, dim, team).whole(), table_VD)


OF_A_BATCH = """
import hashlib, sys, torch
from training.model.kernels import cpu
from training.model.kernels.lazy_adam import LazyAdam
made = torch.Generator().manual_seed(1)
tables = tuple(torch.randn(300, 72, generator=made) * 0.3 for _ in range(2))
words = torch.randint(1, 300, (512, 61), generator=made, dtype=torch.int32)
rows = words[:, 0].clone(), words[:, 1:].clone(), torch.randint(0, 11, (512,), generator=made, dtype=torch.uint8)
for trainer in (cpu.CpuTrainer(tables, 5, "sgd"), LazyAdam(tables, 5, 0.01, 2)):
    losses = trainer.update(rows, 0.05) if trainer.__class__ is cpu.CpuTrainer else trainer.steps(rows, 2)
    for tensor in (losses, *(table.whole() for table in trainer.blocks())):
        print(hashlib.md5(tensor.numpy().tobytes()).hexdigest())
"""


@pytest.mark.long
def test_the_process_that_compiles_has_the_bits_of_those_that_load_its_code(tmp_path: Path) -> None:
    """Rows of up to 60 targets, whose losses LLVM adds up in more than one way."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    compiling, loading = (
        subprocess.run(
            [sys.executable, "-c", OF_A_BATCH], env=environment, capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    )
    assert loading == compiling


def test_slopes_and_losses_are_right_to_5e_7() -> None:
    scores = np.concatenate([np.linspace(-100, 100, 200_001), np.linspace(-1, 1, 100_001), [1e-30, -0.0]])
    for sign in (1, -1):
        found, losses = scores.astype(np.float32), np.empty(scores.size, np.float32)
        z = found.astype(np.float64)
        signs = np.full(scores.size, sign, np.float32)
        slopes_and_losses(found, signs, scores.size, losses)
        expected = np.logaddexp(0, -sign * z)
        assert (np.abs(losses - expected) / np.maximum(1, expected)).max() <= 5e-7
        assert np.abs(found - (1 / (1 + np.exp(-z)) - (sign > 0))).max() <= 5e-7


def test_the_inverse_root_is_right_to_5e_6() -> None:
    numbers = np.logspace(-36, 36, 50_000).astype(np.float32)

    @numba.njit
    def of_all(numbers: np.ndarray) -> np.ndarray:
        return np.array([inverse_root(number) for number in numbers])

    assert np.abs(of_all(numbers) * np.sqrt(numbers.astype(np.float64)) - 1).max() <= 5e-6
