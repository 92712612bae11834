"""Retraining after a power cut: the next `run` goes on, and `current` is a whole version at every moment.

Prepare and train have stand-ins (retrain_tools.py), which fsync what they write, as the real ones do.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Ended, run_here
from power_cuts import recorded, survived, sync_tree
from retrain_tools import DIM, FileRegistry, Tools, flags, install

from jobs import retrain
from jobs.retraining.workspace import Workspace
from pipeline.shared.files import fsync, write_json
from training.vectors.word_vectors import Vectors

ANY = pytest.mark.parametrize("count", [3, pytest.param(None, marks=pytest.mark.long, id="all")])
"""How many images are tried."""


class DurableTools(Tools):
    def call(self, arguments: list[str], log: Path, lock: int | None) -> None:
        output = Path(flags(arguments)["--output"])
        if not (output / "manifest.json").exists():  # prepare and train begin again, but what is whole stays
            shutil.rmtree(output, ignore_errors=True)
        super().call(arguments, log, lock)
        sync_tree(output)
        fsync(output.parent)


Retrain = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Retrain:
    """Runs a command on the workspace of a folder, which has the corpus of ``num_bytes`` bytes."""
    install(DurableTools(), monkeypatch.setattr)
    monkeypatch.setattr(FileRegistry, "write", lambda self, state: write_json(self._file, state))

    def run(machine: Path, command: str, num_bytes: int) -> Ended:
        corpus = machine.parent / f"{num_bytes}.txt"
        if not corpus.exists():
            corpus.write_text("word " * (num_bytes // 5))
            os.utime(corpus, (0, 0))
        config: dict[str, Any] = {"name": "words", "workspace": str(machine / "w"), "corpus": {"input": str(corpus)}}
        config |= {"prepare": {"holdout": 0}, "train": {"dim": DIM, "epochs": 3}}
        config["gates"] = {"heldout_increase": None, "overlap": 0.5, "frequent_words": 20}
        file = machine.parent / "c.yaml"
        file.write_text(yaml.safe_dump(config))
        return run_here(retrain.main, (command, "--config", file), monkeypatch, capsys)

    return run


def state(machine: Path) -> dict[str, Any]:
    """What readers, and the registry, have in the end: all versions, which is current, and which is champion."""
    workspace = machine / "w"
    registry = FileRegistry(f"sqlite:///{workspace / 'mlflow.db'}", "words")
    versions = {
        version.name: {file.name: file.read_bytes() for file in version.iterdir()}
        for version in (workspace / "published").iterdir()
    }
    newest = Workspace(workspace).newest()
    assert newest is not None
    return {
        "versions": versions,
        "steps": [newest.run_id, *sorted(file.stem for file in newest.folder.glob("*.json"))],
        "current": os.readlink(workspace / "current"),
        "champion": registry.alias("champion"),
        "recorded": sorted(found for found, _ in registry.read()["versions"].values()),
    }


def readable(machine: Path, may_be_missing: bool) -> str | None:
    """What is wrong with the published vectors, for a reader at this moment."""
    current = machine / "w" / "current"
    if not os.path.lexists(current):
        return None if may_be_missing else "there is no current version"
    Vectors.load(current)
    json.loads((current / "summary.json").read_bytes())
    return None


STORIES = {
    "the first cycle": ([], ("run", 600)),
    "the second cycle": ([("run", 600)], ("run", 900)),
    "the third cycle": ([("run", 600), ("run", 900)], ("run", 1200)),
    "a rollback": ([("run", 600), ("run", 900)], ("rollback", 900)),
}
"""What came before, and the command that is interrupted and given again: its name, and the size of the corpus."""


@ANY
@pytest.mark.parametrize("story", STORIES)
def test_the_same_command_goes_on_after_a_power_cut(
    run: Retrain, story: str, count: int | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before, command = STORIES[story]
    machine = tmp_path / "machine"
    machine.mkdir()
    for earlier in before:
        assert run(machine, *earlier).code == 0
    with recorded(machine) as recording:
        ended = run(machine, *command)
    assert ended.code == 0, ended
    expected = state(machine)

    def survives(restored: Path) -> str | None:
        if wrong := readable(restored, may_be_missing=not before):
            return wrong
        ended = run(restored, *command)
        if ended.code:
            return ended.stderr
        found = state(restored)
        return None if found == expected else f"{[name for name in found if found[name] != expected[name]]} differ"

    report = survived(recording, survives, tmp_path, count)
    with capsys.disabled():
        print(f"\nretrain, {story}: {report}")


@pytest.mark.parametrize(
    "lost", [["publish"], ["publish", "decision"], ["publish", "decision", "train", "prepare", "plan"]]
)
def test_the_published_version_outlives_the_records_of_its_cycle(run: Retrain, lost: list[str], tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()
    for num_bytes in (600, 900):
        assert run(machine, "run", num_bytes).code == 0
    expected = state(machine)
    newest = Workspace(machine / "w").newest()
    assert newest is not None
    for name in lost:
        (newest.folder / f"{name}.json").write_bytes(b"")
    ended = run(machine, "run", 900)
    assert ended.code == 0, ended
    assert state(machine) == expected
