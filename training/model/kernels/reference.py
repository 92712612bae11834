"""The step in plain torch: the definition, against which the other kernels are tested.

B rows of a batch, R of them that train at once, L = max_len targets a row, T of them real, D dimensions, C of them a
rank's columns, V words, K negatives for each context.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from training.model.batch import BatchTensors
from training.model.blocks import AnyTables, Blocks, BlockTables, blocks_of, spans
from training.model.kernels.group import Group
from training.model.kernels.threads import Team
from training.model.memory import is_finite
from training.model.skip_gram import TABLES, SigmoidBCELoss, TableTensors, skip_gram
from training.train_config import IN_PLACE


def label_and_mask(num_contexts_B: Tensor, max_len: int, negatives: int) -> tuple[Tensor, Tensor]:
    """``label`` and ``mask``, (B, L) bool, of rows with n contexts: n ones and n·(1 + K) ones, as in the shards."""
    place_L = torch.arange(max_len, device=num_contexts_B.device)
    n_B1 = num_contexts_B[:, None].long()
    return place_L < n_B1, place_L < n_B1 * (1 + negatives)


AddUp = Callable[[Tensor], None]
"""Replaces each rank's shares by their sums over the ranks that share the columns: a float32 tensor, in place."""


def row_losses(batch: BatchTensors, tables: TableTensors, negatives: int, add_up: AddUp | None = None) -> Tensor:
    """loss_i = sum_j mask·BCE(v·u_j, label) / max(1, sum_j mask), shape (B,) (Mikolov et al. 2013, Eq. 4; d2l 15.4).

    If ranks share the columns, ``tables`` are this rank's, (V, C) each, and all ranks have the same batch and pass
    ``add_up``. Each gets the losses of the whole tables, and the gradients of its own columns.
    """
    center_B, contexts_negatives_BL, num_contexts_B = batch
    max_len = contexts_negatives_BL.shape[1]
    label_BL, mask_BL = label_and_mask(num_contexts_B, max_len, negatives)
    scores_BL = skip_gram(center_B[:, None], contexts_negatives_BL, *tables).squeeze(1)
    if add_up is not None:
        scores_BL = _Sum.apply(scores_BL, add_up)  # type: ignore[no-untyped-call]
    loss_B: Tensor = SigmoidBCELoss()(scores_BL, label_BL, mask_BL)
    return loss_B * (max_len / mask_BL.sum(1).clamp(min=1))


