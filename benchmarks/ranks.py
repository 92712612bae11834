"""Measures what more ranks on one machine bring: training in both modes, with whole tables and with shared columns.

python benchmarks/ranks.py --data data/ptb --repeats 5          ten minutes on 2 cores
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.provenance import ROOT, provenance, table
from pipeline.shared.cli import Parser, command, count, path

MODES = {"Adam": [], "in place": ["--sync-every=4"]}


def main() -> None:
    parser = Parser(
        "benchmarks/ranks.py",
        "Times training on one rank and on several, with whole tables and with shared columns.",
        "python benchmarks/ranks.py --data data/ptb --repeats 5",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument("--nproc", type=count, nargs="+", default=[2, 4], help="numbers of ranks (default: 2 4)")
    parser.add_argument("--epochs", type=count, default=5, help="epochs of each run")
    parser.add_argument("--repeats", type=count, default=5, help="turns; a figure is their median")
    arguments = parser.parse_args()

    lines = provenance("torch", "numba", "numpy")
    flags = [f"--data={arguments.data}", f"--epochs={arguments.epochs}", "--device=cpu"]
    ways = [(1, "replicated"), *((n, way) for n in arguments.nproc for way in ("replicated", "columns"))]
    rows = []
    for mode, own in MODES.items():
        speeds: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
        for turn in range(arguments.repeats):
            for nproc, sharding in ways:
                speed, loss = train([*flags, *own, f"--nproc={nproc}", f"--sharding={sharding}", f"--seed={turn}"])
                speeds[nproc, sharding].append(speed)
                print(
                    f"{mode}, {nproc} {sharding}: {speed:,.0f} tokens/s, loss {loss:.4f}", file=sys.stderr, flush=True
                )
        for (nproc, sharding), found in speeds.items():
            ratios = [speed / alone for speed, alone in zip(found, speeds[1, "replicated"], strict=True)]
            spread = f"{min(found):,.0f} to {max(found):,.0f}"
            tables = "" if nproc == 1 else sharding
            figures = f"{statistics.median(found):,.0f}", spread, f"{statistics.median(ratios):.2f}"
            rows.append((f"{mode}, {nproc} rank(s)", tables, *figures))
    print("\n".join(["# Ranks on one machine", "", *lines, ""]))
    print("\n".join(table(("", "tables", "tokens/s", "lowest to highest", "/ one rank"), rows)))
    print(
        f"\nMedians of {arguments.repeats} turns; the number of a turn is its seed. All ranks together have the cores."
    )


def train(flags: list[str]) -> tuple[float, float]:
    """Tokens/s and the last epoch's loss."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, str(ROOT / "training" / "train.py"), *flags, "--output", folder]
        subprocess.run(call, stdout=subprocess.DEVNULL, check=True)
        summary = json.loads((Path(folder) / "summary.json").read_text())
        return summary["tokens_per_s"], summary["loss"]


if __name__ == "__main__":
    with command():
        main()
