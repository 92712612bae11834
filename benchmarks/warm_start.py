"""What a warm start gives on a text that has grown by a tenth: epochs until the cold run's loss, and how much stays.

    python benchmarks/warm_start.py --text ptb.train.txt --repeats 3
    python benchmarks/warm_start.py --text wiki.txt --repeats 3 --tokenizer words --epochs 4 --sampled-epochs 4

Vectors trained on the first 10 of 11 parts of the text's lines are the published ones. On the whole text a cold run and
warm ones are trained as users train, with the turn's number as seed. Their losses are those of the whole text's
held-out examples, after each epoch; their neighbours are held against those of the published vectors.
"""

import argparse
import gzip
import subprocess
import sys
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from torch import Tensor

from benchmarks.provenance import ROOT, provenance, table
from pipeline.manifest import Manifest
from training.checkpoint import read, steps
from training.config import TrainConfig
from training.distributed import World
from training.kernels.reference import row_losses
from training.model import SkipGram
from training.steps import make_step
from training.vectors import Tables

PARTS = 11
WORDS, NEIGHBOURS = 1000, 10
ADAM: dict[str, str] = {}
IN_PLACE = {"sync-every": "4"}
MODES = {"adam": (ADAM, (0.002, 0.001, 0.0005)), "in place": (IN_PLACE, (0.025, 0.0125, 0.005))}
"""Flags, and the rates that warm runs are tried with; the first is the usual one."""


