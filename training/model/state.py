"""The check of a step's state before it is restored: machine code uses its numbers as indices.

V words, D dimensions.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

COPIED_BYTES = 1 << 30
"""A state of at most so many bytes is copied, so that training goes on while the copy is written to the disk."""


class Slot(NamedTuple):
    """A tensor that a step saves: its shape, its type, and the range of its numbers, which are finite."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    least: float = -torch.inf
    most: float = torch.inf


def check_state(state: Mapping[str, Tensor], slots: Mapping[str, Slot]) -> None:
    """Raises ValueError unless ``state`` holds exactly these tensors, each as its slot says."""
    if state.keys() != slots.keys():
        raise ValueError(f"found the tensors {', '.join(sorted(state))}, expected {', '.join(sorted(slots))}")
    for name, slot in slots.items():
        tensor = state[name]
        if tuple(tensor.shape) != slot.shape or tensor.dtype != slot.dtype:
            raise ValueError(
                f"{name}: found {tensor.dtype} of {tuple(tensor.shape)}, expected {slot.dtype} of {slot.shape}"
            )
        if tensor.numel():
            low, high = (extreme.item() for extreme in torch.aminmax(tensor))
            if not (slot.least <= low <= high <= slot.most and abs(low) < torch.inf and abs(high) < torch.inf):
                raise ValueError(
                    f"{name}: found numbers from {low:g} to {high:g}, expected finite ones from {slot.least:g} to "
                    f"{slot.most:g}"
                )


def check_unknown(tables: Mapping[str, Tensor]) -> None:
    """Raises ValueError unless row 0 of each table, (V, D), is zero: it is <unk>'s, which nothing trains."""
    for name, table_VD in tables.items():
        if table_VD[0].any():
            raise ValueError(f"{name}: found a vector in row 0, expected the zeros of <unk>")
