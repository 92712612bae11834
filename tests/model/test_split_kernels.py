"""Laws of kernels whose ranks share the columns: put side by side, the ranks' columns are what one process computes.

Most ranks here are threads of one process; two real processes and gloo come last.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Condition
from typing import NamedTuple, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from triton_kernels import DEVICE, INTERPRETED, POISON, WORDS, assert_equal, cuda, example, to_device, without_poison
from triton_kernels import interpreted as interpreted  # a fixture

from training.model.kernels import reference
from training.model.kernels.reference import AddUp, InPlaceTrainer, Rule
from training.train_config import IN_PLACE

T = TypeVar("T")

NUM_ROWS, WINDOW, NEGATIVES, LR = 7, 2, 2, 0.1
"""Seven rows of eight words: rows repeat words, and so do blocks of rows, centers too. The second row is empty."""

PADDING = 2
"""Columns of zeros at the end of each rank's tables, at least."""

AT_ONCE = 4 if INTERPRETED else 1
"""Rows whose slopes are computed before any of them moves a vector. A GPU would then move them in any order."""

WAIT_S = 60


def set_blocks(patch: pytest.MonkeyPatch) -> None:
    """Several blocks of rows a batch, and of targets a row."""
    patch.setattr(cuda, "ROWS_BETWEEN_MEETINGS", AT_ONCE)
    patch.setattr(cuda, "BLOCK_ELEMENTS", 256)


@pytest.fixture(autouse=True)
def blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    set_blocks(monkeypatch)


class Case(NamedTuple):
    """Ranks that train in place."""

    kernel: str
    optimizer: str
    size: int
    dim: int


KERNELS = {"reference": reference.row_losses, "cuda": cuda.row_losses}
SIZES = [(1, 7), (2, 33), (3, 100), (3, 7)]
"""Ranks, dim. The last of three ranks has but one of 7 columns."""

CASES = [Case(kernel, optimizer, size, dim) for kernel in KERNELS for optimizer in IN_PLACE for size, dim in SIZES]
OPTIMIZERS = pytest.mark.parametrize("optimizer", IN_PLACE)


def together(size: int, work: Callable[[int, AddUp], T]) -> list[T]:
    """``work(rank, add_up)`` of all ranks: threads that take turns, since Triton's interpreter serves one at a time."""
    turn, arrived, num_sums = Condition(), dict[int, Tensor](), [0]

    def add_up(rank: int, shares: Tensor) -> None:
        assert shares.dtype == torch.float32
        assert shares.is_contiguous()
        assert shares.isfinite().all()
        arrived[rank] = shares
        if len(arrived) == size:
            total = torch.stack([arrived[rank] for rank in range(size)]).sum(0)
            for place in arrived.values():
                place.copy_(total)
            arrived.clear()
            num_sums[0] += 1
            turn.notify_all()
        else:
            before = num_sums[0]
            assert turn.wait_for(lambda: num_sums[0] > before, WAIT_S), "another rank does not call add_up"

    def run(rank: int) -> T:
        with turn:
            return work(rank, partial(add_up, rank))

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size)))


