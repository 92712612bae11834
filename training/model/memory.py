"""Memory for tables and checkpoints, and a fast check of what it holds."""

import math

import numpy as np
import torch
from torch import Tensor

PAGE = 4096
"""Bytes of a page of memory."""


def page_aligned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Zeros that begin at a page of memory, as direct I/O needs it, and so at a cache line.

    numpy, unlike torch, asks Linux for 2 MB pages when an array is large. With pages of 4 kB, most accesses to a large
    table would also miss the TLB.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(num_bytes + PAGE, dtype=np.uint8)
    skipped = -memory.ctypes.data % PAGE
    return torch.from_numpy(memory[skipped : skipped + num_bytes]).view(dtype).view(shape)


def is_finite(tensor: Tensor) -> bool:
    """Whether the tensor holds neither NaN nor infinity. Takes one pass, without the mask that ``isfinite`` fills."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # aminmax propagates NaN
