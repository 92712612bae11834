"""Retraining without Spark, the trainer and MLflow: stand-ins that write what these would, in milliseconds, and say so.

Laws of a cycle's order need no real ones; test_retrain_real.py has them. The same arguments give the same bytes.
"""

import json
import os
import signal
import sys
import zlib
from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from ranks import forkserver
from safetensors.numpy import load_file, save_file
from tiny import write_tiny_dataset

import jobs.retraining.cycle_steps
import jobs.retraining.registry
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.errors import InputError

DIM = 8


def flags(arguments: list[str]) -> dict[str, str]:
    """The value behind each flag of a command."""
    return {name: value for name, value in pairwise(arguments) if name.startswith("--")}


def script_of(arguments: list[str]) -> str:
    """The name of the script that a command runs."""
    return next(Path(word).name for word in arguments if word.endswith(".py"))


class Tools:
    """What stands in for prepare.py and train.py; ``calls`` are the argument lists it was given."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def call(self, arguments: list[str], log: Path, lock: int | None) -> None:
        self.calls.append(arguments)
        {"prepare.py": self.prepare, "train.py": self.train}[script_of(arguments)](flags(arguments))
        log.write_text(" ".join(arguments))

    def prepare(self, given: dict[str, str]) -> None:
        """A word for each 10 bytes of the corpus."""
        output = Path(given["--output"])
        if not (output / "manifest.json").exists():
            size = Path(given["--input"]).stat().st_size
            write_tiny_dataset(output, num_words=size // 10)

    def train(self, given: dict[str, str]) -> None:
        """Random tables; a little off those of --init-from, in rows of the same words."""
        data, output = Path(given["--data"]), Path(given["--output"])
        manifest = Manifest.load(data)
        vocab = (data / manifest.vocab_path).read_bytes()
        words = pq.read_table(data / manifest.vocab_path)["word"].to_pylist()
        rng = np.random.default_rng(zlib.crc32(manifest.dataset_id.encode()))
        tables = rng.normal(size=(2, len(words), DIM)).astype(np.float32)
        if "--init-from" in given:
            before = Path(given["--init-from"])
            rows = {word: row for row, word in enumerate(pq.read_table(before / "vocab.parquet")["word"].to_pylist())}
            published = load_file(before / "vectors.safetensors")
            for index, name in enumerate(("center", "context")):
                for row, word in enumerate(words):
                    if word in rows:
                        tables[index, row] = tables[index, row] * 0.01 + published[name][rows[word]]
        tables[:, 0] = 0
        output.mkdir(parents=True, exist_ok=True)
        save_file({"center": tables[0], "context": tables[1]}, output / "vectors.safetensors")
        (output / "vocab.parquet").write_bytes(vocab)
        counts = (
            "examples",
            "steps",
            "loss",
            "mean_loss",
            "seconds",
            "tokens_per_s",
            "wait_share",
            "world_size",
            "threads",
        )
        numbers = dict.fromkeys(counts, 1)
        about: dict[str, Any] = {"kernel": "cpu", "device": "cpu", "versions": {}, "commit": None, "epochs": []}
        summary = {**numbers, **about, "dataset_id": manifest.dataset_id, "vocab_size": len(words)}
        (output / "summary.json").write_text(json.dumps(summary))


class FileRegistry:
    """A registry that is a JSON file; a server whose name is ``down`` does not answer."""

    def __init__(self, uri: str, name: str, artifacts: Path | None = None):
        self._uri, self._file = uri, Path(uri.removeprefix("sqlite:///"))

    def check(self) -> None:
        if "down" in self._uri and not Path("server-is-back").exists():
            raise InputError(f"registry {self._uri}: does not answer")

    def record(self, run_id: str, cycle: Path, vectors: Path) -> str:
        assert (vectors / "summary.json").is_file()
        self.check()
        state = self.read()
        files = {file.name: file.read_bytes().hex() for file in vectors.iterdir()}
        versions = state["versions"]
        number = next((key for key, found in versions.items() if found == [run_id, files]), str(len(versions) + 1))
        self.write({**state, "versions": {**versions, number: [run_id, files]}})
        return number

    def set_alias(self, alias: str, version: str) -> None:
        state = self.read()
        self.write({**state, "aliases": {**state["aliases"], alias: version}})

    def remove_alias(self, alias: str) -> None:
        state = self.read()
        state["aliases"].pop(alias, None)
        self.write(state)

    def alias(self, alias: str) -> str | None:
        state = self.read()
        return state["versions"][state["aliases"][alias]][0] if alias in state["aliases"] else None

    def fetch(self, run_id: str, target: Path) -> None:
        files = next((files for found, files in self.read()["versions"].values() if found == run_id), None)
        if files is None:
            raise InputError(f"registry {self._uri}: found no version of cycle {run_id}")
        target.mkdir(parents=True)
        for name, content in files.items():
            (target / name).write_bytes(bytes.fromhex(content))

    def read(self) -> dict[str, Any]:
        file = Path("registry.json") if self._uri.startswith("http") else self._file
        return json.loads(file.read_text()) if file.exists() else {"versions": {}, "aliases": {}}

    def write(self, state: dict[str, Any]) -> None:
        file = Path("registry.json") if self._uri.startswith("http") else self._file
        file.with_suffix(".new").write_text(json.dumps(state))
        file.with_suffix(".new").replace(file)


def install(tools: Tools, patch: Callable[[object, str, object], None]) -> None:
    patch(jobs.retraining.cycle_steps, "call", tools.call)
    patch(jobs.retraining.registry, "Registry", FileRegistry)


class Project:
    """A folder with a corpus and a config, and jobs/retrain.py in this process."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        self.folder, self._capsys, self._monkeypatch = folder, capsys, monkeypatch
        self.tools = Tools()
        install(self.tools, monkeypatch.setattr)
        monkeypatch.chdir(folder)
        self.workspace = folder / "w"
        self.corpus = folder / "corpus.txt"
        self.grow(600)
        self.configure()

    def grow(self, num_bytes: int) -> None:
        """A corpus of so many bytes."""
        self.corpus.write_text(("word " * num_bytes)[:num_bytes])

    def configure(self, **changes: Any) -> None:
        config: dict[str, Any] = {
            "name": "words",
            "workspace": "w",
            "corpus": {"input": "corpus.txt"},
            "prepare": {"holdout": 0},
            "train": {"dim": DIM, "epochs": 3},
            "gates": {"heldout_increase": None, "overlap": 0.5, "frequent_words": 20},
        }
        Path("c.yaml").write_text(yaml.safe_dump({**config, **changes}))

    @property
    def current(self) -> str:
        return Path(os.readlink(self.workspace / "current")).name

    def bytes_published(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.workspace / "current").iterdir()}


def main(*arguments: str) -> None:
    """jobs/retrain.py as it is run from a command line."""
    from jobs import retrain, session

    sys.argv = ["retrain.py", *arguments, *(["--config", "c.yaml"] if "--config" not in arguments else [])]
    session.run(retrain.main)


Point = tuple[str, str, str]
"""Module or class, name of the function, and ``before`` or ``after``: where a process is killed."""


def killed(folder: Path, command: str, point: Point, timeout_s: float = 120) -> int:
    """Runs ``command`` in a process of its own, which gets SIGKILL at ``point``; its exit code."""
    with mock.patch.dict(os.environ):
        process = forkserver().Process(target=_run_and_die, args=(str(folder), command, point))
        process.start()
    process.join(timeout_s)
    assert process.exitcode is not None, "it hangs"
    return process.exitcode


def _run_and_die(folder: str, command: str, point: Point) -> None:
    os.chdir(folder)
    install(Tools(), setattr)
    place, name, when = point
    module, _, kind = place.partition(":")
    owner: Any = import_module(module)
    owner = getattr(owner, kind) if kind else owner
    real = getattr(owner, name)

    def dying(*arguments: Any, **options: Any) -> Any:
        if when == "after":
            real(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, dying)
    main(command)
