"""What the server of ranks.py loads once, so that what it forks need not: torch, TensorBoard and numba's own tables."""

from contextlib import suppress

import torch
import torch._dynamo
from numba.core.registry import cpu_target

import training.train  # noqa: F401

with suppress(ImportError):
    import torch.utils.tensorboard

torch.set_num_threads(1)  # threads of OpenMP do not live on in what is forked
cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()
