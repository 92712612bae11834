"""Skip-gram with negative sampling, and its loss, as in the book (d2l 15.4).

B rows of a batch, L = max_len targets a row, D dimensions, V words.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.batch import BatchTensors
from training.model.blocks import BlockTables, initial_tables

TABLES = ("center", "context")
"""Names of the tables, in the order of ``TableTensors`` and of the model's parameters."""

TableTensors = tuple[Tensor, Tensor]
"""``center_VD`` and ``context_VD``."""

LossFunction = Callable[[BatchTensors, TableTensors, int], Tensor]
"""The ``row_losses`` of a module of training/model/kernels."""


def skip_gram(center_B1: Tensor, targets_BL: Tensor, center_VD: Tensor, context_VD: Tensor) -> Tensor:
    """The scores v·u of every target (contexts and negatives) of every row, shape (B, 1, L) (d2l 15.4.2.1).

    Row 0 of either table is padding: it gets no gradient.
    """
    v_B1D = F.embedding(center_B1, center_VD, padding_idx=0)
    u_BLD = F.embedding(targets_BL, context_VD, padding_idx=0)
    # u·v rather than v·u makes the gradient of u contiguous, which saves a third of a step on a CPU.
    return torch.bmm(u_BLD, v_B1D.transpose(1, 2)).transpose(1, 2)


class SigmoidBCELoss(nn.Module):
    """Binary cross-entropy with logits, masked, as the *mean over all L places* of a row (d2l 15.4.2.2).

    Padding is masked after the logarithm, so that it adds 0 and not log 0.5. To get the mean over the real places,
    multiply by L / mask.sum(1).clamp(min=1), as ``reference.row_losses`` does.
    """

    def forward(self, inputs: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of each row, shape (B,), from ``inputs`` (logits), ``target`` and ``mask``, each (B, L)."""
        weight = None if mask is None else mask.to(inputs.dtype)
        loss_BL = F.binary_cross_entropy_with_logits(inputs, target.to(inputs.dtype), weight=weight, reduction="none")
        return loss_BL.mean(dim=1)


class SkipGram(nn.Module):
    """The two tables of vectors, ``center`` (v) and ``context`` (u), each (V, D) float32; row 0 stays zero."""

    def __init__(
        self, vocab_size: int, dim: int, seed: int = 0, in_place: bool = False, tables: BlockTables | None = None
    ):
        """With copies of ``tables``, or with those of ``initial_tables``."""
        super().__init__()
        center_VD, context_VD = (table.whole() for table in tables or initial_tables(vocab_size, dim, seed, in_place))
        num_words, dim = center_VD.shape
        self.center = nn.Embedding(num_words, dim, padding_idx=0, _weight=center_VD)
        self.context = nn.Embedding(num_words, dim, padding_idx=0, _weight=context_VD)

    @property
    def tables(self) -> TableTensors:
        return self.center.weight, self.context.weight

    def forward(self, center_B1: Tensor, targets_BL: Tensor) -> Tensor:
        """Scores, shape (B, 1, L)."""
        return skip_gram(center_B1, targets_BL, *self.tables)


class RowLosses(nn.Module):
    """A SkipGram and its loss function, as one module that DistributedDataParallel can wrap."""

    def __init__(self, model: SkipGram, row_losses: LossFunction, negatives: int):
        super().__init__()
        self.model, self.row_losses, self.negatives = model, row_losses, negatives

    def forward(self, center_B: Tensor, contexts_negatives_BL: Tensor, num_contexts_B: Tensor) -> Tensor:
        """The loss of each row, shape (B,): its mean over the real places; 0 for an empty row."""
        return self.row_losses((center_B, contexts_negatives_BL, num_contexts_B), self.model.tables, self.negatives)
