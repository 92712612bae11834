"""Parquet encodings of the same examples: speed of reading and writing on one core, and size.

    python benchmarks/encodings.py --data data/ptb

Reads the dataset's first sampled epoch, writes it again in memory in each encoding, and reads that: the trainer's
columns, then all. All encodings are tried in turn, so that a change of the machine's speed meets all of them.
"""

import argparse
import io
import statistics
import sys
import time
from collections import defaultdict
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from benchmarks.textbook import commit, cpu_model
from pipeline.manifest import Manifest
from pipeline.shards import ROW_GROUP_ROWS, SCHEMA
from training.stream import COLUMNS

ENCODINGS: dict[str, dict[str, Any]] = {
    "lz4, dictionaries (ours)": {"compression": "lz4"},
    "zstd-1, dictionaries": {"compression": "zstd", "compression_level": 1},
    "lz4, dictionaries for mask and label only": {
        "compression": "lz4",
        "use_dictionary": ["mask.list.element", "label.list.element"],
    },
    "lz4, data pages of version 2": {"compression": "lz4", "data_page_version": "2.0"},
    "no compression, dictionaries": {"compression": "none"},
    "lz4, all ids 0 (what the lists alone cost)": {"compression": "lz4"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares Parquet encodings of a dataset's examples.")
    parser.add_argument("--data", type=Path, default=Path("data/ptb"), help="a dataset (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=7, help="runs of each encoding (default: %(default)s)")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    manifest = Manifest.load(arguments.data)
    examples = pa.concat_tables(pq.read_table(arguments.data / shard.path) for shard in manifest.select(0))
    examples = examples.cast(SCHEMA).combine_chunks()

    speeds: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    sizes = {}
    for _ in range(arguments.repeats):
        for name, options in ENCODINGS.items():
            table = without_ids(examples) if "ids 0" in name else examples
            file, write_s = timed_write(table, options)
            speeds[name].append((timed_read(file, COLUMNS), timed_read(file, None), write_s))
            sizes[name] = len(file)

    print("# Encodings of a shard\n")
    print(f"- Command: `python benchmarks/encodings.py --data {arguments.data} --repeats {arguments.repeats}`")
    print(f"- Hardware: {cpu_model()}, one thread")
    print(f"- Software: commit {commit()}, pyarrow {pa.__version__}")
    print(f"- Date: {datetime.now().astimezone():%Y-%m-%d %H:%M %z}\n")
    print("| encoding | fast columns | all columns | writing | bytes a row |\n|---|---|---|---|---|")
    for name, runs in speeds.items():
        fast, every, write = (examples.num_rows / statistics.median(column) / 1e6 for column in zip(*runs, strict=True))
        size = sizes[name] / examples.num_rows
        print(f"| {name} | {fast:.2f} | {every:.2f} | {write:.2f} | {size:.1f} |")
    print(
        f"\nMillion rows/s on one thread, medians of {arguments.repeats}; {examples.num_rows:,} rows; pages verified."
    )


def without_ids(table: pa.Table) -> pa.Table:
    """The same table with every id 0: its ids cost nothing to decode."""
    column = table["contexts_negatives"].combine_chunks()
    zeros = pa.ListArray.from_arrays(column.offsets, pa.array([0], pa.int32()).take(_zeros(len(column.values))))
    return table.set_column(1, SCHEMA.field(1), zeros.cast(SCHEMA.field(1).type))


def _zeros(length: int) -> pa.Int64Array:
    return pa.nulls(length, pa.int64()).fill_null(0)


def timed_write(table: pa.Table, options: dict[str, Any]) -> tuple[bytes, float]:
    buffer = io.BytesIO()
    started = time.perf_counter()
    with pq.ParquetWriter(buffer, SCHEMA, write_page_checksum=True, **options) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    return buffer.getvalue(), time.perf_counter() - started


def timed_read(file: bytes, columns: list[str] | None) -> float:
    """Seconds to decode all row groups, one after the other, as the trainer does."""
    started = time.perf_counter()
    parquet = pq.ParquetFile(pa.BufferReader(file), page_checksum_verification=True)
    for row_group in range(parquet.num_row_groups):
        parquet.read_row_group(row_group, columns=columns, use_threads=False)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
