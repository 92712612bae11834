"""Batch: the rows that a reader passes to a step. B rows of a batch, L = max_len targets a row."""

from dataclasses import dataclass

import torch
from torch import Tensor

BatchTensors = tuple[Tensor, Tensor, Tensor]
"""``center_B``, ``contexts_negatives_BL`` and ``num_contexts_B`` of a Batch: the arguments of kernels."""


@dataclass(frozen=True)
class Batch:
    """A rank's rows: int32 ``center_B`` and ``contexts_negatives_BL``; ``num_contexts_B``, 0 for an empty row."""

    center_B: Tensor
    contexts_negatives_BL: Tensor
    num_contexts_B: Tensor
    num_steps: int = 1
    """The batch holds the rows of this many steps, end to end; every step has the same number of rows."""

    @classmethod
    def empty(cls, num_rows: int, max_len: int) -> "Batch":
        """Rows without a context."""
        ids, counts = torch.zeros(num_rows, 1 + max_len, dtype=torch.int32), torch.zeros(num_rows, dtype=torch.int16)
        return cls(ids[:, 0].contiguous(), ids[:, 1:].contiguous(), counts)

    def to(self, device: torch.device) -> "Batch":
        """A copy on the device. A copy from pinned memory may still be in progress when this returns."""
        center_B, targets_BL, num_contexts_B = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        return Batch(center_B, targets_BL, num_contexts_B, self.num_steps)

    def tensors(self) -> BatchTensors:
        return self.center_B, self.contexts_negatives_BL, self.num_contexts_B
