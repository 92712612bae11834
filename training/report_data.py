"""What a dataset can still tell of its making, for report.html: from its manifest, and from some of its rows.

V words.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import InputError
from pipeline.manifest import Manifest
from pipeline.storage import Location

MOST_ROWS = 1 << 20
"""Rows that are read: shards are in the order of a hash, so the first are as good as any."""


@dataclass(frozen=True)
class Rows:
    """What was read of sampled epoch 0."""

    read: int
    of: int
    """Rows that the sampled epoch has."""
    centers_V: npt.NDArray[np.int64]
    """How often each word is the center."""
    num_contexts: list[int]
    """How many rows have 0, 1, 2 ... contexts."""


@dataclass(frozen=True)
class Sampled:
    """A dataset as far as it is there; ``missing`` says in words what is not."""

    manifest: Manifest | None
    rows: Rows | None
    missing: str | None


def read_sampled(data: str, dataset_id: str | None, manifest: Manifest | None = None) -> Sampled:
    """What dataset ``data`` tells, if it still is ``dataset_id``. Rows are read where they lie on this machine only."""
    try:
        if manifest is None:
            manifest = Manifest.load(data)
        if manifest.dataset_id != dataset_id:
            return Sampled(None, None, f"{data} holds dataset {manifest.dataset_id} now, not the one of this run")
        if Location.of(data).local is None:
            return Sampled(manifest, None, f"{data} is not on this machine, so none of its rows were read")
        return Sampled(manifest, read_rows(data, manifest), None)
    except InputError as error:
        return Sampled(None, None, str(error))
    except (OSError, pa.ArrowException) as error:
        return Sampled(manifest, None, f"rows of {data} could not be read ({' '.join(str(error).split())})")


def read_rows(data: str, manifest: Manifest) -> Rows:
    """Looks at the first MOST_ROWS rows of sampled epoch 0, in whole row groups. Raises OSError, pa.ArrowException."""
    centers_V = np.zeros(manifest.vocab_size, np.int64)
    num_contexts = np.zeros(2 * manifest.config.window + 1, np.int64)
    for table in _row_groups(data, manifest):
        centers_V += np.bincount(table["center"].to_numpy(), minlength=centers_V.size)
        num_contexts += np.bincount(table["num_contexts"].to_numpy(), minlength=num_contexts.size)
    rows = sum(shard.rows for shard in manifest.select(0))
    return Rows(int(centers_V.sum()), rows, centers_V, num_contexts.tolist())


def _row_groups(data: str, manifest: Manifest) -> Iterator[pa.Table]:
    left = MOST_ROWS
    for shard in manifest.select(0):
        with (Location.of(data) / shard.path).open() as source, pq.ParquetFile(source) as file:
            for number in range(file.num_row_groups):
                if left <= 0:
                    return
                yield file.read_row_group(number, columns=["center", "num_contexts"])
                left -= manifest.row_group_rows
