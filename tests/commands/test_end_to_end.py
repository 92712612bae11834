"""The commands of the README, as written, from a corpus to neighbours: on the demo corpus, and PTB's figures."""

import json
import os
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command
from ranks import train_here
from tiny import write_dataset

from pipeline.dataset.manifest_file import Manifest
from pipeline.pipeline_config import PipelineConfig
from pipeline.text.demo import GROUPS, demo_lines
from training import neighbors
from training.vectors.word_vectors import Vectors

BIN = Path(sys.executable).parent
BOOK_LOSSES = [0.4804, 0.4261, 0.4030, 0.3795, 0.3592]


def run(folder: Path, *command: str, timeout_s: int = 400) -> str:
    """Runs a command of the environment in ``folder``, where the project's own folders are at hand; its output.

    Nothing is on stderr, no library's warning either: there is nothing that the user could act on.
    """
    for name in ("jobs", "training", "pipeline"):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
    return done.stdout


@dataclass
class Trained:
    folder: Path
    printed: str


@pytest.fixture(scope="module")
def by_commands(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What ``make run`` does on a machine without a network."""
    folder = tmp_path_factory.mktemp("demo")
    printed = run(folder, "spark-submit", "jobs/prepare_demo.py")
    train = ["training/train.py", "--nproc", "4", "--data", "data/demo", "--output", "runs/demo"]
    return Trained(folder, printed + run(folder, "torchrun", *train))


@pytest.fixture(scope="module")
def in_this_process(tmp_path_factory: pytest.TempPathFactory, no_pages: None) -> Trained:
    """The same without Spark and other ranks."""
    folder = tmp_path_factory.mktemp("demo")
    lines = [line.split() for line in demo_lines()]
    lengths = np.array([len(line) for line in lines])
    words = [word for line in lines for word in line]
    write_dataset(folder / "data" / "demo", words, lengths, PipelineConfig(min_count=5, sample=1e-3, num_shards=16))
    ended = train_here("--data", folder / "data" / "demo", "--output", folder / "runs" / "demo", logs=folder)
    assert (ended.code, ended.stderr) == (0, "")
    return Trained(folder, ended.stdout)


@pytest.fixture(scope="module", params=["in_this_process", pytest.param("by_commands", marks=pytest.mark.long)])
def demo(request: pytest.FixtureRequest) -> Trained:
    found: Trained = request.getfixturevalue(request.param)
    return found


def test_planted_groups_come_out_as_each_others_neighbours(demo: Trained) -> None:
    vectors = Vectors.load(demo.folder / "runs" / "demo")
    known = set(vectors.words)
    hits = [
        vectors.most_similar(word, topk=1)[0][0] in group
        for group in GROUPS.values()
        for word in group
        if word in known
    ]
    assert len(hits) > 300
    assert sum(hits) / len(hits) >= 0.9


def test_the_last_line_is_the_books(demo: Trained) -> None:
    assert re.fullmatch(r"loss 0\.\d{3}, \d+\.\d tokens/sec on cpu", demo.printed.splitlines()[-1])


def test_neighbors_prints_as_the_book_does(demo: Trained, call: Command) -> None:
    ended = call(neighbors.main, demo.folder / "runs" / "demo", "violin", "--topk", 3)
    lines = ended.stdout.splitlines()
    assert (len(lines), ended.stderr) == (3, "")
    for line in lines:
        match = re.fullmatch(r"cosine sim=0\.\d{3}: (\w+)", line)
        assert match
        assert match[1] in next(group for group in GROUPS.values() if "violin" in group)


@pytest.mark.long
def test_the_same_command_again_changes_nothing(by_commands: Trained) -> None:
    folder = by_commands.folder
    manifest = folder / "data" / "demo" / "manifest.json"
    before = (manifest.read_bytes(), manifest.stat().st_mtime_ns)
    assert run(folder, "spark-submit", "jobs/prepare_demo.py") == "data/demo: already there, nothing to do\n"
    assert (manifest.read_bytes(), manifest.stat().st_mtime_ns) == before


@pytest.mark.long
def test_neighbors_is_a_command(by_commands: Trained) -> None:
    printed = run(by_commands.folder, "python", "-m", "training.neighbors", "runs/demo", "violin", "--topk", "3")
    assert len(printed.splitlines()) == 3


@pytest.fixture(scope="module")
def ptb(ptb_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with PTB prepared at the default settings, by Spark's own default of all cores."""
    folder = tmp_path_factory.mktemp("ptb")
    run(folder, "spark-submit", "jobs/prepare_ptb.py", "--input", str(ptb_file))
    return folder


@pytest.mark.long
def test_ptb_has_the_books_figures(ptb: Path) -> None:
    manifest = Manifest.load(ptb / "data" / "ptb")
    assert (manifest.counts.lines, manifest.counts.tokens) == (42_068, 887_521)
    assert manifest.vocab_size == 6_719
    assert 340_000 <= manifest.counts.examples <= 347_000
    assert sum(shard.bytes for shard in manifest.shards) / manifest.counts.examples <= 60


@pytest.mark.long
def test_ptb_on_one_core_from_five_shuffled_files_is_the_same_bytes(ptb: Path, ptb_file: Path, tmp_path: Path) -> None:
    lines = ptb_file.read_bytes().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "in").mkdir()
    for number in range(5):
        (tmp_path / "in" / f"part-{number}").write_bytes(b"".join(lines[number::5]))
    run(tmp_path, "spark-submit", "--master", "local[1]", "jobs/prepare_ptb.py", "--input", "in")
    one, other = (Manifest.load(folder / "data" / "ptb") for folder in (ptb, tmp_path))
    assert [shard.sha256 for shard in one.shards] == [shard.sha256 for shard in other.shards]
    assert one.dataset_id == other.dataset_id


