"""What is wrong with a dataset: reads all of it, and compares every digest and count with the manifest."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.encode import SCHEMA
from pipeline.dataset.manifest_file import Manifest, ShardInfo
from pipeline.dataset.vocab import Vocab
from pipeline.shared.errors import one_line
from pipeline.shared.storage import Location


def problems(dataset: str, manifest: Manifest) -> Iterator[str]:
    """One line for each file or count that is not what the manifest says; none when all is well.

    Costs one read of every shard, which is held in memory one at a time.
    """
    folder = Location.of(dataset)
    yield from _vocabulary(folder / manifest.vocab_path, manifest)
    rows, pairs = 0, 0
    for shard in manifest.shards:
        path = folder / shard.path
        try:
            found = _Shard.read(path, manifest)
        except (OSError, pa.ArrowException) as error:
            yield f"{path}: cannot be read ({one_line(error)})"
            continue
        yield from (f"{path}: {problem}" for problem in found.differences(shard))
        rows, pairs = rows + found.rows, pairs + found.pairs
    for name, total in (("examples", rows), ("pairs", pairs)):
        expected = getattr(manifest.counts, name)
        if total != expected:
            yield f"{dataset}: the shards hold {total:,} {name}, the manifest lists {expected:,}"


def _vocabulary(path: Location, manifest: Manifest) -> Iterator[str]:
    try:
        vocab = Vocab.read(path)
    except (OSError, pa.ArrowException, KeyError) as error:
        yield f"{path}: cannot be read ({one_line(error)})"
        return
    if len(vocab) != manifest.vocab_size:
        yield f"{path}: {len(vocab):,} words, the manifest lists {manifest.vocab_size:,}"
    if vocab.digest() != manifest.vocab_digest:
        yield f"{path}: its words and counts have digest {vocab.digest()}, the manifest lists {manifest.vocab_digest}"


class _Shard:
    """What a shard's file says of itself."""

    def __init__(self, size: int, sha256: str, rows: int, pairs: int, faults: list[str]):
        self.size, self.sha256, self.rows, self.pairs, self.faults = size, sha256, rows, pairs, faults

    @classmethod
    def read(cls, path: Location, manifest: Manifest) -> "_Shard":
        content = path.read_bytes()
        faults: list[str] = []
        rows = pairs = 0
        try:
            with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
                if not file.schema_arrow.equals(SCHEMA):
                    faults.append("its columns are not a shard's")
                else:
                    rows = file.metadata.num_rows
                    for batch in file.iter_batches(manifest.row_group_rows):
                        pairs += int(np.sum(batch["num_contexts"].to_numpy(), dtype=np.int64))
                        faults += _faults(batch, manifest)
        except (OSError, pa.ArrowException) as error:
            faults.append(f"not readable as Parquet ({one_line(error)})")
        return cls(len(content), hashlib.sha256(content).hexdigest(), rows, pairs, faults)

    def differences(self, listed: ShardInfo) -> Iterator[str]:
        for name, found, expected in (
            ("bytes", self.size, listed.bytes),
            ("SHA-256", self.sha256, listed.sha256),
            ("rows", self.rows, listed.rows),
        ):
            if found != expected:
                yield f"{name} {found}, the manifest lists {expected}"
        yield from sorted(set(self.faults))


def _faults(batch: pa.RecordBatch, manifest: Manifest) -> list[str]:
    """Ids that the vocabulary does not have, and lists of another length than max_len."""
    faults = []
    if not bool(pc.all(pc.equal(pc.list_value_length(batch["contexts_negatives"]), manifest.max_len)).as_py()):
        faults.append(f"a row is not max_len = {manifest.max_len} long")
    for ids, lowest in ((batch["center"], 1), (batch["contexts_negatives"].flatten(), 0)):
        extremes = pc.min_max(ids).as_py()
        if extremes["min"] < lowest or extremes["max"] >= manifest.vocab_size:
            faults.append(f"ids {extremes['min']} to {extremes['max']}, expected {lowest} to {manifest.vocab_size - 1}")
    return faults
