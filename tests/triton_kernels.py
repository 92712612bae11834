"""Triton's kernels, on a GPU or elsewhere in the interpreter, and rows that they must not misread."""

import pytest
import torch
from torch import Tensor

from training.model.kernels import reference

INTERPRETED = not torch.cuda.is_available()
DEVICE = torch.device("cpu" if INTERPRETED else "cuda")

with pytest.MonkeyPatch.context() as patch:
    # Triton looks at it whenever it decorates a function, its own library's too: hence here, before any test runs.
    if INTERPRETED:
        patch.setenv("TRITON_INTERPRET", "1")
    pytest.importorskip("triton", reason="triton is made for Linux alone")
    from training.model.kernels import cuda as cuda


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if INTERPRETED:
        monkeypatch.setenv("TRITON_INTERPRET", "1")


Batch = tuple[Tensor, Tensor, Tensor]
Tables = tuple[Tensor, Tensor]

WORDS = 9
POISON = WORDS - 1
"""A word that no real place names: its vectors are NaN."""

OUTSIDE = 2**31 - 1
"""What an empty row names: reading its vector would end the process."""


def example(
    num_rows: int, window: int, negatives: int, dim: int, scale: float = 1.0, lowest: int = 0
) -> tuple[Batch, Tables]:
    """Rows of real ids from ``lowest`` on and with the poisoned word as padding, the second one empty; tables."""
    rng = torch.Generator().manual_seed(num_rows)
    max_len = 2 * window * (1 + negatives)
    num_contexts = torch.randint(1, 2 * window + 1, (num_rows,), generator=rng, dtype=torch.int16)
    num_contexts[1:2] = 0
    targets = torch.randint(lowest, POISON, (num_rows, max_len), generator=rng, dtype=torch.int32)
    targets[~reference.label_and_mask(num_contexts, max_len, negatives)[1]] = POISON
    center = torch.randint(lowest, POISON, (num_rows,), generator=rng, dtype=torch.int32)
    center[num_contexts == 0] = OUTSIDE
    targets[num_contexts == 0] = OUTSIDE
    tables = [torch.randn(WORDS, dim, generator=rng) * scale for _ in range(2)]
    for table in tables:
        table[POISON] = torch.nan
    return (center, targets, num_contexts), (tables[0], tables[1])


def without_poison(batch: Batch, tables: Tables) -> tuple[Batch, Tables]:
    """The same for the reference, which reads padding."""
    center, targets, num_contexts = (tensor.clone() for tensor in batch)
    center[center >= POISON] = 0
    targets[targets >= POISON] = 0
    center_VD, context_VD = (table.nan_to_num(0.0) for table in tables)
    return (center, targets, num_contexts), (center_VD, context_VD)


def assert_equal(found: Tensor, expected: Tensor) -> None:
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5 * min(1.0, scale) + 1e-7)


def to_device(batch: Batch, tables: Tables) -> tuple[Batch, Tables]:
    """Copies on the device."""
    center, targets, num_contexts = (tensor.clone().to(DEVICE) for tensor in batch)
    center_VD, context_VD = (table.clone().to(DEVICE) for table in tables)
    return (center, targets, num_contexts), (center_VD, context_VD)