def epoch_losses(folder: Path, *arguments: str) -> list[float]:
    run(folder, "torchrun", "training/train.py", "--overwrite", *arguments, timeout_s=900)
    summary = json.loads((folder / "runs" / "ptb" / "summary.json").read_text())
    return [epoch["loss"] for epoch in summary["epochs"]]


@pytest.mark.long
def test_one_epoch_of_ptb_costs_what_the_book_has_on_one_process_and_on_four(ptb: Path) -> None:
    alone = epoch_losses(ptb, "--nproc", "1", "--epochs", "1")
    four = epoch_losses(ptb, "--nproc", "4", "--epochs", "1")
    assert abs(alone[0] - BOOK_LOSSES[0]) < 0.006
    assert abs(alone[0] - four[0]) < 0.0005


@pytest.mark.long
def test_an_epoch_of_ptb_costs_machine_code_what_it_costs_the_reference(ptb: Path) -> None:
    epochs, steps = [], []
    for kernel in ("reference", "cpu"):
        flags = ["--nproc", "1", "--device", "cpu", "--epochs", "1", "--log-every", "1", "--kernel", kernel]
        epochs.append(epoch_losses(ptb, *flags))
        lines = map(json.loads, (ptb / "runs" / "ptb" / "metrics.jsonl").read_text().splitlines())
        steps.append([line["loss"] for line in lines if line["kind"] == "step"][:100])
    assert steps[1] == pytest.approx(steps[0], abs=1e-5)
    assert epochs[1] == pytest.approx(epochs[0], abs=0.0005)


@pytest.mark.long
def test_five_epochs_of_ptb_are_the_books(ptb: Path) -> None:
    alone, four = epoch_losses(ptb, "--nproc", "1"), epoch_losses(ptb, "--nproc", "4")
    assert alone == pytest.approx(BOOK_LOSSES, abs=0.006)
    assert alone == pytest.approx(four, abs=0.0005)
    summary = json.loads((ptb / "runs" / "ptb" / "summary.json").read_text())
    assert 0.405 <= summary["mean_loss"] <= 0.415
    nearest = [word for word, _ in Vectors.load(ptb / "runs" / "ptb").most_similar("chip", topk=10)]
    assert {"intel", "microprocessor"} <= set(nearest)


@pytest.mark.long
def test_five_epochs_of_ptb_through_petastorm_are_the_books(ptb: Path) -> None:
    """In its own environment, on what this one has prepared."""
    python = ROOT / ".venv-petastorm" / "bin" / "python"
    assert python.is_file(), "no environment of petastorm's: run make setup-petastorm, as make test-all does"
    for nproc in ("1", "2"):
        run(ptb, str(python), "training/train.py", "--overwrite", "--reader", "petastorm", "--nproc", nproc)
        summary = json.loads((ptb / "runs" / "ptb" / "summary.json").read_text())
        assert [epoch["loss"] for epoch in summary["epochs"]] == pytest.approx(BOOK_LOSSES, abs=0.003)
        assert 0.408 <= summary["mean_loss"] <= 0.412
        config = json.loads((ptb / "runs" / "ptb" / "config.json").read_text())
        assert config["reader"] == "petastorm"