def columns_of(table_VD: Tensor, rank: int, size: int) -> Tensor:
    """A rank's columns of a table, (V, C)."""
    width = -(-table_VD.shape[1] // size)
    columns_VC = table_VD.new_zeros(len(table_VD), width + PADDING)
    own = table_VD[:, rank * width : (rank + 1) * width]
    columns_VC[:, : own.shape[1]] = own
    return columns_VC


def side_by_side(parts: list[Tensor], dim: int) -> Tensor:
    """The whole table of all ranks' columns, whose padding must be zeros."""
    width = parts[0].shape[1] - PADDING
    for rank, columns_VC in enumerate(parts):
        assert not columns_VC[:, max(0, min(width, dim - rank * width)) :].any()
    return torch.cat([columns_VC[:, :width] for columns_VC in parts], 1)[:, :dim]


# Loss and gradients


def losses_and_gradients(kernel: str, size: int, dim: int, rank: int, add_up: AddUp | None) -> list[Tensor]:
    """The losses and a rank's own gradients, row 0 among the words."""
    batch, tables = example(NUM_ROWS, WINDOW, NEGATIVES, dim, scale=dim**-0.5)
    if kernel == "cuda":
        batch, tables = to_device(batch, tables)
    else:
        batch, tables = without_poison(batch, tables)
    columns = [columns_of(table_VD, rank, size) for table_VD in tables]
    for columns_VC in columns:
        columns_VC[POISON] = torch.nan if kernel == "cuda" else 0
        columns_VC.requires_grad_()
    losses_B = KERNELS[kernel](batch, (columns[0], columns[1]), NEGATIVES, add_up)
    losses_B.backward(torch.linspace(-1, 2, NUM_ROWS).to(losses_B.device))  # type: ignore[no-untyped-call]
    gradients = [columns_VC.grad for columns_VC in columns if columns_VC.grad is not None]
    return [tensor.detach().cpu() for tensor in (losses_B, *gradients)]


def expected_losses_and_gradients(dim: int) -> list[Tensor]:
    losses_B, *gradients = losses_and_gradients("reference", 1, dim, 0, None)
    return [losses_B, *(side_by_side([gradient_VC], dim) for gradient_VC in gradients)]


def assert_whole(ranks: list[list[Tensor]], expected: list[Tensor], dim: int) -> None:
    """Losses, both tables and state are ``expected``, on each rank or side by side."""
    losses, centers, contexts, *state = ([*same] for same in zip(*ranks, strict=True))
    for same, one in zip((losses, *state), (expected[0], *expected[3:]), strict=True):
        for found in same:
            assert_equal(found, one)
    for parts, table_VD in zip((centers, contexts), expected[1:3], strict=True):
        assert_equal(side_by_side(parts, dim), table_VD)


@pytest.mark.parametrize(("size", "dim"), SIZES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_losses_and_gradients_equal_those_of_the_whole_tables(kernel: str, size: int, dim: int) -> None:
    ranks = together(size, partial(losses_and_gradients, kernel, size, dim))
    expected = expected_losses_and_gradients(dim)
    assert_whole(ranks, expected, dim)
    assert expected[1].any()
    for _, *gradients in ranks:
        assert not any(gradient_VC[[0, POISON]].any() for gradient_VC in gradients)


# In place


def start(case: Case) -> tuple[list[Tensor], Tensor | None]:
    """The optimizer's state, and for more than 7 dimensions a word in three that is frozen."""
    state = [torch.linspace(index, index + 1, WORDS) for index in range(2 * len(IN_PLACE[case.optimizer].row_state))]
    return state, torch.arange(WORDS) % 3 == 1 if case.dim > 7 else None


def trained(case: Case, rank: int, add_up: AddUp, lowest: int = 1) -> list[Tensor]:
    """The losses, a rank's columns and its state after all rows."""
    batch, tables = example(NUM_ROWS, WINDOW, NEGATIVES, case.dim, scale=case.dim**-0.5, lowest=lowest)
    state, frozen_V = start(case)
    columns = columns_of(tables[0], rank, case.size), columns_of(tables[1], rank, case.size)
    for columns_VC in columns:
        columns_VC[POISON] = torch.nan
    if case.kernel == "reference":
        rule = Rule(LR, case.optimizer, state, frozen_V, case.dim)
        losses_B = reference.update_columns(batch, columns, NEGATIVES, rule, AT_ONCE, add_up)
    else:
        batch, columns = to_device(batch, columns)
        trainer = cuda.CudaTrainer(columns, NEGATIVES, case.optimizer, str(DEVICE), case.dim, add_up)
        trainer.load(columns, dict(zip(trainer.state_names, state, strict=True)))
        trainer.frozen_V = None if frozen_V is None else frozen_V.to(DEVICE)
        losses_B, state = trainer.update(batch, LR), [*trainer.state.values()]
    return [tensor.cpu() for tensor in (losses_B, *(columns_VC[:POISON] for columns_VC in columns), *state)]


def expected_trained(case: Case, at_once: int = AT_ONCE) -> list[Tensor]:
    batch, tables = without_poison(*example(NUM_ROWS, WINDOW, NEGATIVES, case.dim, scale=case.dim**-0.5, lowest=1))
    state, frozen_V = start(case)
    losses_B = reference.update(batch, tables, NEGATIVES, LR, case.optimizer, state, at_once, frozen_V)
    return [losses_B, *(table_VD[:POISON] for table_VD in tables), *state]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_in_place_equals_one_process_with_as_many_rows_at_once(case: Case) -> None:
    ranks = together(case.size, partial(trained, case))
    expected = expected_trained(case)
    assert_whole(ranks, expected, case.dim)
    before = example(NUM_ROWS, WINDOW, NEGATIVES, case.dim, scale=case.dim**-0.5, lowest=1)[1]
    _, frozen_V = start(case)
    for after_VD, before_VD in zip(expected[1:3], before, strict=True):
        moved_V = (after_VD != before_VD[:POISON]).any(1)
        assert moved_V.any()
        assert frozen_V is None or not moved_V[frozen_V[:POISON]].any()


@OPTIMIZERS
def test_the_references_trainer_trains_row_after_row(optimizer: str) -> None:
    case = Case("reference", optimizer, 2, 7)

    def work(rank: int, add_up: AddUp) -> list[Tensor]:
        batch, tables = without_poison(*example(NUM_ROWS, WINDOW, NEGATIVES, case.dim, case.dim**-0.5, lowest=1))
        columns = columns_of(tables[0], rank, case.size), columns_of(tables[1], rank, case.size)
        trainer = InPlaceTrainer(columns, NEGATIVES, optimizer, dim=case.dim, add_up=add_up)
        state, trainer.frozen_V = start(case)
        trainer.load(columns, dict(zip(trainer.state_names, state, strict=True)))
        assert trainer.dim == case.dim
        losses_B = trainer.update(batch, LR)
        return [losses_B, *(columns_VC[:POISON] for columns_VC in columns), *trainer.state.values()]

    assert_whole(together(case.size, work), expected_trained(case, at_once=1), case.dim)


@OPTIMIZERS
def test_row_0_and_its_state_never_move(optimizer: str) -> None:
    case = Case("cuda", optimizer, 2, 7)
    tables = example(NUM_ROWS, WINDOW, NEGATIVES, case.dim, scale=case.dim**-0.5)[1]
    for rank, (_, *columns_and_state) in enumerate(together(2, partial(trained, case, lowest=0))):
        before = [*(columns_of(table_VD, rank, 2) for table_VD in tables), *start(case)[0]]
        for found, kept in zip(columns_and_state, before, strict=True):
            assert torch.equal(found[0], kept[0])


@pytest.mark.parametrize(("optimizer", "each"), [("sgd", 1), ("rowwise_adagrad", 2)])
@pytest.mark.parametrize("kernel", KERNELS)
def test_a_block_of_rows_costs_one_message_and_a_second_for_adagrad(kernel: str, optimizer: str, each: int) -> None:
    messages: list[Tensor] = []
    trained(Case(kernel, optimizer, 1, 7), 0, messages.append)
    assert len(messages) == -(-NUM_ROWS // AT_ONCE) * each


# Two processes


def be_a_rank(rank: int, cases: list[Case], folder: Path) -> None:
    """What ``trained`` and ``losses_and_gradients`` return, with gloo's sums."""
    if INTERPRETED:
        os.environ["TRITON_INTERPRET"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/met", rank=rank, world_size=2)
    set_blocks(pytest.MonkeyPatch())
    results = [trained(case, rank, dist.all_reduce) for case in cases]
    results += [losses_and_gradients(kernel, 2, cases[0].dim, rank, dist.all_reduce) for kernel in KERNELS]
    torch.save(results, folder / str(rank))
    dist.destroy_process_group()


@pytest.mark.long
def test_two_processes_and_gloo_compute_what_one_does(tmp_path: Path) -> None:
    cases = [Case(kernel, optimizer, 2, 33) for kernel in KERNELS for optimizer in IN_PLACE]
    # Not from the tests' server of processes: that may have loaded Triton without its interpreter.
    start_processes(be_a_rank, (cases, tmp_path), nprocs=2, start_method="spawn")  # type: ignore[no-untyped-call]
    ranks = zip(*(torch.load(tmp_path / str(rank)) for rank in range(2)), strict=True)
    expected = [*map(expected_trained, cases), *[expected_losses_and_gradients(33)] * len(KERNELS)]
    for found, whole in zip(ranks, expected, strict=True):
        assert_whole([*found], whole, 33)
