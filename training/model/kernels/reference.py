"""The step in plain torch: the definition, against which the other kernels are tested.

B rows of a batch, L = max_len targets a row, T of them real, D dimensions, V words, K negatives for each context.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
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


def row_losses(batch: BatchTensors, tables: TableTensors, negatives: int) -> Tensor:
    """loss_i = sum_j mask·BCE(v·u_j, label) / max(1, sum_j mask), shape (B,) (Mikolov et al. 2013, Eq. 4; d2l 15.4)."""
    center_B, contexts_negatives_BL, num_contexts_B = batch
    max_len = contexts_negatives_BL.shape[1]
    label_BL, mask_BL = label_and_mask(num_contexts_B, max_len, negatives)
    scores_BL = skip_gram(center_B[:, None], contexts_negatives_BL, *tables).squeeze(1)
    loss_B: Tensor = SigmoidBCELoss()(scores_BL, label_BL, mask_BL)
    return loss_B * (max_len / mask_BL.sum(1).clamp(min=1))


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
    (center_B, contexts_negatives_BL, num_contexts_B), (center_VD, context_VD) = batch, tables
    if frozen_V is None:
        frozen_V = torch.zeros(len(center_VD), dtype=torch.bool, device=center_VD.device)
    losses_B = torch.zeros(len(center_B), device=center_VD.device)
    centers, counts = center_B.tolist(), num_contexts_B.tolist()
    for first in range(0, len(centers), rows_at_once):
        rows = [row for row in range(first, min(first + rows_at_once, len(centers))) if counts[row]]
        targets, slopes, vectors, gradients = {}, {}, {}, {}
        for row in rows:
            targets[row] = contexts_negatives_BL[row, : counts[row] * (1 + negatives)].long()
            label_T = (torch.arange(len(targets[row]), device=targets[row].device) < counts[row]).float()
            vectors[row] = center_VD[centers[row]].clone()
            scores_T = context_VD[targets[row]] @ vectors[row]
            losses_B[row] = F.binary_cross_entropy_with_logits(scores_T, label_T)
            slopes[row] = scores_T.sigmoid() - label_T
        for row in rows:
            gradients[row] = slopes[row] @ context_VD[targets[row]]
            moves_T = ~frozen_V[targets[row]]
            moving, context_gradients_TD = targets[row][moves_T], (slopes[row][:, None] * vectors[row])[moves_T]
            if optimizer == "sgd":
                context_VD.index_add_(0, moving, context_gradients_TD, alpha=-lr)
            else:
                for target, gradient_D in zip(moving.tolist(), context_gradients_TD, strict=True):
                    _adagrad(context_VD[target], state[1][target], gradient_D, lr)
        for row in rows:
            if frozen_V[centers[row]]:
                continue
            if optimizer == "sgd":
                center_VD[centers[row]] -= lr * gradients[row]
            else:
                _adagrad(center_VD[centers[row]], state[0][centers[row]], gradients[row], lr)
    return losses_B


def _adagrad(row_D: Tensor, sum_of_squares: Tensor, gradient_D: Tensor, lr: float) -> None:
    sum_of_squares += gradient_D.square().mean()
    row_D -= lr / (sum_of_squares.sqrt() + ADAGRAD_EPSILON) * gradient_D


class InPlaceTrainer:
    """Trains tables in place by ``update``. The other kernels have subclasses that do the same faster."""

    team: Team | None = None
    """The kernel's own threads; None if it has none."""

    frozen_V: Tensor | None = None
    """Words, (V,) bool, whose rows and state do not change."""

    group: Group | None = None
    """The processes that share the tables by columns."""

    def __init__(self, tables: AnyTables, negatives: int, optimizer: str, device: str = "cpu"):
        """``optimizer`` is a name in ``IN_PLACE``. Tensors are trained themselves, of blocks a copy."""
        self.num_words, self.dim = tables[0].shape
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
        return update(batch, self.tables, self._negatives, lr, self._optimizer, self._sums, frozen_V=self.frozen_V)

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