class _Sum(torch.autograd.Function):
    """Every rank computes the same loss from the sum, so the gradient of a rank's share is the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, shares: Tensor, add_up: AddUp) -> Tensor:
        total = shares.clone(memory_format=torch.contiguous_format)
        add_up(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


ADAGRAD_EPSILON = 1e-10  # torch.optim.Adagrad's


def update(
    batch: BatchTensors,
    tables: TableTensors,
    negatives: int,
    lr: float,
    optimizer: str = "sgd",
    state: Sequence[Tensor] = (),
    rows_at_once: int = 1,
    frozen_V: Tensor | None = None,
) -> Tensor:
    """Trains both tables in place, row after row. Returns the losses of ``row_losses`` along the way, shape (B,).

    A row's step follows the gradient of the *sum* of its losses, at the tables as the previous row left them: the
    contexts move first, then the center, once (word2vec.c's ``neu1e``). ``optimizer``, a name in ``IN_PLACE``, defines
    how far a vector with gradient g moves; several targets with the same word move it one after the other:

    - ``sgd``: by -lr·g.
    - ``rowwise_adagrad`` (Mudigere et al. 2021, arXiv 2104.05158, 4.1.4): adds the mean of g's squares to the vector's
      sum, then moves it by -lr·g / sqrt(sum). ``state`` is the sums of centers and those of contexts, (V,) each.

    The slopes of ``rows_at_once`` rows are computed before any of these rows moves a vector, and their centers move
    after all their contexts. Neither vectors nor state of words in ``frozen_V`` (bool) change.
    """
    rule = Rule(lr, optimizer, state, frozen_V, tables[0].shape[1])
    return update_columns(batch, tables, negatives, rule, rows_at_once)


class Rule(NamedTuple):
    """How far vectors move: arguments of ``update``, and the number of dimensions, over which Adagrad takes means."""

    lr: float
    optimizer: str
    state: Sequence[Tensor]
    frozen_V: Tensor | None
    dim: int

    def moving(self, words: Tensor) -> Tensor | slice:
        """An index of those words that are not frozen."""
        return slice(None) if self.frozen_V is None else ~self.frozen_V[words]

    def rates(self, table: int, words: Tensor, squares: Tensor) -> Tensor:
        """The learning rates of these words, one after the other. ``squares`` are |g|^2; ``table`` counts TABLES."""
        rates = torch.full_like(squares, self.lr)
        if self.optimizer == "rowwise_adagrad":
            for place, (word, square) in enumerate(zip(words.tolist(), squares, strict=True)):
                self.state[table][word] += square / self.dim
                rates[place] = self.lr / (self.state[table][word].sqrt() + ADAGRAD_EPSILON)
        return rates


def update_columns(
    batch: BatchTensors,
    tables: TableTensors,
    negatives: int,
    rule: Rule,
    rows_at_once: int = 1,
    add_up: AddUp | None = None,
) -> Tensor:
    """``update`` on a rank whose ``tables`` are some columns, (V, C) each, of ``rule.dim`` in all.

    All ranks have the same batch and the same state. For each ``rows_at_once`` rows, ``add_up`` sums the shares of the
    scores and of |v|^2, and for Adagrad then those of the centers' |g|^2.
    """
    (center_B, contexts_negatives_BL, num_contexts_B), (center_VC, context_VC) = batch, tables
    losses_B = torch.zeros(len(center_B), device=center_VC.device)
    counts = num_contexts_B.tolist()
    for first in range(0, len(counts), rows_at_once):
        rows = [row for row in range(first, min(first + rows_at_once, len(counts))) if counts[row]]
        if not rows:
            continue
        centers_R = center_B[rows].long()
        vectors_RC = center_VC[centers_R]
        targets = [contexts_negatives_BL[row, : counts[row] * (1 + negatives)].long() for row in rows]
        shares = [context_VC[targets_T] @ v_C for targets_T, v_C in zip(targets, vectors_RC, strict=True)]
        *scores, norms_R = _summed([*shares, vectors_RC.square().sum(1)], add_up)

        slopes = []
        for row, scores_T in zip(rows, scores, strict=True):
            label_T = (torch.arange(len(scores_T), device=scores_T.device) < counts[row]).float()
            losses_B[row] = F.binary_cross_entropy_with_logits(scores_T, label_T)
            slopes.append(scores_T.sigmoid() - label_T)

        gradients_RC = torch.empty_like(vectors_RC)
        for index, (targets_T, slopes_T) in enumerate(zip(targets, slopes, strict=True)):
            gradients_RC[index] = slopes_T @ context_VC[targets_T]
            moves_T = rule.moving(targets_T)
            words, moving_slopes = targets_T[moves_T], slopes_T[moves_T]
            rates = rule.rates(1, words, moving_slopes.square() * norms_R[index])
            context_VC.index_add_(0, words, -(rates * moving_slopes)[:, None] * vectors_RC[index])

        squares_R = gradients_RC.square().sum(1)
        if rule.optimizer == "rowwise_adagrad":
            [squares_R] = _summed([squares_R], add_up)
        moves_R = rule.moving(centers_R)
        rates = rule.rates(0, centers_R[moves_R], squares_R[moves_R])
        center_VC.index_add_(0, centers_R[moves_R], -rates[:, None] * gradients_RC[moves_R])
    return losses_B


def _summed(shares: list[Tensor], add_up: AddUp | None) -> list[Tensor]:
    """Sums over the ranks, by one message."""
    if add_up is None:
        return shares
    total = torch.cat(shares)
    add_up(total)
    return list(torch.split(total, [len(share) for share in shares]))


class InPlaceTrainer:
    """Trains tables in place by ``update``. The other kernels have subclasses that do the same faster."""

    team: Team | None = None
    """The kernel's own threads; None if it has none."""

    frozen_V: Tensor | None = None
    """Words, (V,) bool, whose rows and state do not change."""

    group: Group | None = None
    """The processes that share the tables by columns."""

    def __init__(
        self,
        tables: AnyTables,
        negatives: int,
        optimizer: str,
        device: str = "cpu",
        dim: int | None = None,
        add_up: AddUp | None = None,
        rows_at_once: int | None = None,
    ):
        """``optimizer`` is a name in ``IN_PLACE``. Tensors are trained themselves, of blocks a copy. ``rows_at_once``:
        see ``update``; None leaves it to the kernel.

        If ranks share the columns, ``tables`` are this rank's, of ``dim`` in all without padding, and all ranks pass
        ``add_up`` and then make the same calls of ``update``.
        """
        self.num_words, width = tables[0].shape
        self.dim, self.add_up, self.rows_at_once = dim or width, add_up, rows_at_once
        self._row_state = IN_PLACE[optimizer].row_state
        self._optimizer, self._negatives = optimizer, negatives
        self._adagrad = optimizer == "rowwise_adagrad"  # what compiled code gets instead of a name
        self._hold(tables, device)

    def _hold(self, tables: AnyTables, device: str) -> None:
        center_VD, context_VD = (
            (table.whole() if isinstance(table, Blocks) else table.detach()).to(device) for table in tables
        )
        self.tables: TableTensors = center_VD, context_VD
        self._sums = [center_VD.new_zeros(self.num_words) for _ in self.state_names]

    @property
    def state_names(self) -> list[str]:
        """The names that the optimizer's state, (V,) each, has in a checkpoint."""
        return [f"{table}.{name}" for name in self._row_state for table in TABLES]

    def update(self, batch: BatchTensors, lr: float) -> Tensor:
        """Trains on a batch. Returns the losses, shape (B,)."""
        rule = Rule(lr, self._optimizer, self._sums, self.frozen_V, self.dim)
        return update_columns(batch, self.tables, self._negatives, rule, self.rows_at_once or 1, self.add_up)

    def parts(self) -> list[Tensor]:
        """What training changes, for averaging: tables and state, whose second dimension is the words."""
        return [tensor[None] for tensor in (*self.tables, *self._sums)]

    def blocks(self) -> BlockTables:
        """The tables as they are now."""
        return blocks_of(self.tables[0]), blocks_of(self.tables[1])

    @property
    def state(self) -> dict[str, Tensor]:
        """The optimizer's state by its names."""
        return dict(zip(self.state_names, self._sums, strict=True))

    def load(self, tables: AnyTables, state: Mapping[str, Tensor]) -> None:
        """Goes on with these tables and this state instead."""
        for table_VD, table in zip(self.tables, tables, strict=True):
            for rows, block_BD in zip(spans(self.num_words), blocks_of(table).blocks(), strict=True):
                table_VD[rows] = block_BD.to(table_VD.device)
        for name, sums_V in zip(self.state_names, self._sums, strict=True):
            sums_V.copy_(state[name])

    def is_finite(self) -> bool:
        """Whether the tables contain neither NaN nor infinity."""
        return all(map(is_finite, self.tables))
