"""Measures warm starts on a text that has grown by a tenth: epochs to the cold run's loss, and overlap of neighbours.

    python benchmarks/warm_start.py --text ptb.train.txt --repeats 3                                       minutes
    python benchmarks/warm_start.py --text wiki.txt --tokenizer words --epochs 4 --sampled-epochs 4    much longer

The published vectors are trained on the first 10 of 11 parts of the text's lines. A cold run and several warm runs then
train on the whole text, as users would, with the number of the turn as the seed. After each epoch, the script computes
the loss on the whole text's held-out examples, and compares the neighbours with those of the published vectors.
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
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.provenance import ROOT, provenance, table
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.shared.cli import Parser, command, count, path
from training.distributed import World
from training.judging.heldout import Heldout, losses
from training.model.blocks import initial_tables
from training.model.steps import make_step
from training.runs.checkpoint import read, steps
from training.train_config import TrainConfig
from training.vectors.compare import growth, neighbour_overlap
from training.vectors.word_vectors import Tables

PARTS = 11
WORDS, NEIGHBOURS = 1000, 10
ADAM: dict[str, str] = {}
IN_PLACE = {"sync-every": "4"}
MODES = {"adam": (ADAM, (0.002, 0.001, 0.0005)), "in place": (IN_PLACE, (0.025, 0.0125, 0.005))}
"""Flags, and the learning rates of the warm runs; the first rate is the default."""


@dataclass(frozen=True)
class Found:
    """A challenger's held-out loss after each epoch, and its neighbours' overlap (0 to 1) with the published ones."""

    losses: list[float]
    overlaps: list[float]


def main() -> None:
    parser = Parser(
        "benchmarks/warm_start.py",
        "Compares warm starts with cold ones on a text that has grown.",
        "python benchmarks/warm_start.py --text ptb.train.txt --repeats 3",
    )
    parser.add_argument("--text", type=path, required=True, help="a text with one sequence per line, plain or .gz")
    parser.add_argument("--tokenizer", default="whitespace", help="prepare's --tokenizer")
    parser.add_argument("--min-count", type=count, default=10, help="prepare's --min-count")
    parser.add_argument("--epochs", type=count, default=5, help="epochs of each run")
    parser.add_argument("--sampled-epochs", type=count, default=1, help="prepare's --epochs")
    parser.add_argument("--repeats", type=count, default=1, help="number of turns, each with its own seed")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES), help="training modes (default: all)")
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
        before, after = (Vocab.read(folder / Manifest.load(folder).vocab_path) for folder in (data, grown_data))
    lines.append(f"- Vocabulary: {growth(after.words, after.counts_V, before.words, before.counts_V)}")
    print("\n".join(report(lines, arguments, found)))


def prepared(arguments: argparse.Namespace, scratch: Path) -> tuple[Path, Path]:
    """Prepares datasets of the first part of the text, and of the whole text."""
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
) -> list[tuple[str, Found]]:
    """Trains the cold run and the warm runs of one seed; returns them with their names."""
    flags, rates = MODES[mode]
    published = scratch / f"published {mode} {seed}"
    epochs, half = arguments.epochs, arguments.epochs // 2
    run_trainer(data, published, epochs, seed, flags)
    kinds: dict[str, tuple[int, dict[str, str]]] = {"cold": (epochs, {})}
    for rate in rates:
        kinds[f"warm, lr {rate:g}"] = epochs, {"init-from": str(published), "lr": f"{rate:g}"}
        if mode == "in place":  # the rate falls until the end of the run, so half the epochs need another run
            kinds[f"warm, lr {rate:g}, {half} epochs"] = half, {"init-from": str(published), "lr": f"{rate:g}"}
    kinds["warm, 1 epoch frozen"] = epochs, {"init-from": str(published), "freeze-epochs": "1"}
    heldout, before = Heldout.of_dataset(grown), Tables.load(published)
    found = []
    for name, (num_epochs, more) in kinds.items():
        output = scratch / f"{mode} {name} {seed}"
        run_trainer(grown, output, num_epochs, seed, {**flags, **more})
        tables = tables_after_epochs(output, grown, num_epochs, mode)
        overlaps = [neighbour_overlap(each, before, WORDS, NEIGHBOURS) for each in tables]
        found.append((name, Found([heldout_loss(heldout, each) for each in tables], overlaps)))
    return found


def run_trainer(data: Path, output: Path, epochs: int, seed: int, more: dict[str, str]) -> None:
    flags = {"data": data, "output": output, "epochs": epochs, "seed": seed, "keep": epochs, "device": "cpu", **more}
    run(sys.executable, "training/train.py", flags)


def run(program: str, script: str, flags: dict[str, object]) -> None:
    options = [f"--{name}={value}" for name, value in flags.items()]
    subprocess.run([program, script, *options], stdout=subprocess.DEVNULL, check=True, cwd=ROOT)


def tables_after_epochs(output: Path, data: Path, epochs: int, mode: str) -> list[Tables]:
    """The tables after each epoch, from the checkpoints of the run."""
    manifest, last = Manifest.load(data), Tables.load(output)
    sync_every = int(MODES[mode][0].get("sync-every", "1"))
    config = TrainConfig(epochs=epochs, sync_every=sync_every, device="cpu")
    found = []
    for number in steps(output):
        tables = initial_tables(manifest.vocab_size, config.dim)
        step = make_step(config, tables, manifest.config.negatives, number + 1, World(0, 1, 0, 1))
        step.load_state_dict(read(output, number).state, number)
        center_VD, context_VD = (table.whole().numpy() for table in step.tables())
        found.append(Tables(last.words, last.counts_V, center_VD, context_VD))
    assert len(found) == epochs
    return found


def heldout_loss(heldout: Heldout, tables: Tables) -> float:
    """The mean loss over at most 20,000 held-out examples; an example's loss is the mean over its targets."""
    found = losses(heldout, tables, tables)
    assert found is not None
    return found.first


def report(lines: list[str], arguments: argparse.Namespace, found: dict[tuple[str, str], list[Found]]) -> list[str]:
    """Markdown: means over the seeds, and the worst seed for the gain in overlap."""
    out = ["# Warm starts on a text that has grown by a tenth", "", *lines]
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
            reached_in = ", ".join("never" if epoch is None else str(epoch) for epoch in reached)
            gains = [run.overlaps[-1] - cold.overlaps[-1] for run, cold in zip(runs, colds, strict=True)]
            rows.append((name, *shown, reached_in, f"{100 * min(gains):+.1f}"))
        numbers = [f"epoch {epoch}" for epoch in range(1, arguments.epochs + 1)]
        header = (mode, *numbers, "cold's last loss reached in epoch", "least gain in overlap over cold's last, points")
        out += ["", *table(header, rows)]
    out += [
        "",
        f"After each epoch: held-out loss, and overlap@{NEIGHBOURS} with the published vectors, means of "
        f"{arguments.repeats} seed(s). overlap@{NEIGHBOURS}: the share of the nearest words of the {WORDS:,} most "
        "frequent words that are also nearest in the published vectors. Last columns: each seed, and the worst seed.",
    ]
    return out


def reach(losses: list[float], goal: float) -> int | None:
    """The first epoch after which the loss is at most the goal."""
    return next((epoch for epoch, loss in enumerate(losses, 1) if loss <= goal), None)


if __name__ == "__main__":
    with command():
        main()
