"""Runs the processes that benchmarks/train.py measures, one at a time: prepare, the rivals, training/train.py."""

import json
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.measuring.provenance import ROOT
from benchmarks.measuring.train_tables import Run
from pipeline.dataset.manifest_file import Manifest
from training.model.limits import num_cores

IN_PLACE = ("--sync-every=4", "--optimizer=sgd")
OURS: dict[str, tuple[int, tuple[str, ...]]] = {
    "ours-1": (1, ()),
    "ours-4": (4, ()),
    "ours-1-reference": (1, ("--kernel=reference",)),
    "in-place-1": (1, IN_PLACE),
    "in-place-4": (4, IN_PLACE),
}
"""Our loops: the number of processes, and the flags of training/train.py."""


@dataclass(frozen=True)
class Bench:
    """Runs processes, one at a time, on files below ``folder``. Their output except results goes to stderr."""

    folder: Path
    workers: int | None

    def prepare(self, text: Path, seed: int, rule: str, min_count: int, epochs: int) -> tuple[Path, float]:
        """Prepares a dataset; also returns the seconds of the whole process, including Spark's start."""
        dataset = self.new("data")
        flags = {"min-count": min_count, "subsample-rule": rule, "epochs": epochs, "seed": seed}
        flags |= {"input": text, "output": dataset}
        _, wall_s = run(["spark-submit", "jobs/prepare.py", *options(flags)])
        return dataset, wall_s

    def plain(self, dataset: Path, epochs: int, seed: int) -> Run:
        flags = {"epochs": epochs, "seed": seed, "threads": self.workers or num_cores()}
        said, wall_s = run([sys.executable, "benchmarks/rivals/plain_loop.py", str(dataset), *options(flags)])
        found = json.loads(said)
        losses = (*found["losses"], found["mean_loss"])
        return Run(found["examples"], found["tokens_per_s"], wall_s, targets_per_row(dataset), losses)

    def gensim(self, text: Path, dataset: Path, min_count: int, epochs: int, seed: int) -> tuple[Run, Path]:
        """Trains with gensim; returns the run and the vectors' file. ``dataset`` is ours, with the same settings."""
        vectors = self.new("vectors")
        flags = {"min-count": min_count, "epochs": epochs, "seed": seed, "vectors": vectors}
        flags["workers"] = self.workers or num_cores()
        said, wall_s = run([sys.executable, "benchmarks/rivals/gensim_loop.py", str(text), *options(flags)])
        found = json.loads(said)
        speed = found["effective_words"] / found["train_s"]
        parts_s = {name: value for name, value in found.items() if name.endswith("_s")}
        return Run(found["effective_words"], speed, wall_s, targets_per_row(dataset), parts_s=parts_s), vectors

    def ours(self, loop: str, dataset: Path, epochs: int, seed: int, *more: str) -> tuple[Run, Path]:
        """Trains with training/train.py and the flags ``more``; returns the run and its folder."""
        nproc, flags = OURS[loop]
        output = self.new("run")
        settings = {"data": dataset, "output": output, "epochs": epochs, "seed": seed, "nproc": nproc}
        if self.workers:
            settings["threads"] = max(1, self.workers // nproc)
        _, wall_s = run([sys.executable, "training/train.py", *options(settings), *flags, *more])
        summary = json.loads((output / "summary.json").read_text(encoding="utf-8"))
        losses = (*(epoch["loss"] for epoch in summary["epochs"]), summary["mean_loss"])
        targets, wait_share = targets_per_row(dataset), summary["wait_share"]
        return Run(summary["examples"], summary["tokens_per_s"], wall_s, targets, losses, wait_share), output

    def new(self, name: str) -> Path:
        """A new path in a folder of its own, because gensim may write several files."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder)) / name


def options(flags: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in flags.items()]


def run(command: list[str]) -> tuple[str, float]:
    """A process's output and its seconds. If the process fails, it has printed why, so we exit with its exit code."""
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    if done.returncode != 0:
        print(f"failed: {shlex.join(command)}", file=sys.stderr)
        sys.exit(done.returncode)
    return done.stdout, time.perf_counter() - began


def targets_per_row(dataset: Path) -> float:
    manifest = Manifest.load(dataset)
    return manifest.counts.pairs * (1 + manifest.config.negatives) / manifest.counts.examples
