"""Compares encodings of the same examples: pyarrow's writer and dataset/encode.py, in read speed, write speed and size.

    python benchmarks/encodings.py --data data/ptb                        a minute

The data are up to --rows rows of the dataset's first sampled epoch, and the same rows with ids of a larger vocabulary.
The script writes them in each encoding, then reads the trainer's columns, then all columns. The encodings alternate, so
that a change of the machine's speed affects all of them. Times are processor time of one thread.
"""

import io
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.provenance import provenance, table
from pipeline.dataset.decode import Layout, RowGroup
from pipeline.dataset.encode import SCHEMA, ExampleWriter
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.cli import Parser, command, count, path
from pipeline.shared.storage import Location
from pipeline.spark.shard_writer import ROW_GROUP_ROWS

COLUMNS = ["center", "contexts_negatives", "num_contexts"]  # the trainer's

Write = Callable[[pa.Table, int], bytes]


def main() -> None:
    parser = Parser(
        "benchmarks/encodings.py",
        "Compares Parquet encodings of a dataset's examples.",
        "python benchmarks/encodings.py --data data/ptb",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument("--rows", type=count, default=200_000, help="maximum number of rows")
    parser.add_argument("--large", type=count, default=1_000_000, help="size of the larger vocabulary")
    parser.add_argument("--repeats", type=count, default=7, help="runs of each encoding")
    arguments = parser.parse_args()
    pa.set_cpu_count(1)
    manifest = Manifest.load(arguments.data)
    examples = first_rows(arguments.data, manifest, arguments.rows)

    print("\n".join(["# Encodings of a shard", "", *provenance("pyarrow", "numpy", hardware="one thread")]))
    measure(examples, manifest, manifest.vocab_size, arguments.repeats)
    measure(with_vocabulary(examples, manifest, arguments.large), manifest, arguments.large, arguments.repeats)
    print(
        f"\nMillion rows/s of processor time, medians of {arguments.repeats}; {examples.num_rows:,} rows, verified."
        "\n*trainer* is dataset/decode.py, which also permutes the rows; pyarrow's columns are in the file's order."
    )


def first_rows(dataset: Path, manifest: Manifest, num_rows: int) -> pa.Table:
    tables, found = [], 0
    for shard in manifest.select(0):
        if found < num_rows:
            tables.append(pq.read_table(dataset / shard.path))
            found += shard.rows
    return pa.concat_tables(tables).slice(0, num_rows).cast(SCHEMA).combine_chunks()


def with_vocabulary(examples: pa.Table, manifest: Manifest, vocab_size: int) -> pa.Table:
    """The same rows with their real ids replaced by random ones: Zipf's law to the power 0.75, like negatives."""
    mask = examples["mask"].combine_chunks().flatten().to_numpy().astype(bool)
    weights = (np.arange(1, vocab_size) + 10.0) ** -0.75
    uniform = np.random.default_rng(0).random(mask.size)
    drawn = 1 + np.searchsorted(np.cumsum(weights / weights.sum())[:-1], uniform)
    ids = np.where(mask, drawn, 0).astype(np.int32)
    offsets = pa.array(np.arange(examples.num_rows + 1, dtype=np.int32) * np.int32(manifest.max_len))
    column = pa.ListArray.from_arrays(offsets, pa.array(ids), type=SCHEMA.field(1).type)
    return examples.set_column(1, SCHEMA.field(1), column)


def by_pyarrow(examples: pa.Table, negatives: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    with pq.ParquetWriter(buffer, SCHEMA, write_page_checksum=True, **options) as writer:
        writer.write_table(examples, row_group_size=ROW_GROUP_ROWS)
    return buffer.getvalue()


def by_us(examples: pa.Table, negatives: int) -> bytes:
    center, ids, num_contexts = (examples[name].combine_chunks() for name in COLUMNS)
    center_N, num_contexts_N = center.to_numpy(), num_contexts.to_numpy()
    ids_NL = ids.flatten().to_numpy().reshape(examples.num_rows, -1)
    buffer = io.BytesIO()
    writer = ExampleWriter(buffer, negatives)
    for start in range(0, examples.num_rows, ROW_GROUP_ROWS):
        rows = slice(start, start + ROW_GROUP_ROWS)
        writer.write_row_group(center_N[rows], ids_NL[rows], num_contexts_N[rows])
    writer.close()
    return buffer.getvalue()


FLAGS = ["mask.list.element", "label.list.element"]
ENCODINGS: dict[str, Write] = {
    "pyarrow: lz4, dictionaries": partial(by_pyarrow, compression="lz4"),
    "pyarrow: zstd-1, dictionaries": partial(by_pyarrow, compression="zstd", compression_level=1),
    "pyarrow: lz4, plain ids": partial(by_pyarrow, compression="lz4", use_dictionary=FLAGS),
    "pyarrow: no compression, plain ids": partial(by_pyarrow, compression="none", use_dictionary=FLAGS),
    "**ours**": by_us,
}


def measure(examples: pa.Table, manifest: Manifest, vocab_size: int, repeats: int) -> None:
    """Prints the table of one vocabulary."""
    speeds: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    sizes = {}
    layout = Layout.of(manifest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shard.parquet"
        for _ in range(repeats):
            for name, write in ENCODINGS.items():
                started = time.process_time()
                file = write(examples, manifest.config.negatives)
                write_s = time.process_time() - started
                path.write_bytes(file)
                trainer_s = timed_trainer(path, layout) if write is by_us else float("inf")
                speeds[name].append((trainer_s, timed_read(path, COLUMNS), timed_read(path, None), write_s))
                sizes[name] = len(file) / examples.num_rows

    print(f"\n## {vocab_size:,} ids\n")
    rows = []
    for name, runs in speeds.items():
        rates = (examples.num_rows / statistics.median(column) / 1e6 for column in zip(*runs, strict=True))
        rows.append((name, *(f"{rate:.2f}" if rate else "" for rate in rates), f"{sizes[name]:.1f}"))
    header = ("encoding", "trainer", "pyarrow, its columns", "pyarrow, all columns", "writing", "bytes a row")
    print("\n".join(table(header, rows)))


def timed_read(path: Path, columns: list[str] | None) -> float:
    """Seconds that pyarrow takes to decode all row groups, one after the other."""
    started = time.process_time()
    with pq.ParquetFile(path, page_checksum_verification=True) as parquet:
        for row_group in range(parquet.num_row_groups):
            parquet.read_row_group(row_group, columns=columns, use_threads=False)
    return time.process_time() - started


def timed_trainer(path: Path, layout: Layout) -> float:
    """Seconds that the trainer takes to decode all row groups and permute their rows."""
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(row_group).num_rows for row_group in range(metadata.num_row_groups)]
    orders = [
        np.random.default_rng(row_group).permutation(size).astype(np.int32) for row_group, size in enumerate(sizes)
    ]
    started = time.process_time()
    read = Location.of(path).reader()
    for row_group, (size, rows) in enumerate(zip(sizes, orders, strict=True)):
        RowGroup.read(read, metadata, row_group, size, layout).rows(rows)
    return time.process_time() - started


if __name__ == "__main__":
    with command():
        main()
