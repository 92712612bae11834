"""Rungs: Triton's kernels compute what the reference does, on batches that any order of additions gives the same.

The reference runs on the CPU. In place, a GPU trains rows at once that the reference trains in turn: so no word is in
two rows of a batch where all of them train in one call, and where words repeat, each row is a call. Contexts are even
words and negatives odd ones, as in a dataset no negative is a context. Padding, and all of an empty row, names a word
outside the tables: a kernel that reads it ends its process.

B rows, L = max_len targets a row, V words, D dimensions.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks.ladder.climb import Found, Work
from benchmarks.ladder.place import Place, place_of
from training.model.batch import BatchTensors
from training.model.kernels import cuda, reference
from training.model.kernels.reference import InPlaceTrainer
from training.model.skip_gram import TableTensors
from training.train_config import IN_PLACE

TOLERANCE = 2e-5
"""Of the largest number of a tensor: sums of float32 in another order, and exp and log of another library."""

OUTSIDE = 2**31 - 1


class Shape(NamedTuple):
    rows: int
    window: int
    negatives: int
    dim: int
    words: int

    def __str__(self) -> str:
        return f"{self.rows} rows, window {self.window}, {self.negatives} negatives, dim {self.dim}, V {self.words:,}"

    @property
    def max_len(self) -> int:
        return 2 * self.window * (1 + self.negatives)

    @property
    def has_enough(self) -> bool:
        """Whether no word need be in two rows."""
        return self.words > 2 * self.rows * self.max_len


def batch_of(shape: Shape, seed: int = 0, repeats: bool = True) -> BatchTensors:
    """Rows of words that repeat as those of a text do, or of words none of which is in two places; the second empty."""
    rng = np.random.default_rng([*shape, seed])
    size = shape.rows, shape.max_len
    num_contexts_B = rng.integers(1, 2 * shape.window + 1, shape.rows)
    num_contexts_B[1:2] = 0
    places_L = np.arange(shape.max_len)
    is_context_BL = places_L < num_contexts_B[:, None]
    half = (shape.words - 1) // 2
    if repeats:
        picks_BL = (half * rng.random(size) ** 3).astype(np.int64)
        centers_B = 1 + ((shape.words - 1) * rng.random(shape.rows) ** 3).astype(np.int64)
    else:
        picks_BL = rng.permutation(half)[: shape.rows * shape.max_len].reshape(size)
        centers_B = 1 + rng.permutation(shape.words - 1)[: shape.rows]
    targets_BL = np.where(is_context_BL, 2 + 2 * picks_BL, 1 + 2 * picks_BL).clip(1, shape.words - 1)
    targets_BL[places_L >= num_contexts_B[:, None] * (1 + shape.negatives)] = OUTSIDE
    centers_B[num_contexts_B == 0] = OUTSIDE
    ids = (torch.from_numpy(ids.astype(np.int32)) for ids in (centers_B, targets_BL))
    center_B, contexts_negatives_BL = ids
    return center_B, contexts_negatives_BL, torch.from_numpy(num_contexts_B.astype(np.int16))


def readable(batch: BatchTensors) -> BatchTensors:
    """The same for the reference, which reads padding."""
    center_B, targets_BL, num_contexts_B = batch
    return center_B.where(center_B != OUTSIDE, 0), targets_BL.where(targets_BL != OUTSIDE, 0), num_contexts_B


def tables_of(shape: Shape, seed: int = 1) -> TableTensors:
    """Both tables; row 0 is zero, as in every model."""
    generator = torch.Generator().manual_seed(seed)
    center_VD, context_VD = (torch.randn(shape.words, shape.dim, generator=generator) * 0.3 for _ in range(2))
    center_VD[0] = context_VD[0] = 0
    return center_VD, context_VD


def there(tensors: tuple[Tensor, ...], place: Place) -> tuple[Tensor, ...]:
    return tuple(tensor.to(place.device, copy=True) for tensor in tensors)


class Largest:
    """The largest difference so far, and where."""

    def __init__(self) -> None:
        self.apart, self.where = 0.0, "nowhere"

    def add(self, where: object, found: Tensor, expected: Tensor) -> None:
        """Raises AssertionError where the tensors are further apart than rounding explains."""
        found = found.detach().cpu()
        assert found.isfinite().all(), f"{where}: found numbers that are not finite"
        scale = max(1e-3, expected.abs().max().item()) if expected.numel() else 1.0
        apart = (found - expected.detach()).abs().max().item() / scale if expected.numel() else 0.0
        assert apart <= TOLERANCE, f"{where}: found {apart:.2g} of the largest number apart, expected {TOLERANCE:g}"
        if apart > self.apart:
            self.apart, self.where = apart, str(where)

    def __str__(self) -> str:
        return f"largest difference {self.apart:.1e} of a tensor's largest number ({self.where})"


def gradients(work: Work) -> Found:
    """Losses, and gradients by both tables, of one rank and of the columns' two kernels."""
    place, largest = place_of(work), Largest()
    for shape in map(Shape._make, place.sizes.shapes):
        batch, tables = batch_of(shape), tables_of(shape)
        weights_B = torch.linspace(-1, 2, shape.rows)
        expected = [table.requires_grad_() for table in tables]
        expected_B = reference.row_losses(readable(batch), (expected[0], expected[1]), shape.negatives)
        torch.autograd.backward(expected_B, weights_B)
        for name, add_up in (("", None), (", columns", lambda shares: None)):
            center, targets, counts = there(batch, place)
            found = [table.detach().requires_grad_() for table in there(tables, place)]
            losses_B = cuda.row_losses((center, targets, counts), (found[0], found[1]), shape.negatives, add_up)
            torch.autograd.backward(losses_B, weights_B.to(place.device))
            where = f"{shape}{name}"
            largest.add(f"losses, {where}", losses_B, expected_B)
            for table, ours, theirs in zip(("centers", "contexts"), found, expected, strict=True):
                assert ours.grad is not None
                assert theirs.grad is not None
                largest.add(f"gradient by {table}, {where}", ours.grad, theirs.grad)
                assert not ours.grad[0].any(), f"{where}: found a gradient of row 0, expected none"
    return Found(f"{len(place.sizes.shapes)} shapes; {largest}")


