"""Reads a whole dataset and compares every digest and count with the manifest."""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.decode import UNREADABLE, Layout, RowGroup, ShardError, check_ids
from pipeline.dataset.encode import SCHEMA
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab, VocabError
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
            with path.open() as file:
                content = file.read_buffer()
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
    except (OSError, VocabError) as error:
        yield f"{path}: cannot be read ({one_line(error)})"
        return
    if len(vocab) != manifest.vocab_size:
        yield f"{path}: {len(vocab):,} words, the manifest lists {manifest.vocab_size:,}"
    if vocab.digest() != manifest.vocab_digest:
        yield f"{path}: its words and counts have digest {vocab.digest()}, the manifest lists {manifest.vocab_digest}"


def _examples(content: pa.Buffer, manifest: Manifest) -> tuple[int, int, set[str]]:
    """The numbers of rows and pairs of a shard, and what is wrong with its examples."""
    rows = pairs = 0
    faults: set[str] = set()
    try:
        with pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True) as file:
            for batch in checked_batches(file, manifest):
                rows += len(batch)
                pairs += int(np.sum(batch["num_contexts"].to_numpy(), dtype=np.int64))
        _read_as_training_does(content, manifest)
    except UNREADABLE as error:
        faults.add(f"not the Parquet of a shard ({one_line(error)})")
    return rows, pairs, faults


def checked_batches(
    file: pq.ParquetFile, manifest: Manifest, columns: Sequence[str] = SCHEMA.names
) -> Iterator[pa.RecordBatch]:
    """Yields these columns of a shard, a row group at a time. pyarrow reads them, and every value is checked.

    Raises UNREADABLE.
    """
    if not file.schema_arrow.equals(SCHEMA):
        raise ShardError("its columns are not a shard's")
    for batch in file.iter_batches(manifest.row_group_rows, columns=list(columns)):
        _check(batch, manifest)
        yield batch


def _check(batch: pa.RecordBatch, manifest: Manifest) -> None:
    """Raises ShardError unless the values are those of examples: ids of words, and what follows from num_contexts."""
    if any(column.null_count for column in batch.columns):
        raise ShardError("found nulls")
    layout = Layout.of(manifest)
    names, length = batch.schema.names, layout.max_len
    num_contexts_N1 = batch["num_contexts"].to_numpy().astype(np.int64)[:, None]
    if not (num_contexts_N1 >= 0).all() or not (num_contexts_N1 * layout.targets_a_context <= length).all():
        raise ShardError(f"found num_contexts that do not fit into {length} targets a row")
    check_ids(batch["center"].to_numpy(), layout)
    lists = {}
    for name in set(names) & {"contexts_negatives", "mask", "label"}:
        if not pc.all(pc.equal(pc.list_value_length(batch[name]), length)).as_py():
            raise ShardError(f"{name}: a row is not max_len = {length} long")
        lists[name] = batch[name].flatten().to_numpy().reshape(len(batch), length)
    is_context_NL = np.arange(length) < num_contexts_N1
    is_real_NL = np.arange(length) < num_contexts_N1 * layout.targets_a_context
    if "contexts_negatives" in lists:
        ids_NL = lists["contexts_negatives"]
        check_ids(ids_NL[is_real_NL], layout)
        if ids_NL[~is_real_NL].any():
            raise ShardError("contexts_negatives: found ids where 0 is expected, as padding")
    for name, expected_NL in (("mask", is_real_NL), ("label", is_context_NL)):
        if name in lists and not np.array_equal(lists[name], expected_NL):
            raise ShardError(f"{name}: found values that num_contexts does not imply")


def _read_as_training_does(content: pa.Buffer, manifest: Manifest) -> None:
    """Raises UNREADABLE if training would refuse a row group."""
    metadata = pq.read_metadata(pa.BufferReader(content))
    num_rows, group_rows = metadata.num_rows, manifest.row_group_rows
    for number, first in enumerate(range(0, num_rows, group_rows)):
        size = min(group_rows, num_rows - first)
        read = RowGroup.read(
            lambda at, count: bytes(content[at : at + count]), metadata, number, size, Layout.of(manifest)
        )
        read.rows(np.arange(size, dtype=np.int32))
