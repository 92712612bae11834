"""petastorm's reader: batches of the same examples, through ``make_batch_reader`` and its torch loader.

It is for users whose other code reads through petastorm. It differs from stream.py in the order, which depends on the
number of ranks, and in the cost of a start in mid-epoch, because petastorm cannot seek: docs/data.md compares the two.

petastorm distributes the row groups of its files over readers: number i to reader i modulo their number. Each of PTB's
shards has a long row group and a short one, so one of two readers would get all the long ones. Here a rank has shards
of its own, and shares a shard only if there are fewer shards than ranks.

petastorm 0.13.1 needs pyarrow 14, and so an environment of its own (`make setup-petastorm`). It is imported late, so
that the planning here works in any environment. N rows of a block, B of a batch.
"""

import hashlib
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pipeline.dataset.decode import UNREADABLE
from pipeline.dataset.manifest_file import Manifest, ManifestError, ShardInfo
from pipeline.dataset.verify import checked_batches
from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors
from pipeline.shared.randomness import Purpose, stream
from pipeline.shared.storage import Location, is_uri
from training.model.batch import Batch
from training.reading.permutation import permutation
from training.reading.row_groups import damaged

COLUMNS = ("center", "contexts_negatives", "num_contexts")

BLOCK_ROWS = 1 << 17
"""Rows that are permuted together: a block, 32 MB at 60 targets a row, rounded down to whole batches.

petastorm returns one row group at a time. With permutations only inside row groups, PTB ends with a loss 0.003 above
the book's; with these blocks, as with the plan's lanes, within 0.001.
"""


@dataclass(frozen=True)
class Share:
    """One rank's rows of an epoch: its shards' row groups, end to end, number ``part``, ``part + parts``, ..."""

    shards: tuple[ShardInfo, ...]
    part: int
    parts: int
    row_groups: tuple[int, ...]
    """Rows of every row group of the shards, including those that other ranks read."""

    @property
    def num_rows(self) -> int:
        """Rows that this rank reads."""
        return sum(self.row_groups[self.part :: self.parts])


def shares_of_epoch(
    shards: Sequence[ShardInfo], row_group_rows: int, seed: int, epoch: int, world_size: int
) -> list[Share]:
    """Every rank's share of epoch ``epoch``, which reads ``shards``: a pure function. Shares cover all row groups.

    The shards are permuted and distributed over the ranks; if there are fewer shards than ranks, over groups of ranks.
    Some ranks may get no row group.
    """
    order = permutation(stream(seed, Purpose.SHARD_ORDER, epoch), len(shards)).tolist()
    num_groups = max(1, min(world_size, len(shards)))
    shares = []
    for rank in range(world_size):
        part, group = divmod(rank, num_groups)
        own = tuple(shards[index] for index in order[group::num_groups])
        row_groups = (
            min(row_group_rows, shard.rows - first) for shard in own for first in range(0, shard.rows, row_group_rows)
        )
        shares.append(Share(own, part, len(range(group, world_size, num_groups)), tuple(row_groups)))
    return shares


