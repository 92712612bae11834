"""ArrowStream: reads what a plan says, row group by row group, and yields batches.

B rows of a batch, L = max_len targets a row.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from pipeline.manifest import Manifest, ManifestError, ShardInfo
from pipeline.randomness import permutation
from training.plan import EpochPlan, Piece
from training.shard import ShardError, read_rows


@dataclass(frozen=True)
class Batch:
    """A rank's rows of a step: int32 ``center_B`` and ``contexts_negatives_BL``, ``num_contexts_B`` (0: empty)."""

    center_B: Tensor
    contexts_negatives_BL: Tensor
    num_contexts_B: Tensor
    num_steps: int = 1
    """Steps whose rows these are, end to end."""

    @classmethod
    def empty(cls, num_rows: int, max_len: int) -> "Batch":
        """Rows without a context."""
        ids, counts = torch.zeros(num_rows, 1 + max_len, dtype=torch.int32), torch.zeros(num_rows, dtype=torch.int16)
        return cls(ids[:, 0].contiguous(), ids[:, 1:].contiguous(), counts)

    def to(self, device: torch.device) -> "Batch":
        center_B, targets_BL, num_contexts_B = (tensor.to(device, non_blocking=True) for tensor in self.tensors())
        return Batch(center_B, targets_BL, num_contexts_B, self.num_steps)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.center_B, self.contexts_negatives_BL, self.num_contexts_B


class ArrowStream:
    """The batches of one rank through one epoch, in the plan's order; memory is one decoded row group a lane."""

    def __init__(self, dataset: Path, manifest: Manifest, shards: Sequence[ShardInfo], plan: EpochPlan):
        self.dataset, self.shards, self.plan = dataset, shards, plan
        self.max_len = manifest.max_len

    def batches(self, rank: int, world_size: int, at_once: int = 1, done: int = 0) -> Iterator[Batch]:
        """Every step's batch: the rows of this rank's lanes, one after the other, each filled up with empty rows.

        ``at_once`` steps come in one batch, unless the epoch ends before; the first of them may hold fewer, so that
        all end where the steps of the run, ``done`` before this epoch, are a multiple of ``at_once``.

        Raises ManifestError, with the file's name, when a shard is not what the manifest says or fails its checksums.
        """
        lanes = [_Lane(self, pieces) for pieces in self.plan.of_rank(rank, world_size)]
        per_lane = self.plan.rows_per_step
        step = 0
        while step < self.plan.num_steps:
            num_steps = min(at_once - (done + step) % at_once, self.plan.num_steps - step)
            step += num_steps
            center = np.zeros(num_steps * len(lanes) * per_lane, dtype=np.int32)
            targets = np.zeros((center.size, self.max_len), dtype=np.int32)
            num_contexts = np.zeros(center.size, dtype=np.int16)
            for index in range(num_steps * len(lanes)):
                place = slice(index * per_lane, (index + 1) * per_lane)
                lanes[index % len(lanes)].fill(center[place], targets[place], num_contexts[place])
            center_B, targets_BL, num_contexts_B = map(torch.from_numpy, (center, targets, num_contexts))
            yield Batch(center_B, targets_BL, num_contexts_B, num_steps)

    def read(self, piece: Piece) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int16]]:
        """The piece's rows in the plan's order: center (R,), contexts_negatives (R, L), num_contexts (R,)."""
        path = self.dataset / self.shards[piece.shard].path
        rows = permutation(piece.stream, piece.num_rows)[piece.start : piece.stop]
        try:
            return read_rows(path, piece.row_group, piece.num_rows, self.max_len, rows)
        except (OSError, pa.ArrowException, UnicodeDecodeError, ShardError) as error:
            reason = " ".join(str(error).split())
            raise ManifestError(
                f"{path}: damaged or unreadable ({reason}); run prepare again with --overwrite"
            ) from None


class _Lane:
    """Hands out the rows of a lane's pieces in order, holding one piece at a time."""

    def __init__(self, stream: ArrowStream, pieces: Sequence[Piece]):
        self._stream = stream
        self._pieces = iter(pieces)
        self._rows = (np.zeros(0, np.int32), np.zeros((0, stream.max_len), np.int32), np.zeros(0, np.int16))
        self._next = 0

    def fill(
        self, center: npt.NDArray[np.int32], targets: npt.NDArray[np.int32], num_contexts: npt.NDArray[np.int16]
    ) -> None:
        """Writes the next rows into the arrays; leaves them as they are where the lane has run out."""
        filled = 0
        while filled < center.size:
            if self._next == self._rows[0].size:
                piece = next(self._pieces, None)
                if piece is None:
                    return
                self._rows, self._next = self._stream.read(piece), 0
            count = min(center.size - filled, self._rows[0].size - self._next)
            place, rows = slice(filled, filled + count), slice(self._next, self._next + count)
            center[place], targets[place], num_contexts[place] = (column[rows] for column in self._rows)
            filled += count
            self._next += count
