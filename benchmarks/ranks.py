"""Measures what more ranks bring: on one machine, with whole tables and with shared columns; and on two machines.

python benchmarks/ranks.py --data data/ptb --repeats 5          ten minutes on 2 cores
sudo python benchmarks/ranks.py --data data/ptb --two-machines  counts the bytes between them, too
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.cable import cable
from benchmarks.measuring.provenance import ROOT, provenance, table
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.cli import Parser, command, count, path
from pipeline.shared.errors import InputError
from training.model.kernels.vector import TOGETHER
from training.reading.epochs import stream_of
from training.train_config import TrainConfig

MODES = {
    "Adam": ["--sync-every=1"],
    "in place": ["--sync-every=4"],
    "in place, 256 rows between meetings": ["--sync-every=4", "--rows-between-meetings=256"],
}

TIMES = {"Adam": 1, "in place": 5}
"""How many times ``--epochs`` a run on one machine takes: in place, few epochs of a small corpus are mostly a start."""


def main() -> None:
    parser = Parser(
        "benchmarks/ranks.py",
        "Times training on one rank and on several, with whole tables and with shared columns, or on two machines.",
        "python benchmarks/ranks.py --data data/ptb --repeats 5",
        "sudo python benchmarks/ranks.py --data data/ptb --nproc 1 --two-machines",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument("--nproc", type=count, nargs="+", default=[2, 4], help="numbers of ranks (default: 2 4)")
    parser.add_argument("--epochs", type=count, default=5, help="epochs of each run; on one machine 5 N in place")
    parser.add_argument("--repeats", type=count, default=5, help="turns; a figure is their median")
    parser.add_argument(
        "--two-machines", action="store_true", help="ranks of two network namespaces (--nproc each) share the columns"
    )
    arguments = parser.parse_args()
    lines = provenance("torch", "numba", "numpy")
    flags = [f"--data={arguments.data}", "--device=cpu", "--no-tensorboard"]
    if arguments.two_machines:
        if os.geteuid():
            raise InputError("--two-machines: found an ordinary user, expected root, who may make network namespaces")
        report = on_two_machines(flags, arguments.nproc, arguments.repeats, arguments.data, arguments.epochs)
    else:
        report = on_one_machine(flags, arguments.nproc, arguments.repeats, arguments.epochs)
    title, *rest = report
    print("\n".join([title, "", *lines, "", *rest]))


def on_one_machine(flags: list[str], numbers: list[int], repeats: int, epochs: int) -> list[str]:
    ways = [(1, "replicated"), *((n, way) for n in numbers for way in ("replicated", "columns"))]
    rows = []
    for mode, times in TIMES.items():
        own = [*MODES[mode], f"--epochs={times * epochs}"]
        speeds: dict[tuple[int, str], list[float]] = {way: [] for way in ways}
        for turn in range(repeats):
            for nproc, sharding in ways:
                speed, loss = train([*flags, *own, f"--nproc={nproc}", f"--sharding={sharding}", f"--seed={turn}"])
                speeds[nproc, sharding].append(speed)
                tell(f"{mode}, {nproc} {sharding}: {speed:,.0f} tokens/s, loss {loss:.4f}")
        for (nproc, sharding), found in speeds.items():
            ratios = [speed / alone for speed, alone in zip(found, speeds[1, "replicated"], strict=True)]
            spread = f"{min(found):,.0f} to {max(found):,.0f}"
            tables = "" if nproc == 1 else sharding
            figures = f"{statistics.median(found):,.0f}", spread, f"{statistics.median(ratios):.2f}"
            rows.append((f"{mode}, {nproc} rank(s)", tables, *figures))
    return [
        "# Ranks on one machine",
        *table(("", "tables", "tokens/s", "lowest to highest", "/ one rank"), rows),
        "",
        f"Medians of {repeats} turns; the number of a turn is its seed. All ranks together have the cores.",
    ]


def on_two_machines(flags: list[str], numbers: list[int], repeats: int, data: Path, epochs: int) -> list[str]:
    num_rows, num_scores, table_bytes = scores_of(data, epochs)
    rows = []
    for nproc in numbers:
        for mode, own in MODES.items():
            found = []
            for turn in range(repeats):
                given = [*flags, *own, f"--epochs={epochs}", f"--seed={turn}"]
                alone, _ = train([*given, f"--nproc={2 * nproc}", "--sharding=columns"])
                speed, sent = train_on_two(given, nproc)
                found.append((speed, speed / alone, *sent))
                tell(f"{mode}, {nproc}: {speed:,.0f} tokens/s, on one machine {alone:,.0f}, sent {sent}")
            speed, ratio, *sent = map(statistics.median, zip(*found, strict=True))
            # Of two machines, each sends each number once. Half of the columns go to the first machine for each epoch's
            # checkpoint (in place two tables, for Adam eight) and for the vectors.
            saved = table_bytes // 2 * ((8 if "Adam" in mode else 2) * epochs + 2)
            models = 4 * num_scores, 4 * num_scores + saved
            ratios = (f"{found / model:.2f}" for found, model in zip(sent, models, strict=True))
            a_row = f"{sent[0] / num_rows:,.1f}", f"{models[0] / num_rows:,.1f}", *ratios
            rows.append((f"{mode}, 2 x {nproc} rank(s)", *a_row, f"{speed:,.0f}", f"{ratio:.2f}"))
    return [
        "# Two machines that share the tables by columns",
        *table(("", "bytes a row", "model", "first / model", "second / model", "tokens/s", "/ one machine"), rows),
        "",
        f"Medians of {repeats} turns, beside as many ranks in all on one machine. Bytes are what each machine sends in "
        f"the whole run, counted by the kernel with all headers; per row, those of the first one. A row has "
        f"{num_scores / num_rows:.1f} scores of 4 bytes, with the padding to groups of {TOGETHER}. The second machine "
        f"also sends its columns to the first for each checkpoint.",
    ]


def scores_of(data: Path, epochs: int) -> tuple[int, int, int]:
    """The rows of a run, their scores with padding, and the bytes of a table."""
    manifest, config = Manifest.load(str(data)), TrainConfig(data=str(data), epochs=epochs)
    num_rows = num_scores = 0
    for epoch in range(epochs):
        stream = stream_of(config, manifest, epoch)
        for piece in (piece for lane in stream.plan.lanes for piece in lane):
            num_targets = stream.read(piece).num_contexts_N.astype(int) * (1 + manifest.config.negatives)
            num_rows += len(num_targets)
            num_scores += int((-(-num_targets // TOGETHER) * TOGETHER).sum())
    return num_rows, num_scores, manifest.vocab_size * config.dim * 4


def train(flags: list[str]) -> tuple[float, float]:
    """Tokens/s and the last epoch's loss."""
    with tempfile.TemporaryDirectory() as folder:
        call = [sys.executable, str(ROOT / "training" / "train.py"), *flags, "--output", folder]
        subprocess.run(call, stdout=subprocess.DEVNULL, check=True)
        return results_in(folder)


def train_on_two(flags: list[str], nproc: int) -> tuple[float, list[int]]:
    """Tokens/s, and how many bytes each machine has sent."""
    with cable() as both, tempfile.TemporaryDirectory() as folder:
        machines = []
        for number, machine in enumerate(both.machines):
            place = {"MASTER_ADDR": both.addresses[0], "MASTER_PORT": "29500"}
            environment = {**os.environ, **place, "WORLD_SIZE": "2", "RANK": str(number)}
            call = [sys.executable, str(ROOT / "training" / "train.py"), *flags, f"--output={folder}/{number}"]
            call = ["ip", "netns", "exec", machine, *call, f"--nproc={nproc}", f"--group-size={2 * nproc}"]
            machines.append(subprocess.Popen(call, env=environment, stdout=subprocess.DEVNULL))
        if codes := [code for machine in machines if (code := machine.wait())]:
            raise InputError(f"training on two machines: found exit codes {codes}, expected 0")
        return results_in(f"{folder}/0")[0], both.sent()


def results_in(run: str) -> tuple[float, float]:
    summary = json.loads(Path(run, "summary.json").read_text())
    return summary["tokens_per_s"], summary["loss"]


def tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    with command():
        main()
