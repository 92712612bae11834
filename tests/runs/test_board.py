"""Laws of tensorboard/: it has what metrics.jsonl has, once, and nothing of it is there with --no-tensorboard."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, Command
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training import train
from training.runs import recorder
from training.runs import tensorboard as board
from training.runs.checkpoint import newest
from training.runs.metrics import Metrics
from training.runs.run_folder import write_pages
from training.vectors.word_vectors import Vectors

pytestmark = pytest.mark.usefixtures("no_pages")
TRAIN = ("--dim", "4", "--device", "cpu", "--log-every", "1", "--global-batch", "256")


@pytest.fixture
def training(call: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Trains into ``tmp_path``/run."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    return lambda *flags: call(train.main, "--data", pristine, "--output", tmp_path / "run", *TRAIN, *flags)


def assert_board_says_what_metrics_say(run: Path) -> None:
    """Every figure of every line, once, and nothing else."""
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    expected: dict[str, list[tuple[int, np.float32]]] = {}
    for line in lines:
        for name in {"loss", "mean_loss", "lr", "tokens_per_s", "wait_share"} & line.keys():
            expected.setdefault(f"{line['kind']}/{name}", []).append((line["step"], np.float32(line[name])))
    assert set(events.Tags()["scalars"]) == set(expected)
    assert len(expected) == 8
    for tag, points in expected.items():
        assert [(event.step, np.float32(event.value)) for event in events.Scalars(tag)] == points


def test_the_board_has_every_figure_of_every_line(training: Command, tmp_path: Path) -> None:
    ended = training("--epochs", 2)
    assert (ended.code, ended.stderr) == (0, "")
    assert_board_says_what_metrics_say(tmp_path / "run")


def test_a_run_that_goes_on_has_no_point_twice_and_none_is_lost(
    training: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stopped some steps after a checkpoint, whose points are then of steps that come again."""
    step = Metrics.step

    def stopped(self: Metrics, epoch: int, number: int, *others: object) -> None:
        step(self, epoch, number, *others)  # type: ignore[arg-type]
        if number == 17:
            raise RuntimeError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "step", stopped)
        ended = training("--epochs", 2, "--checkpoint-every", 5)
    assert (ended.code, ended.stderr.splitlines()[-1]) == (
        1,
        "error: RuntimeError: stopped; run again with -v for the traceback",
    )
    run = tmp_path / "run"
    assert newest(run) not in (None, 17)
    ended = training("--epochs", 2, "--checkpoint-every", 5, "--resume")
    assert ended.code == 0, ended.stderr
    assert_board_says_what_metrics_say(run)


def test_the_board_is_replaced_with_its_run(training: Command, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert training("--epochs", 2).code == 0
    assert training("--epochs", 1, "--overwrite").code == 0
    assert_board_says_what_metrics_say(run)
    assert training("--epochs", 1, "--overwrite", "--no-tensorboard").code == 0
    assert not (run / "tensorboard").exists()
    assert (run / "summary.json").exists()


def test_the_projector_has_the_words_and_their_vectors(
    training: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "MOST_WORDS", 20)
    monkeypatch.setattr(recorder, "write_pages", write_pages)
    assert training("--epochs", 1).code == 0
    folder = tmp_path / "run" / "tensorboard"
    vectors = Vectors.load(tmp_path / "run")
    counts = pq.read_table(tmp_path / "run" / "vocab.parquet")["count"].to_pylist()
    words = [line.split("\t") for line in (folder / "words.tsv").read_text().splitlines()]
    assert words == [["word", "count"], *([vectors.words[row], str(counts[row])] for row in range(1, 21))]
    center = np.loadtxt(folder / "center.tsv", delimiter="\t", dtype=np.float32)
    assert np.array_equal(center, vectors.center_VD[1:21])
    settings = (folder / "projector_config.pbtxt").read_text()
    for name in ("center.tsv", "words.tsv"):
        assert f'"{name}"' in settings

    from google.protobuf import text_format
    from tensorboard.plugins.projector import ProjectorConfig

    config = text_format.Parse(settings, ProjectorConfig())
    assert [one.metadata_path for one in config.embeddings] == ["words.tsv"]


def test_a_word_with_white_space_is_one_line_of_the_projector(tmp_path: Path) -> None:
    words, counts_V = ["<unk>", "a\tb\nc", "d"], np.array([0, 2, 1])
    board.write_projector(tmp_path, words, counts_V, np.eye(3, dtype=np.float32))
    assert (tmp_path / "tensorboard" / "words.tsv").read_text() == "word\tcount\na_b_c\t2\nd\t1\n"


def test_no_tensorboard_is_needed_where_none_is_wanted(
    training: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "write_pages", write_pages)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    ended = training("--epochs", 1, "--no-tensorboard")
    assert (ended.code, ended.stderr) == (0, "")
    assert not (tmp_path / "run" / "tensorboard").exists()


@pytest.mark.long
def test_tensorboard_is_not_loaded_where_it_is_not_wanted(pristine: Path, tmp_path: Path) -> None:
    flags = ["--data", str(pristine), "--output", str(tmp_path / "run"), *TRAIN, "--epochs", "1", "--no-tensorboard"]
    code = "import sys; sys.modules['tensorboard'] = None; from training import train; train.main()"
    done = subprocess.run([sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_a_missing_tensorboard_is_one_line_before_anything_is_written(
    training: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(board, "find_spec", lambda _: None)
    training().assert_refused("tensorboard", "--no-tensorboard")
    assert not (tmp_path / "run").exists()


def test_a_board_that_cannot_be_written_ends_the_run_in_one_line(
    training: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full from the third point on; what is still buffered must not hide the line when it is closed."""
    real = board.Board.add
    added = 0

    def on_a_full_disk(self: board.Board, line: dict[str, Any]) -> None:
        nonlocal added
        added += 1
        if added == 3:
            os.dup2(os.open("/dev/full", os.O_WRONLY), self._file.fileno())
        real(self, line)

    monkeypatch.setattr(board.Board, "add", on_a_full_disk)
    ended = training("--epochs", 2)
    ended.assert_refused(f"error: {tmp_path}/run/tensorboard/", "cannot be written (No space left on device)")
    assert added == 3
    assert not (tmp_path / "run" / "summary.json").exists()
