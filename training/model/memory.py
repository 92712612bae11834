"""Memory for tables and checkpoints, and a fast check of what it holds."""

import math

import numpy as np
import torch
from torch import Tensor

from pipeline.shared.errors import InputError
from training.model.limits import available_bytes
from training.train_config import TrainConfig, width_for

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


DENSE = {"sgd": 2, "adagrad": 3, "adam": 4}
"""How many tables an optimizer takes for one: the table, its gradient, and its state."""


def check_memory(
    config: TrainConfig, num_words: int, ranks_here: int, group_size: int, gpu_bytes: float | None = None
) -> None:
    """Raises InputError if this machine has no memory for the tables and the optimizer's state of its ranks.

    ``group_size`` ranks share a copy, on several machines if they are more than ``ranks_here``. With ``gpu_bytes``, the
    free ones of a rank's GPU, the machine is this GPU, with one rank.
    """
    machines = "machines" if gpu_bytes is None else "GPUs"
    num_numbers = 1 if config.in_place else DENSE[config.optimizer]
    num_copies, num_machines = max(1, ranks_here // group_size), max(1, group_size // ranks_here)
    columns = width_for(config.dim, 1)
    whole = 2 * num_words * columns * 4 * num_numbers
    num_bytes = whole * num_copies // num_machines
    if num_bytes <= (free := available_bytes() if gpu_bytes is None else gpu_bytes):
        return
    enough = [size for size in config.group_sizes(ranks_here) if whole * ranks_here // size <= free]
    if enough:
        remedy = f"share them by columns (--group-size {enough[0]}), or take fewer processes"
    elif not config.in_place:
        remedy = f"train in place (--sync-every 4), which takes {num_bytes / num_numbers / 1e9:.1f} GB"
    else:
        remedy = "take a larger machine, a smaller --dim, or a higher --min-count"
        needed = math.ceil(whole / max(1, free))
        possible = [size for size in config.group_sizes(config.lanes) if size % needed == 0]
        if possible:
            each, size = possible[-1] // needed, possible[-1]
            together = (
                f"--group-size {size}" if gpu_bytes is not None else f"--nproc {each} --group-size {size} on each"
            )
            remedy += f", or {needed} such {machines} that share them ({together})"
    factors = "".join(
        [
            f" x {num_numbers} for {config.optimizer}" if num_numbers > 1 else "",
            f" x {num_copies} copies" if num_copies > 1 else "",
            f" / {num_machines} {machines}" if num_machines > 1 else "",
        ]
    )
    raise InputError(
        f"memory: found {free / 1e9:.1f} GB free, expected {num_bytes / 1e9:.1f} GB for 2 tables x {num_words:,} words "
        f"x {columns} columns x 4 bytes{factors}; {remedy}"
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether the tensor holds neither NaN nor infinity. Takes one pass, without the mask that ``isfinite`` fills."""
    return not tensor.numel() or bool(torch.stack(torch.aminmax(tensor)).isfinite().all())  # aminmax propagates NaN
