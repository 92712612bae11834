"""Compares the two readers of shards, one process each: rows/s of batches alone, and tokens/s of training with them.

    .venv-petastorm/bin/python benchmarks/readers.py --data data/ptb      some minutes

Runs in petastorm's environment, so both readers use pyarrow 14 and NumPy 1.26. The readers alternate, so that a change
of the machine's speed affects both.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import get_args

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.provenance import ROOT, provenance, table
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.cli import Parser, command, count, path
from training.reading.petastorm_stream import check_petastorm, petastorm_epochs
from training.reading.plan import plan_epoch
from training.reading.stream import ArrowStream, read_epochs
from training.train_config import Reader

EPOCHS = range(2)


def main() -> None:
    parser = Parser(
        "benchmarks/readers.py",
        "Compares the readers of a dataset's shards.",
        ".venv-petastorm/bin/python benchmarks/readers.py --data data/ptb",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument("--global-batch", type=count, default=512, help="rows of a batch")
    parser.add_argument("--repeats", type=count, default=5, help="runs of each reader")
    arguments = parser.parse_args()
    check_petastorm(str(arguments.data))
    manifest = Manifest.load(arguments.data)

    lines = provenance("pyarrow", "numpy", "petastorm", "torch")
    measured: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for _ in range(arguments.repeats + 1):
        for reader in get_args(Reader):
            speeds = reading(reader, arguments.data, manifest, arguments.global_batch)
            measured[reader].append((*speeds, training(reader, arguments.data, arguments.global_batch)))
    print("\n".join(["# Readers of shards", "", *lines, ""]))
    rows = []
    for reader, runs in measured.items():
        medians = (statistics.median(column) for column in zip(*runs[1:], strict=True))  # the first compiles
        rows.append((reader, *(f"{speed:,.0f}" for speed in medians)))
    print("\n".join(table(("reader", "rows/s, first epoch", "rows/s, second epoch", "tokens/s of training"), rows)))
    print(f"\nMedians of {arguments.repeats} runs, by the wall clock; batches of {arguments.global_batch} rows.")


def reading(reader: str, data: Path, manifest: Manifest, global_batch: int) -> list[float]:
    """Rows/s of each epoch, from the request for the first batch to the end of the last; the rows are not used."""

    def stream(epoch: int) -> ArrowStream:
        shards = manifest.select(epoch % manifest.sampled_epochs)
        plan = plan_epoch(shards, manifest.row_group_rows, 0, epoch, 16, global_batch)
        return ArrowStream(data, manifest, shards, plan)

    if reader == "arrow":
        epochs = read_epochs(stream, EPOCHS, 0, 1)
    else:
        epochs = petastorm_epochs(data, manifest, 0, EPOCHS, global_batch, 0, 1)
    speeds = []
    for batches in epochs:
        started = time.perf_counter()
        num_rows = sum(batch.num_steps * global_batch for batch in batches)
        speeds.append(num_rows / (time.perf_counter() - started))
    return speeds


def training(reader: str, data: Path, global_batch: int) -> float:
    """Tokens/s of two epochs of training, as the trainer reports it."""
    with tempfile.TemporaryDirectory() as folder:
        flags = ["--data", str(data), "--output", folder, "--epochs", str(len(EPOCHS)), "--device", "cpu"]
        command = [sys.executable, str(ROOT / "training" / "train.py"), "--reader", reader, *flags]
        subprocess.run([*command, "--global-batch", str(global_batch)], check=True, capture_output=True)
        summary = json.loads((Path(folder) / "summary.json").read_text())
    return float(summary["tokens_per_s"])


if __name__ == "__main__":
    with command():
        main()
