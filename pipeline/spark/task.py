"""One task: the sequences of a partition, sampled and written as its shards."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.pipeline_config import MAX_SEQUENCE_TOKENS, PipelineConfig
from pipeline.sampling.sample import Slice, Tables, sample
from pipeline.shared.errors import InputError
from pipeline.shared.randomness import U64, Purpose, fold, stream
from pipeline.shared.storage import Location
from pipeline.spark.generation import writing
from pipeline.spark.shard_writer import ShardFile, versions
from pipeline.spark.shared_arrays import get_arrays
from pipeline.text.tokens import stretches

TABLES = "tables"
SLICE_VALUES = MAX_SEQUENCE_TOKENS * 60
"""The most values of contexts_negatives, 4 bytes each, in memory at once, unless a single sequence needs more."""


def write_shards(generation: Location, config: PipelineConfig, number: int, pieces: Iterator[Slice]) -> dict[str, Any]:
    """Samples all epochs of every slice in one pass, and writes shard ``number`` of each epoch and split.

    Returns plain values for the manifest. Idempotent: every attempt of a task writes the same bytes, so it does not
    matter which attempt finishes last.
    """
    tables = _tables(str(generation))
    subsampled = 0
    with writing(generation), ExitStack() as stack:
        trains = [ShardFile(generation, "train", epoch, number, config) for epoch in range(config.epochs)]
        heldout = ShardFile(generation, "heldout", 0, number, config)
        files = [stack.enter_context(file) for file in (*trains, heldout)]
        for piece in pieces:
            held = is_held_out(piece.keys, config.holdout)
            train_part, heldout_part = piece.where(~held), piece.where(held)
            for file, part in (*((train, train_part) for train in trains), (heldout, heldout_part)):
                examples = sample(part, tables, config, file.epoch)
                subsampled += examples.num_subsampled
                file.append(examples)
        infos = [file.finish() for file in files]
    return {
        "shards": [asdict(info) for info in infos if info is not None],
        "subsampled": subsampled,
        "pairs": sum(file.num_pairs for file in files),
        "versions": versions(),
        "host": socket.gethostname(),
    }


def is_held_out(keys: U64, holdout: float) -> npt.NDArray[np.bool_]:
    """Flags the share ``holdout`` of the sequences. Depends on the keys alone, so not on seed or vocabulary."""
    threshold = round(holdout * 2**32)
    return fold(stream(0, Purpose.HOLDOUT), keys) >> np.uint64(32) < np.uint64(threshold)


@lru_cache(maxsize=1)
def _tables(generation: str) -> Tables:
    """Opened once in each Python worker; the name of a generation is unique."""
    with from_the_driver(Location.of(generation)) as folder:
        return Tables.of_arrays(get_arrays(folder, TABLES, Tables.ARRAYS))


@contextmanager
def from_the_driver(generation: Location) -> Iterator[Location]:
    """Raises InputError if a worker does not find the driver's files: the output is not on shared storage."""
    try:
        yield generation
    except FileNotFoundError:
        output = str(generation).rpartition("/")[0]
        found = f"worker {socket.gethostname()} does not see what the driver wrote there"
        raise InputError.unshared(output, found) from None


def slice_tokens(config: PipelineConfig) -> int:
    """The number of tokens to sample at once, so that their rows have at most SLICE_VALUES values."""
    return min(MAX_SEQUENCE_TOKENS, SLICE_VALUES // config.max_len)


def slices(batches: Iterator[pa.RecordBatch], max_tokens: int) -> Iterator[Slice]:
    """Rows (key, ids), sorted by both, as slices of at most ``max_tokens`` tokens, or of one sequence.

    Equal rows, which are neighbours, are numbered from 0 (``repeats``), also across batches.
    """
    last: tuple[int, bytes] | None = None
    last_repeat = 0
    for batch in batches:
        keys, sequences = batch.column(0).to_numpy(), batch.column(1)
        if keys.size == 0:
            continue
        equal = _equals_the_one_before(keys, sequences, last)
        row = np.arange(keys.size)
        first_of_its_kind = np.maximum.accumulate(np.where(equal, -1 - last_repeat, row))
        repeats = row - first_of_its_kind
        last, last_repeat = (int(keys[-1]), sequences[-1].as_py()), int(repeats[-1])
        yield from _cut(keys.astype(np.uint64), sequences, repeats, max_tokens)


def _equals_the_one_before(
    keys: npt.NDArray[np.int64], sequences: pa.BinaryArray, last: tuple[int, bytes] | None
) -> npt.NDArray[np.bool_]:
    """Compares ids only where keys are equal, which is rare."""
    equal = np.zeros(keys.size, dtype=bool)
    equal[0] = last == (int(keys[0]), sequences[0].as_py())
    for row in np.flatnonzero(keys[1:] == keys[:-1]) + 1:
        equal[row] = sequences[row].equals(sequences[row - 1])
    return equal


def _cut(keys: U64, sequences: pa.BinaryArray, repeats: npt.NDArray[np.int64], max_tokens: int) -> Iterator[Slice]:
    ids, lengths = from_binary(sequences)
    for rows, tokens in stretches(lengths, max_tokens):
        yield Slice(ids[tokens], lengths[rows], keys[rows], repeats[rows])


def to_binary(ids: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> pa.BinaryArray:
    """Sequences of ids, laid end to end, as a little-endian binary value each, for the shuffle."""
    offsets = np.concatenate([[0], np.cumsum(lengths * 4)]).astype(np.int32)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(ids, dtype="<i4"))]
    return pa.Array.from_buffers(pa.binary(), lengths.size, buffers)


def from_binary(sequences: pa.BinaryArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The ids, laid end to end without a copy, and the lengths: the inverse of ``to_binary``."""
    _, offsets_buffer, data = sequences.buffers()
    offsets = np.frombuffer(offsets_buffer, dtype=np.int32)[sequences.offset : sequences.offset + len(sequences) + 1]
    tokens = offsets.astype(np.int64) // 4
    ids = np.frombuffer(data, dtype="<i4")[tokens[0] : tokens[-1]] if data is not None else np.zeros(0, dtype=np.int32)
    return ids, np.diff(tokens)