def num_steps(shares: Sequence[Share], rows_per_step: int) -> int:
    """The number of steps of an epoch, the same on every rank: that of the longest share."""
    return -(-max(share.num_rows for share in shares) // rows_per_step)


def check_petastorm(data: str) -> None:
    """Raises InputError unless petastorm works in this environment and can open the files of ``data``."""
    remedy = "make setup-petastorm, then train with .venv-petastorm/bin/python"
    if not hasattr(pq, "ParquetDatasetPiece"):
        raise InputError(f"--reader petastorm: found pyarrow {pa.__version__}, expected 14; {remedy}")
    try:
        import petastorm.pytorch  # noqa: F401
    except ImportError as error:
        raise InputError(f"--reader petastorm: petastorm cannot be imported ({error}); {remedy}") from None
    if is_uri(data):
        raise InputError(f"--data {data}: found a URI, expected a folder with --reader petastorm; take --reader arrow")
    if urlparse(_url(Path(data))).path != str(Path(data).absolute()):
        raise InputError(f"--data {data}: petastorm cannot open a path with # or ?; rename it, or take --reader arrow")


def petastorm_epochs(
    dataset: Path,
    manifest: Manifest,
    seed: int,
    epochs: Sequence[int],
    global_batch: int,
    rank: int,
    world_size: int,
    first_step: int = 0,
) -> Generator[Iterator[Batch], None, None]:
    """For each epoch, this rank's batches, in the first epoch from step ``first_step`` on.

    A step has ``global_batch / world_size`` rows; empty ones when the rank has no more. The same arguments give the
    same batches: petastorm orders the row groups by a numpy Generator with the seed (seed, epoch, rank), and rows are
    permuted block by block. Global random generators are neither used nor changed. Rows before ``first_step`` are read
    and dropped.

    The memory is a few row groups that petastorm reads ahead, and two or three blocks.
    Raises ManifestError, with the file's name, before the first batch of an epoch if one of the rank's shards differs
    from the manifest. Each shard is hashed once, in full, before the run first reads from it.
    """
    verified: set[ShardInfo] = set()
    for epoch in epochs:
        shards = manifest.select(epoch % manifest.sampled_epochs)
        shares = shares_of_epoch(shards, manifest.row_group_rows, seed, epoch, world_size)
        share, rows_per_step = shares[rank], global_batch // world_size
        for shard in share.shards if share.num_rows else ():
            if shard not in verified:
                _verify(dataset / shard.path, shard, manifest)
                verified.add(shard)
        empty = Batch.empty(rows_per_step, manifest.max_len)
        with closing(_batches(dataset, share, (seed, epoch, rank), empty)) as batches:
            num_empty = num_steps(shares, rows_per_step) - num_steps([share], rows_per_step)
            yield islice(chain(batches, repeat(empty, num_empty)), first_step, None)
        first_step = 0


def _batches(dataset: Path, share: Share, keys: tuple[int, int, int], empty: Batch) -> Generator[Batch, None, None]:
    """The share's batches, each with as many rows as ``empty``, which fills up the last one.

    ``keys`` are seed, epoch and rank.
    """
    if not share.num_rows:
        return
    seed, *parts = keys
    found, rows_per_step = 0, len(empty.center_B)
    block_rows = max(1, BLOCK_ROWS // rows_per_step) * rows_per_step
    with _loader(dataset, share, stream(seed, Purpose.SHARD_ORDER, *parts), block_rows) as loader:
        for number, block in enumerate(loader):
            columns = [block[name] for name in COLUMNS]
            found += len(columns[0])
            if found > share.num_rows:
                break
            order_N = torch.from_numpy(permutation(stream(seed, Purpose.ROW_ORDER, *parts, number), len(columns[0])))
            for first in range(0, len(order_N), rows_per_step):
                order_B = order_N[first : first + rows_per_step]
                rows = [column.index_select(0, order_B) for column in columns]
                if len(order_B) < rows_per_step:
                    rows = [torch.cat([own, fill[len(own) :]]) for own, fill in zip(rows, empty.tensors(), strict=True)]
                center_B, targets_BL, num_contexts_B = rows
                yield Batch(center_B, targets_BL, num_contexts_B)
    if found != share.num_rows:
        files = f"{share.shards[0].path} and {len(share.shards) - 1} more"
        raise ManifestError(
            f"{dataset}: found {found} rows in row groups of {files}, manifest implies {share.num_rows}; "
            f"run prepare again with --overwrite"
        )


def _verify(path: Path, shard: ShardInfo, manifest: Manifest) -> None:
    """Raises ManifestError unless the file is the shard in the manifest, of words that the vocabulary has.

    petastorm checks nothing, and pyarrow 14 does not verify checksums by itself.
    """
    with os_errors(f"{path}: unreadable", "run prepare again with --overwrite", ManifestError), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != shard.sha256:
        raise ManifestError(
            f"{path}: damaged (SHA-256 {digest[:12]}..., manifest lists {shard.sha256[:12]}...); "
            f"run prepare again with --overwrite"
        )
    try:
        with pq.ParquetFile(path) as file:
            for _ in checked_batches(file, manifest, COLUMNS):
                pass
    except UNREADABLE as error:
        raise damaged(Location.of(path), error) from None


def _loader(dataset: Path, share: Share, seed: int, batch_size: int) -> Any:
    """petastorm's loader of the share, with permuted row groups. Its thread ends with the context."""
    # pyarrow 14 warns about functions that even the newest petastorm calls.
    warnings.filterwarnings("ignore", category=FutureWarning, module="petastorm")
    from petastorm import make_batch_reader
    from petastorm.pytorch import BatchedDataLoader

    reader = make_batch_reader(
        [_url(dataset / shard.path) for shard in share.shards],
        schema_fields=[f"^{name}$" for name in COLUMNS],
        # One thread: with more, the order depends on timing. A second one is no faster either.
        reader_pool_type="thread",
        workers_count=1,
        seed=max(1, seed),  # 0 would mean no seed
        shuffle_row_groups=True,
        # petastorm refuses more readers than row groups; ranks without a row group create no reader.
        cur_shard=share.part,
        shard_count=min(share.parts, len(share.row_groups)),
    )
    # The loader does not shuffle, because it would use torch's global generator. Its default transform_fn, as_tensor,
    # would warn that numpy's arrays are read-only.
    return BatchedDataLoader(_WholeReader(reader), batch_size=batch_size, transform_fn=torch.tensor)


class _WholeReader:
    """petastorm's reader, without its race at the end.

    petastorm first checks that no row group is in progress, and then that none is left to begin. It silently drops row
    groups that begin in between, and stops. This class checks in advance that none is left to begin.
    """

    batched_output = True

    def __init__(self, reader: Any):
        self._reader, self.stop, self.join = reader, reader.stop, reader.join

    def __iter__(self) -> Iterator[Any]:
        while True:
            all_begun = self._reader.ventilator.completed()
            try:
                yield next(self._reader)
            except StopIteration:
                if all_begun:
                    return


def _url(path: Path) -> str:
    """A file's URL. Not percent-encoded, because petastorm does not decode it."""
    return f"file://{path.absolute()}"
