"""Laws of model.kernels.lazy_adam: it is Adam, whenever a row is read, and however a step's rows are spread."""

import threading
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
from conftest import Threads
from tiny import Rows, random_rows, random_tables
from torch import Tensor

from training.distributed import World
from training.model.batch import Batch
from training.model.kernels import reference
from training.model.kernels.lazy_adam import LazyAdam
from training.model.steps import TouchedRows

WORDS, NEGATIVES, LR = 50, 2, 0.01

Tables = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread(threads: Threads) -> None:
    """Unless a test says otherwise."""
    threads(1)


def steps_with_rare_words(num_steps: int, num_rows: int = 16, words: int = WORDS) -> list[Rows]:
    """Steps on the frequent half of the words; the other half comes in three steps alone."""
    steps = [random_rows(num_rows, words // 2, seed=step) for step in range(num_steps)]
    for step in (1, num_steps // 3, num_steps - 2):
        steps[step] = random_rows(num_rows, words, seed=1000 + step)
    return steps


def joined(steps: list[Rows]) -> Rows:
    centers, targets, counts = zip(*steps, strict=True)
    return torch.cat(centers), torch.cat(targets), torch.cat(counts)


def by_torch(steps: list[Rows], tables: Tables, lr: float = LR) -> tuple[list[float], Tables]:
    """torch.optim.Adam's mean loss of each step, and tables."""
    leaves = [table.clone().requires_grad_() for table in tables]
    optimizer = torch.optim.Adam(leaves, lr=lr)
    losses = []
    for rows in steps:
        optimizer.zero_grad()
        losses_B = reference.row_losses(rows, (leaves[0], leaves[1]), NEGATIVES)
        losses_B.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(losses_B.mean().item())
    return losses, (leaves[0].detach(), leaves[1].detach())


def with_epsilon_in_the_root(steps: list[Rows], tables: Tables, lr: float = LR) -> list[Tensor]:
    """The dense tables in float64, every row at every step, with the one thing in which the lazy form is not torch's:
    eps, squared, is in the root, as of the row's last gradient, and decays with the squares.
    """
    leaves = [table.double().requires_grad_() for table in tables]
    means, squares, epsilons = ([torch.zeros_like(leaf) for leaf in leaves] for _ in range(3))
    for step, rows in enumerate(steps, 1):
        losses_B = reference.row_losses(rows, (leaves[0], leaves[1]), NEGATIVES)
        gradients = torch.autograd.grad(losses_B.sum(), leaves)
        root = (1 - 0.999**step) ** 0.5
        for leaf, mean, square, epsilon, gradient in zip(leaves, means, squares, epsilons, gradients, strict=True):
            mean.mul_(0.9).add_(0.1 * gradient)
            square.mul_(0.999).add_(0.001 * gradient**2)
            epsilon.mul_(0.999)
            epsilon[gradient.any(1)] = (1e-8 * root) ** 2
            moves = mean / (square + epsilon).sqrt().clamp(min=1e-30)
            leaf.data.sub_(lr * root / (1 - 0.9**step) * moves)
    return [leaf.detach().float() for leaf in leaves]


def lazily(
    steps: list[Rows], tables: Tables, at_once: int = 1, lr: float = LR, write_after: int = -1
) -> tuple[Tensor, ...]:
    """The losses of all rows, and tables, which are also read after step ``write_after``."""
    adam = LazyAdam(tables, NEGATIVES, lr, len(steps))
    losses = []
    for first in range(0, len(steps), at_once):
        some = steps[first : first + at_once]
        losses.append(adam.steps(joined(some), len(some)))
        if first == write_after:
            tables_of(adam)
    return (torch.cat(losses), *tables_of(adam))


def tables_of(adam: LazyAdam) -> list[Tensor]:
    return [table.whole() for table in adam.blocks()]


def assert_equal_bits(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


@dataclass(frozen=True)
class Hundred:
    """Steps from tables on, and where two dense forms of Adam end up."""

    steps: list[Rows]
    tables: Tables
    losses: list[float]
    by_torch: Tables
    same_epsilon: list[Tensor]


@cache
def hundred(dim: int) -> Hundred:
    """By one thread, which is as fast for tables as small as these."""
    steps, tables = steps_with_rare_words(100), random_tables(WORDS, dim, dim**-0.5)
    return Hundred(steps, tables, *by_torch(steps, tables), with_epsilon_in_the_root(steps, tables))


@pytest.mark.parametrize(
    ("dim", "num_threads"),
    [
        *[(3, 1), (16, 1), (50, 1), (100, 1), (300, 1), (100, 2), (300, 4)],
        *[pytest.param(*other, marks=pytest.mark.long) for other in [(300, 2), (100, 4)]],
    ],
)
def test_a_hundred_steps_are_those_of_torch(threads: Threads, dim: int, num_threads: int) -> None:
    """Tables differ where a gradient is nearly 0, by eps: with the same eps they are equal."""
    expected = hundred(dim)
    threads(num_threads)
    losses_B, *found = lazily(expected.steps, expected.tables)
    assert losses_B.view(100, -1).mean(1).tolist() == pytest.approx(expected.losses, abs=1e-5)
    for ours, same, theirs, before in zip(
        found, expected.same_epsilon, expected.by_torch, expected.tables, strict=True
    ):
        torch.testing.assert_close(ours, same, rtol=0, atol=5e-6)
        assert (ours - theirs).abs().max() < LR / 2
        assert (ours - theirs).abs().mean() < 1e-5
        assert (ours - before).abs().max() > 10 * LR


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("at_once", [5, 50])
def test_many_steps_in_one_call_give_the_bits_of_one_by_one(threads: Threads, at_once: int, num_threads: int) -> None:
    threads(num_threads)
    steps, tables = steps_with_rare_words(100, num_rows=150), random_tables(WORDS, 100, 0.1)
    assert_equal_bits(lazily(steps, tables, at_once), lazily(steps, tables))


def test_writing_back_changes_nothing_that_comes_later() -> None:
    steps, tables = steps_with_rare_words(60), random_tables(WORDS, 20)
    assert_equal_bits(lazily(steps, tables, write_after=40), lazily(steps, tables))


def test_the_tables_can_be_read_as_they_are() -> None:
    steps, tables = steps_with_rare_words(60), random_tables(WORDS, 20)
    adam = LazyAdam(tables, NEGATIVES, LR, 60)
    for index, rows in enumerate(steps):
        adam.steps(rows)
        if index in (0, 30):
            for ours, theirs in zip(tables_of(adam), by_torch(steps[: index + 1], tables)[1], strict=True):
                assert (ours - theirs).abs().mean() < 1e-6


def test_a_word_that_returns_after_a_thousand_steps_has_moved_all_the_way() -> None:
    """Steps back to the 512th before are added up one by one; those before are below rounding, but moments live on."""
    steps = [random_rows(2, 4, seed=step, num_contexts=1) for step in range(1500)]
    for step in (3, 300, 1100, 1499):
        steps[step] = random_rows(2, 8, seed=step, num_contexts=4)
        steps[step][0][:], steps[step][1][:, :6] = 7, torch.arange(2, 8)
    tables = random_tables(8, 6)
    losses, expected = by_torch(steps, tables, lr=0.001)
    losses_B, *found = lazily(steps, tables, at_once=500, lr=0.001)
    assert losses_B.view(1500, -1).mean(1).tolist() == pytest.approx(losses, abs=2e-5)
    for ours, theirs, before in zip(found, expected, tables, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)
        assert (ours[7] - before[7]).abs().max() > 0.01


def test_rows_without_a_context_cost_and_move_nothing() -> None:
    steps, tables = [random_rows(30, WORDS, num_contexts=0)] * 5, random_tables(WORDS, 20)
    losses_B, *found = lazily(steps, tables)
    assert not losses_B.any()
    assert_equal_bits(tuple(found), tables)


def test_padding_is_never_read() -> None:
    steps, tables = [random_rows(30, WORDS // 2, seed=seed) for seed in range(5)], random_tables(WORDS, 20)
    expected = lazily(steps, tables)
    for center_B, targets_BL, num_contexts_B in steps:
        targets_BL[~reference.label_and_mask(num_contexts_B, targets_BL.shape[1], NEGATIVES)[1]] = WORDS - 1
        center_B[num_contexts_B == 0] = WORDS - 1
    for table in tables:
        table[WORDS - 1] = torch.nan
    for ours, theirs in zip(lazily(steps, tables), expected, strict=True):
        assert torch.equal(ours[: WORDS - 1], theirs[: WORDS - 1])


@pytest.mark.parametrize("at_once", [1, 10])
def test_frozen_rows_stay_and_move_later_as_if_they_had_never_had_a_gradient(at_once: int) -> None:
    """Oracle: torch's Adam, which gets gradients of 0 for them meanwhile, and so remembers nothing."""
    steps, tables, words_K = steps_with_rare_words(60), random_tables(WORDS, 20), torch.arange(1, WORDS, 3)
    leaves = [table.clone().requires_grad_() for table in tables]
    optimizer = torch.optim.Adam(leaves, lr=LR)
    adam = LazyAdam(tables, NEGATIVES, LR, 60)
    adam.freeze(words_K.numpy())
    for first in range(0, 60, at_once):
        if first == 30:
            for found, leaf, start_VD in zip(tables_of(adam), leaves, tables, strict=True):
                assert torch.equal(found[words_K], start_VD[words_K])
                assert (found - leaf.detach()).abs().mean() < 1e-6
            state = {name: tensor.clone() for name, tensor in adam.state_dict().items() if isinstance(tensor, Tensor)}
            adam = LazyAdam(tables, NEGATIVES, LR, 60)
            adam.load_state_dict(state, len(state["owed"]) - 1)
            adam.unfreeze()
        for rows in steps[first : first + at_once]:
            optimizer.zero_grad()
            reference.row_losses(rows, (leaves[0], leaves[1]), NEGATIVES).sum().backward()  # type: ignore[no-untyped-call]
            for leaf in leaves:
                if first < 30 and leaf.grad is not None:
                    leaf.grad[words_K] = 0
            optimizer.step()
        some = steps[first : first + at_once]
        adam.steps(joined(some), len(some))
    for found, leaf, start_VD in zip(tables_of(adam), leaves, tables, strict=True):
        assert (found - leaf.detach()).abs().mean() < 1e-5
        assert (found - start_VD)[words_K].abs().max() > LR


# Ranks


@dataclass(frozen=True)
class Meeting(World):
    """A world whose ranks are threads of this process."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    table: dict[int, Tensor] = field(default_factory=dict)

    def all_gather(self, values: Tensor) -> Tensor:
        self.table[self.rank] = values
        self.meeting.wait(60)
        everybodys = torch.stack([self.table[rank] for rank in range(self.world_size)])
        self.meeting.wait(60)
        return everybodys


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_that_exchange_slopes_have_the_bits_of_one_process(threads: Threads, world_size: int) -> None:
    """A step's rows lie lane by lane; rank r has lanes r, r + W, ..."""
    threads(1)
    lanes, per_lane, num_steps = 4, 6, 40
    steps, tables = steps_with_rare_words(num_steps, num_rows=lanes * per_lane), random_tables(WORDS, 40)
    barrier, table = threading.Barrier(world_size), dict[int, Tensor]()
    found = dict[int, LazyAdam]()
    losses = torch.zeros(world_size, num_steps)

    def be(rank: int) -> None:
        adam = LazyAdam(tables, NEGATIVES, LR, num_steps)
        world = Meeting(rank, world_size, 0, 1, meeting=barrier, table=table)
        step = TouchedRows(adam, lanes, per_lane, world)
        for index, rows in enumerate(steps):
            own = [column.view(lanes, per_lane, *column.shape[1:])[rank::world_size].flatten(0, 1) for column in rows]
            losses[rank, index] = step(Batch(own[0], own[1], own[2]), LR).sum()
        found[rank] = adam

    ranks = [threading.Thread(target=be, args=(rank,)) for rank in range(world_size)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    losses_B, *expected = lazily(steps, tables)
    for rank in range(world_size):
        # Here and not in the threads: those of one process read tables through the same memory.
        assert_equal_bits(tuple(tables_of(found[rank])), tuple(expected))
    torch.testing.assert_close(losses.sum(0), losses_B.view(num_steps, -1).sum(1))