def in_place(work: Work, optimizer: str) -> Found:
    """Tables and state after a batch, with frozen words, of one rank and of the columns' kernels."""
    place, largest = place_of(work), Largest()
    most_rows = 32 if optimizer == "rowwise_adagrad" else None  # whose numbers the reference takes one by one
    for whole in map(Shape._make, place.sizes.shapes):
        shape = whole._replace(rows=min(whole.rows, most_rows or whole.rows))
        kinds = [False] if shape.has_enough else []
        kinds += [True] if shape.rows <= 64 else []
        for repeats in kinds:
            batch = batch_of(shape, repeats=repeats)
            for columns in (False,) if repeats else (False, True):
                found, expected = trainers(place, shape, optimizer, columns)
                where = f"{shape}{', columns' * columns}{', words repeat' * repeats}"
                compare(place, (found, expected), batch, where, largest, in_turn=repeats)
    return Found(f"{optimizer}; {largest}")


def trainers(place: Place, shape: Shape, optimizer: str, columns: bool) -> tuple[InPlaceTrainer, InPlaceTrainer]:
    """Triton's and the reference's, with equal tables and state; every third word is frozen."""
    tables = tables_of(shape)
    center_VD, context_VD = there(tables, place)
    rest = shape.negatives, optimizer, place.device, shape.dim, (lambda shares: None) if columns else None
    found = cuda.CudaTrainer((center_VD, context_VD), *rest)
    expected = InPlaceTrainer(tables, shape.negatives, optimizer, rows_at_once=cuda.ROWS_BETWEEN_MEETINGS)
    expected.rows_at_once = cuda.ROWS_BETWEEN_MEETINGS if columns else 1
    for trainer in (found, expected):
        frozen_V = torch.arange(shape.words) % 3 == 1
        trainer.frozen_V = frozen_V.to(trainer.tables[0].device)
        for sums_V in trainer.state.values():
            sums_V.fill_(0.5)
    return found, expected


