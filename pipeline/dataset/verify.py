"""Reads a whole dataset and compares every digest and count with the manifest."""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.encode import SCHEMA
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.shared.errors import one_line
from pipeline.shared.storage import Location


def problems(dataset: str, manifest: Manifest) -> Iterator[str]:
    """One line for each file or count that differs from the manifest. Reads every shard, one at a time, into memory."""
    folder = Location.of(dataset)
    yield from _vocabulary(folder / manifest.vocab_path, manifest)
    rows, pairs = 0, 0
    for shard in manifest.shards:
        path = folder / shard.path
        try:
            content = path.read_bytes()
        except OSError as error:
            yield f"{path}: cannot be read ({one_line(error)})"
            continue
        shard_rows, shard_pairs, faults = _examples(content, manifest)
        for name, found, listed in (
            ("bytes", len(content), shard.bytes),
            ("SHA-256", hashlib.sha256(content).hexdigest(), shard.sha256),
            ("rows", shard_rows, shard.rows),
        ):
            if found != listed:
                yield f"{path}: {name} {found}, the manifest lists {listed}"
        yield from (f"{path}: {fault}" for fault in sorted(faults))
        rows, pairs = rows + shard_rows, pairs + shard_pairs
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


def _examples(content: bytes, manifest: Manifest) -> tuple[int, int, set[str]]:
    """The numbers of rows and pairs of a shard, and what is wrong with its examples."""
    rows = pairs = 0
    faults: set[str] = set()
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(SCHEMA):
                return 0, 0, {"its columns are not a shard's"}
            rows = file.metadata.num_rows
            for batch in file.iter_batches(manifest.row_group_rows):
                pairs += int(np.sum(batch["num_contexts"].to_numpy(), dtype=np.int64))
                faults |= _faults(batch, manifest)
    except (OSError, pa.ArrowException) as error:
        faults.add(f"not readable as Parquet ({one_line(error)})")
    return rows, pairs, faults


def _faults(batch: pa.RecordBatch, manifest: Manifest) -> set[str]:
    """Ids outside the vocabulary, and lists of another length than max_len."""
    faults = set()
    if not bool(pc.all(pc.equal(pc.list_value_length(batch["contexts_negatives"]), manifest.max_len)).as_py()):
        faults.add(f"a row is not max_len = {manifest.max_len} long")
    for ids, lowest in ((batch["center"], 1), (batch["contexts_negatives"].flatten(), 0)):
        extremes = pc.min_max(ids).as_py()
        if extremes["min"] < lowest or extremes["max"] >= manifest.vocab_size:
            faults.add(f"ids {extremes['min']} to {extremes['max']}, expected {lowest} to {manifest.vocab_size - 1}")
    return faults
