"""Laws of model.skip_gram and model.kernels.reference; the book's worked numbers are from d2l 15.4."""

import math

import oracles
import pytest
import torch

from training.model.kernels.reference import label_and_mask, row_losses
from training.model.skip_gram import RowLosses, SigmoidBCELoss, SkipGram, skip_gram


def test_scores_have_the_books_shape() -> None:
    """d2l 15.4.2.1: tables (20, 4), 2 rows, 4 targets -> (2, 1, 4)."""
    table = torch.randn(20, 4)
    center, targets = torch.ones((2, 1), dtype=torch.long), torch.ones((2, 4), dtype=torch.long)
    assert skip_gram(center, targets, table, table).shape == (2, 1, 4)
    assert SkipGram(20, 4)(center, targets).shape == (2, 1, 4)


def test_the_golden_score_matrix() -> None:
    """3 rows, 5 targets; transposed, not reshaped: with a reshape the numbers would be others."""
    center_VD = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0], [0.5, 0.5]])
    context_VD = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [2.0, 4.0]])
    targets = torch.tensor([[1, 2, 3, 1, 0], [3, 2, 1, 0, 0], [2, 3, 2, 3, 1]])
    scores = skip_gram(torch.tensor([[1], [2], [3]]), targets, center_VD, context_VD)
    expected = [[1.0, 2.0, 10.0, 1.0, 0.0], [2.0, -1.0, 3.0, 0.0, 0.0], [0.5, 3.0, 0.5, 3.0, 0.5]]
    assert scores.squeeze(1).tolist() == expected


def test_the_books_losses() -> None:
    """d2l 15.4.2.2: 0.9352 and 1.8462, the means over the real places."""
    inputs = torch.tensor([[1.1, -2.2, 3.3, -4.4]] * 2)
    target = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    losses = SigmoidBCELoss()(inputs, target, mask) * mask.shape[1] / mask.sum(1).clamp(min=1)
    assert [f"{loss:.4f}" for loss in losses.tolist()] == ["0.9352", "1.8462"]


def test_loss_without_a_mask_is_the_plain_mean() -> None:
    inputs, target = torch.randn(3, 4), torch.ones(3, 4)
    assert torch.allclose(SigmoidBCELoss()(inputs, target), SigmoidBCELoss()(inputs, target, torch.ones(3, 4)))


def test_losses_stay_finite_for_large_scores() -> None:
    losses = SigmoidBCELoss()(torch.tensor([[1e4, -1e4]]), torch.tensor([[0.0, 1.0]]))
    assert losses.tolist() == [1e4]


def example_rows(num_rows: int = 6, negatives: int = 2, window: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    max_len = 2 * window * (1 + negatives)
    num_contexts = torch.tensor([1, 4, 0, 2, 3, 4][:num_rows], dtype=torch.int16)
    targets = torch.randint(1, 9, (num_rows, max_len), generator=generator, dtype=torch.int32)
    targets[~label_and_mask(num_contexts, max_len, negatives)[1]] = 0
    center = torch.randint(1, 9, (num_rows,), generator=generator, dtype=torch.int32)
    center[num_contexts == 0] = 0
    return center, targets, num_contexts


def test_label_and_mask_follow_from_the_number_of_contexts() -> None:
    label, mask = label_and_mask(torch.tensor([0, 1, 2], dtype=torch.int16), 6, 2)
    assert label.int().tolist() == [[0] * 6, [1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0]]
    assert mask.int().tolist() == [[0] * 6, [1, 1, 1, 0, 0, 0], [1] * 6]


def test_row_losses_equal_the_oracle() -> None:
    center, targets, num_contexts = example_rows()
    model = SkipGram(9, 4)
    found = row_losses((center, targets, num_contexts), model.tables, 2)
    scores = model(center[:, None], targets).squeeze(1)
    expected = [oracles.row_loss(row, int(n), 2) for row, n in zip(scores.tolist(), num_contexts, strict=True)]
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


def test_a_zeroed_context_table_costs_ln_2() -> None:
    center, targets, num_contexts = example_rows()
    model = SkipGram(9, 4)
    losses = row_losses((center, targets, num_contexts), (model.center.weight, torch.zeros(9, 4)), 2)
    assert losses.tolist() == pytest.approx([math.log(2) if n else 0.0 for n in num_contexts.tolist()], abs=1e-7)


def test_gradients_are_those_of_finite_differences() -> None:
    center, targets, num_contexts = example_rows()
    tables = [torch.randn(9, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def losses(center_VD: torch.Tensor, context_VD: torch.Tensor) -> torch.Tensor:
        zero = torch.ones(9, 1, dtype=torch.float64)
        zero[0] = 0  # row 0 is padding: constant
        return row_losses((center, targets, num_contexts), (center_VD * zero, context_VD * zero), 2)

    assert torch.autograd.gradcheck(losses, tables)


def test_empty_rows_and_padding_add_nothing_and_move_nothing() -> None:
    center, targets, num_contexts = example_rows()
    model = SkipGram(9, 4)
    losses = RowLosses(model, row_losses, 2)(center, targets, num_contexts)
    losses.sum().backward()
    assert losses[num_contexts == 0].tolist() == [0.0]
    for table in (model.center, model.context):
        assert table.weight.grad is not None
        assert not table.weight.grad[0].any()
        assert not table.weight[0].any()
        assert torch.isfinite(table.weight.grad).all()


def test_tables_are_xavier_uniform_and_the_same_for_a_seed() -> None:
    one, two, other = SkipGram(500, 20, seed=3), SkipGram(500, 20, seed=3), SkipGram(500, 20, seed=4)
    assert torch.equal(one.center.weight, two.center.weight)
    assert not torch.equal(one.center.weight, other.center.weight)
    bound = math.sqrt(6 / 520)
    assert bound * 0.99 < one.context.weight.abs().max() <= bound
    assert not torch.equal(one.center.weight, one.context.weight)
