"""A retraining project whose commands are processes of their own: Spark, torchrun and MLflow as they are."""

import os
import random
import subprocess
import sys
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from conftest import ROOT, Ended
from launch import launched

from jobs.retraining.workspace import Cycle, Workspace

LIMIT_S = 900
"""For a cycle that takes a minute: other tests may have the machine's cores."""

RETRAIN = [sys.executable, str(ROOT / "jobs" / "retrain.py")]


class Real:
    """A folder with a corpus, a config and a workspace; commands run in processes of their own."""

    def __init__(self, folder: Path, **changes: Any):
        self.folder, self.workspace, self.config = folder, folder / "w", folder / "c.yaml"
        self.corpus = folder / "corpus"
        self.corpus.mkdir(parents=True)
        self.configure(**changes)

    def add(self, name: str, lines: Iterable[str]) -> None:
        """A file of the corpus, new or in the place of the one of this name."""
        (self.corpus / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def configure(self, **changes: Any) -> None:
        config = {
            "name": "words",
            "workspace": str(self.workspace),
            "corpus": {"input": str(self.corpus)},
            "prepare": {"min_count": 5, "sample": 1e-3, "holdout": 0.05, "num_shards": 2},
            "train": {"epochs": 3, "threads": 1, "checkpoint_every": 20, "deterministic": True},
            "warm_start": {"epochs": 8},
            "gates": {"frequent_words": 200},
        }
        self.config.write_text(yaml.safe_dump({**config, **changes}))

    def command(self, name: str) -> list[str]:
        return [*RETRAIN, name, "--config", str(self.config)]

    def __call__(self, name: str) -> Ended:
        with launched(self.command(name), self.folder / "logs") as running:
            return running.end(LIMIT_S)

    @property
    def cycle(self) -> Cycle:
        found = Workspace(self.workspace).newest()
        assert found is not None
        return found

    def published(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.workspace / "current").iterdir()}

    def load(self, uri: str, word: str) -> str:
        """What a reader in a process of its own finds nearest to ``word``."""
        environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{self.workspace}/mlflow.db"}
        command = [sys.executable, "-m", "training.neighbors", uri, word]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert ended.returncode == 0, ended
        return ended.stdout


def shuffle(lines: list[str]) -> list[str]:
    """All words over all lines, each as long as it was: the same words as often, and no sense."""
    words = " ".join(lines).split()
    random.Random(0).shuffle(words)
    rest = iter(words)
    return [" ".join(islice(rest, len(line.split()))) for line in lines]
