"""The step in plain torch: the truth that the other kernels are held against.

B rows of a batch, L = max_len targets a row, T of them real, D dimensions, V words, K negatives for each context.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from training.model import SigmoidBCELoss, skip_gram


def label_and_mask(num_contexts_B: Tensor, max_len: int, negatives: int) -> tuple[Tensor, Tensor]:
    """``label`` and ``mask`` (B, L, bool) of rows with n contexts: n ones, and n·(1 + K) ones, as in the shards."""
    place_L = torch.arange(max_len, device=num_contexts_B.device)
    n_B1 = num_contexts_B[:, None].long()
    return place_L < n_B1, place_L < n_B1 * (1 + negatives)


def row_losses(
    center_B: Tensor,
    contexts_negatives_BL: Tensor,
    num_contexts_B: Tensor,
    center_VD: Tensor,
    context_VD: Tensor,
    negatives: int,
) -> Tensor:
    """loss_i = sum_j mask·BCE(v·u_j, label) / max(1, sum_j mask), shape (B,) (Mikolov et al. 2013, Eq. 4; d2l 15.4)."""
    max_len = contexts_negatives_BL.shape[1]
    label_BL, mask_BL = label_and_mask(num_contexts_B, max_len, negatives)
    scores_BL = skip_gram(center_B[:, None], contexts_negatives_BL, center_VD, context_VD).squeeze(1)
    loss_B: Tensor = SigmoidBCELoss()(scores_BL, label_BL, mask_BL)
    return loss_B * (max_len / mask_BL.sum(1).clamp(min=1))


ADAGRAD_EPSILON = 1e-10  # torch.optim.Adagrad's


def update(
    center_B: Tensor,
    contexts_negatives_BL: Tensor,
    num_contexts_B: Tensor,
    center_VD: Tensor,
    context_VD: Tensor,
    negatives: int,
    lr: float,
    accumulators: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Trains both tables in place, row after row; the losses, shape (B,), are those of ``row_losses`` on the way.

    A row's step is ``lr`` times the gradient of the *sum* of its losses, taken at the tables as the row before left
    them, contexts first, the center once (word2vec.c's ``neu1e``). SGD without ``accumulators`` (center (V,), context
    (V,)); with them row-wise Adagrad (Mudigere et al. 2021, arXiv 2104.05158, 4.1.4): a table's row steps by
    lr / sqrt(accumulator) after the mean square of the gradient was added, which is done for every target in turn.
    """
    losses_B = torch.zeros(len(center_B), device=center_VD.device)
    for row, (center, num_contexts) in enumerate(zip(center_B.tolist(), num_contexts_B.tolist(), strict=True)):
        if num_contexts == 0:
            continue
        targets_T = contexts_negatives_BL[row, : num_contexts * (1 + negatives)].long()
        label_T = (torch.arange(len(targets_T), device=targets_T.device) < num_contexts).float()
        v_D, u_TD = center_VD[center].clone(), context_VD[targets_T]
        scores_T = u_TD @ v_D
        losses_B[row] = F.binary_cross_entropy_with_logits(scores_T, label_T)
        slope_T = scores_T.sigmoid() - label_T
        context_gradients_TD, center_gradient_D = slope_T[:, None] * v_D, slope_T @ u_TD
        if accumulators is None:
            context_VD.index_add_(0, targets_T, context_gradients_TD, alpha=-lr)
            center_VD[center] -= lr * center_gradient_D
        else:
            center_V, context_V = accumulators
            for target, gradient_D in zip(targets_T.tolist(), context_gradients_TD, strict=True):
                _adagrad(context_VD[target], context_V[target], gradient_D, lr)
            _adagrad(center_VD[center], center_V[center], center_gradient_D, lr)
    return losses_B


def _adagrad(row_D: Tensor, accumulator: Tensor, gradient_D: Tensor, lr: float) -> None:
    accumulator += gradient_D.square().mean()
    row_D -= lr / (accumulator.sqrt() + ADAGRAD_EPSILON) * gradient_D
