"""The step in plain torch: the truth that the other kernels are held against.

B rows of a batch, L = max_len targets a row, D dimensions, V words, K negatives for each context.
"""

import torch
from torch import Tensor

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
