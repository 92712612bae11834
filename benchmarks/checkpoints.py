"""Measures the cost of checkpoints: whole training runs, alternately with and without --checkpoint-every, in wall time.

python benchmarks/checkpoints.py --data data/ptb --repeats 7          ten minutes on 2 cores
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.provenance import ROOT, provenance, table
from pipeline.shared.cli import Parser, command, count, path


def main() -> None:
    parser = Parser(
        "benchmarks/checkpoints.py",
        "Times training with checkpoints and without.",
        "python benchmarks/checkpoints.py --data data/ptb --repeats 7",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument("--every", type=count, default=200, help="steps between checkpoints")
    parser.add_argument("--nproc", type=count, nargs="+", default=[1, 4], help="numbers of ranks (default: 1 4)")
    parser.add_argument("--repeats", type=count, default=7, help="pairs of runs")
    arguments = parser.parse_args()

    lines = provenance("torch", "numpy")
    rows = []
    for nproc in arguments.nproc:
        flags = ["--data", str(arguments.data), "--nproc", str(nproc), "--device", "cpu"]
        run(flags)  # compiles
        pairs = [(run(flags), run([*flags, f"--checkpoint-every={arguments.every}"])) for _ in range(arguments.repeats)]
        for index, what in enumerate(("whole run, s", "training alone, s")):
            without, with_them = ([pair[side][index] for pair in pairs] for side in (0, 1))
            middle = statistics.median(without), statistics.median(with_them)
            ratios = [after / before for before, after in zip(without, with_them, strict=True)]
            cost = f"{middle[1] / middle[0] - 1:+.1%}", f"{statistics.median(ratios) - 1:+.1%}"
            rows.append((f"{nproc} rank(s), {what}", f"{middle[0]:.2f}", f"{middle[1]:.2f}", *cost))
    print("\n".join(["# What checkpoints cost", "", *lines, ""]))
    header = (
        "",
        "without",
        f"every {arguments.every} steps",
        "medians' difference",
        "median of the pairs' differences",
    )
    print("\n".join(table(header, rows)))
    print(f"\nMedians of {arguments.repeats} pairs of runs. Both write a checkpoint at the end of each epoch.")


def run(flags: list[str]) -> tuple[float, float]:
    """Seconds of the whole command, and of the training inside it."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "training" / "train.py"), *flags, "--output", folder]
        started = time.perf_counter()
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
        wall_s = time.perf_counter() - started
        return wall_s, json.loads((Path(folder) / "summary.json").read_text())["seconds"]


if __name__ == "__main__":
    with command():
        main()