@dataclass(frozen=True)
class Found:
    """A challenger's held-out loss after each epoch, and its neighbours' overlap with the published ones, 0 to 1."""

    losses: list[float]
    overlaps: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description="Compares warm starts with cold ones on a text that has grown.")
    parser.add_argument("--text", type=Path, required=True, help="a sequence a line, plain or .gz")
    parser.add_argument("--tokenizer", default="whitespace", help="prepare's (default: %(default)s)")
    parser.add_argument("--min-count", type=int, default=10, help="prepare's (default: %(default)s)")
    parser.add_argument("--epochs", type=int, default=5, help="of each run (default: %(default)s)")
    parser.add_argument("--sampled-epochs", type=int, default=1, help="prepare's --epochs (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="seeds (default: %(default)s)")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="default: all")
    arguments = parser.parse_args()

    lines = provenance("torch", "numpy")
    found: dict[tuple[str, str], list[Found]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        data, grown_data = prepared(arguments, Path(scratch))
        for seed in range(arguments.repeats):
            for mode in arguments.modes:
                for name, challenger in challengers(arguments, mode, seed, data, grown_data, Path(scratch)):
                    found[mode, name].append(challenger)
                    print(mode, name, seed, challenger, file=sys.stderr)
        growth = (Path(scratch) / "growth.txt").read_text()
    print("\n".join(report(lines, growth, arguments, found)))


def prepared(arguments: argparse.Namespace, scratch: Path) -> tuple[Path, Path]:
    """Datasets of the text's beginning, and of all of it."""
    opener = gzip.open if arguments.text.suffix == ".gz" else open
    with opener(arguments.text, "rt", encoding="utf-8") as file:
        text = file.readlines()
    found = []
    for name, some in (("data", text[: len(text) * (PARTS - 1) // PARTS]), ("grown", text)):
        (scratch / f"{name}.txt").write_text("".join(some), encoding="utf-8")
        flags = {"input": scratch / f"{name}.txt", "output": scratch / name, "holdout": 0.01}
        flags |= {"tokenizer": arguments.tokenizer, "min-count": arguments.min_count}
        flags |= {"epochs": arguments.sampled_epochs}
        run("spark-submit", "jobs/prepare.py", flags)
        found.append(scratch / name)
    return found[0], found[1]


def challengers(
    arguments: argparse.Namespace, mode: str, seed: int, data: Path, grown: Path, scratch: Path
) -> "list[tuple[str, Found]]":
    """The cold run and the warm ones of one seed, by name."""
    flags, rates = MODES[mode]
    published = scratch / f"published {mode} {seed}"
    epochs, half = arguments.epochs, arguments.epochs // 2
    run_trainer(data, published, epochs, seed, flags)
    kinds: dict[str, tuple[int, dict[str, str]]] = {"cold": (epochs, {})}
    for rate in rates:
        kinds[f"warm, lr {rate:g}"] = epochs, {"init-from": str(published), "lr": f"{rate:g}"}
        if mode == "in place":  # its rate falls to the run's end: half the epochs are another run
            kinds[f"warm, lr {rate:g}, {half} epochs"] = half, {"init-from": str(published), "lr": f"{rate:g}"}
    usual = {"init-from": str(published)}
    kinds["warm, 1 epoch frozen"] = epochs, {**usual, "freeze-epochs": "1"}
    found = []
    for name, (num_epochs, more) in kinds.items():
        output = scratch / f"{mode} {name} {seed}"
        said = run_trainer(grown, output, num_epochs, seed, {**flags, **more})
        tables, words = tables_after_epochs(output, grown, num_epochs, mode), Tables.load(output).words
        losses = [heldout_loss(grown, *both) for both in tables]
        before = Tables.load(published)
        overlaps = [overlap(words, center_VD.numpy(), before) for center_VD, _ in tables]
        found.append((name, Found(losses, overlaps)))
        lines = [line.partition(": ")[2] for line in said.splitlines() if line.startswith("warm start")]
        if lines:
            (scratch / "growth.txt").write_text(lines[0].partition(";")[0])
    return found


def run_trainer(data: Path, output: Path, epochs: int, seed: int, more: dict[str, str]) -> str:
    flags = {"data": data, "output": output, "epochs": epochs, "seed": seed, "keep": epochs, "device": "cpu", **more}
    return run(sys.executable, "training/train.py", flags)


def run(program: str, script: str, flags: dict[str, object]) -> str:
    options = [f"--{name}={value}" for name, value in flags.items()]
    return subprocess.run([program, script, *options], stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def tables_after_epochs(output: Path, data: Path, epochs: int, mode: str) -> "list[tuple[Tensor, Tensor]]":
    """Center and context (V, D) after each epoch, from the run's checkpoints."""
    manifest = Manifest.load(data)
    sync_every = int(MODES[mode][0].get("sync-every", "1"))
    config = TrainConfig(epochs=epochs, sync_every=sync_every, device="cpu")
    found = []
    for number in steps(output):
        model = SkipGram(manifest.vocab_size, config.dim)
        step = make_step(config, model, manifest.config.negatives, number + 1, World(0, 1, 0, 1))
        step.load(read(output, number).state)
        step.settle()
        found.append((model.center.weight.detach(), model.context.weight.detach()))
    assert len(found) == epochs
    return found


def heldout_loss(data: Path, center_VD: Tensor, context_VD: Tensor) -> float:
    """The mean over the held-out examples of the mean over an example's targets."""
    manifest = Manifest.load(data)
    losses = []
    for shard in manifest.shards:
        if shard.split == "heldout":
            rows = pq.read_table(data / shard.path)
            targets = rows["contexts_negatives"].combine_chunks().flatten().to_numpy()
            targets_BL = torch.from_numpy(targets.reshape(len(rows), manifest.max_len).copy())
            center_B, num_contexts_B = (
                torch.from_numpy(rows[name].to_numpy().copy()) for name in ("center", "num_contexts")
            )
            batch = center_B, targets_BL, num_contexts_B
            losses.append(row_losses(*batch, center_VD, context_VD, manifest.config.negatives))
    return float(torch.cat(losses).double().mean())


def overlap(words: list[str], center_VD: npt.NDArray[np.float32], published: Tables) -> float:
    """The mean share of the nearest words that both have in common, of the most frequent words, among shared words."""
    row_of = {word: row for row, word in enumerate(published.words[1:], 1)}
    shared = [(row, row_of[word]) for row, word in enumerate(words[1:], 1) if word in row_of]
    rows, published_rows = (list(column) for column in zip(*shared, strict=True))
    nearest = [nearest_of(center_VD[rows]), nearest_of(published.center_VD[published_rows])]
    return mean(len(set(ours) & set(theirs)) / NEIGHBOURS for ours, theirs in zip(*nearest, strict=True))


def nearest_of(center_VD: npt.NDArray[np.float32]) -> list[list[int]]:
    """The rows nearest by cosine to each of the first, and so most frequent, words."""
    units_VD = center_VD / np.maximum(np.linalg.norm(center_VD, axis=1, keepdims=True), 1e-9)
    cosine = units_VD[:WORDS] @ units_VD.T
    np.fill_diagonal(cosine, -np.inf)
    nearest: list[list[int]] = np.argsort(-cosine, axis=1)[:, :NEIGHBOURS].tolist()
    return nearest


def report(
    lines: list[str], growth: str, arguments: argparse.Namespace, found: dict[tuple[str, str], list[Found]]
) -> list[str]:
    """Markdown: means over the seeds, and the worst seed where a number has to hold."""
    out = ["# Warm starts on a text that has grown by a tenth", "", *lines, f"- Vocabulary: {growth}"]
    for mode in arguments.modes:
        colds = found[mode, "cold"]
        rows = []
        for (of_mode, name), runs in found.items():
            if of_mode != mode:
                continue
            losses = [mean(column) for column in zip(*(run.losses for run in runs), strict=True)]
            overlaps = [mean(column) for column in zip(*(run.overlaps for run in runs), strict=True)]
            shown = [f"{loss:.4f}, {share:.0%}" for loss, share in zip(losses, overlaps, strict=True)]
            shown += [""] * (arguments.epochs - len(losses))
            reached = [reach(run.losses, cold.losses[-1]) for run, cold in zip(runs, colds, strict=True)]
            told = ", ".join("never" if epoch is None else str(epoch) for epoch in reached)
            gains = [run.overlaps[-1] - cold.overlaps[-1] for run, cold in zip(runs, colds, strict=True)]
            rows.append((name, *shown, told, f"{100 * min(gains):+.1f}"))
        numbers = [f"epoch {epoch}" for epoch in range(1, arguments.epochs + 1)]
        header = (mode, *numbers, "cold's last loss reached in epoch", "points of overlap above cold's last, at least")
        out += ["", *table(header, rows)]
    out += [
        "",
        f"After each epoch: held-out loss, and overlap@{NEIGHBOURS} with the published vectors, means of "
        f"{arguments.repeats} seed(s). overlap@{NEIGHBOURS}: of the words nearest to the {WORDS:,} most frequent ones, "
        "those that are nearest in the published vectors too. The last columns: each seed, and the worst of them.",
    ]
    return out


def reach(losses: list[float], goal: float) -> int | None:
    """The first epoch after which the loss is the goal or lower."""
    return next((epoch for epoch, loss in enumerate(losses, 1) if loss <= goal), None)


if __name__ == "__main__":
    main()