def compare(
    place: Place,
    both: tuple[InPlaceTrainer, InPlaceTrainer],
    batch: BatchTensors,
    where: str,
    largest: Largest,
    in_turn: bool,
) -> None:
    """Trains both on the batch, Triton's with a call for each row if ``in_turn``."""
    ours, theirs = both
    on_device = there(batch, place)
    calls = [*zip(*(torch.split(column, 1) for column in on_device), strict=True)] if in_turn else [on_device]
    losses_B = torch.cat([ours.update((center, targets, counts), 0.1) for center, targets, counts in calls])
    largest.add(f"losses, {where}", losses_B, theirs.update(readable(batch), 0.1))
    names = ("centers", "contexts", *theirs.state_names)
    pairs = zip((*ours.tables, *ours.state.values()), (*theirs.tables, *theirs.state.values()), strict=True)
    for name, (found, expected) in zip(names, pairs, strict=True):
        largest.add(f"{name}, {where}", found, expected)


def large_tables(work: Work) -> Found:
    """Tables whose numbers an int32 cannot count. The reference has only the rows that the batch touches."""
    place = place_of(work)
    words, dim = place.sizes.large_words, place.sizes.dims[2]
    if not place.rehearses:
        free = torch.cuda.mem_get_info()[0]
        words = min(words, int(0.9 * free / (4 * dim * 4)))  # both tables, and their gradients
    shape = Shape(place.sizes.graphed[0], 5, 5, dim, words)
    small = shape._replace(words=2 * shape.rows * shape.max_len + 3)
    batch = batch_of(small, repeats=False)
    tables = tables_of(small)
    # A word of the small tables, by its place in the large ones: the last ones, whose numbers are the highest.
    shift = words - small.words
    center, targets, counts = (tensor.clone() for tensor in batch)
    for ids in (center, targets):
        ids[ids != OUTSIDE] += shift
    largest = Largest()
    shifted = center, targets, counts

    def large() -> Iterator[Tensor]:
        for table in tables:
            made = torch.zeros((words, dim), device=place.device)
            made[shift + 1 :] = table[1:].to(place.device)
            yield made

    center_VD, context_VD = (table.requires_grad_() for table in large())
    expected = [table.clone().requires_grad_() for table in tables]
    torch.autograd.backward(reference.row_losses(readable(batch), (expected[0], expected[1]), shape.negatives).sum())
    there_center, there_targets, there_counts = there(shifted, place)
    on_device = there_center, there_targets, there_counts
    torch.autograd.backward(cuda.row_losses(on_device, (center_VD, context_VD), shape.negatives).sum())
    for name, ours, theirs in zip(("centers", "contexts"), (center_VD, context_VD), expected, strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        largest.add(f"gradient by {name}", ours.grad[shift + 1 :], theirs.grad[1:])
        assert not ours.grad[: shift + 1].any(), f"gradient by {name}: found some of words outside the batch"
        ours.grad = None
    for optimizer in IN_PLACE:
        trainer = cuda.CudaTrainer((center_VD, context_VD), shape.negatives, optimizer, place.device)
        for table, start in zip(trainer.tables, tables, strict=True):
            table[shift + 1 :] = start[1:].to(place.device)
        model = InPlaceTrainer((tables[0].clone(), tables[1].clone()), shape.negatives, optimizer)
        trainer.update(on_device, 0.1)
        model.update(readable(batch), 0.1)
        for name, ours, theirs in zip(("centers", "contexts"), trainer.tables, model.tables, strict=True):
            largest.add(f"{name}, {optimizer}", ours[shift + 1 :], theirs[1:])
            assert not ours[: shift + 1].any(), f"{name}, {optimizer}: found moves of words outside the batch"
    gigabytes = words * dim * 4 / 1e9
    numbers = f"{words:,} words x {dim}, {gigabytes:.1f} GB a table, {words * dim / 2**31:.1f} times 2^31 numbers"
    return Found(f"{numbers}; {largest}")
