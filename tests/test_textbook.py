"""The benchmark against the book's loop: both loops do the same sums, and the table says what they gave."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import write_tiny_dataset
from torch import nn

from benchmarks import textbook
from benchmarks.textbook import Result
from pipeline.manifest import Manifest
from training.kernels import reference

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("textbook") / "data"
    write_tiny_dataset(folder, num_sequences=1600)
    return folder


@pytest.fixture(scope="module")
def said(dataset: Path) -> str:
    """What the script prints for two epochs of both loops, run as its user runs it, and writes with --report."""
    report = dataset.parent / "report.md"
    command = [sys.executable, str(ROOT / "benchmarks" / "textbook.py"), f"--data={dataset}", "--epochs=2"]
    done = subprocess.run([*command, "--threads=1", f"--report={report}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert report.read_text() == done.stdout
    return done.stdout


def cells(said: str, loop: str) -> list[str]:
    """The cells behind the loop's name in the printed table."""
    (line,) = (line for line in said.splitlines() if line.startswith(f"| {loop} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


# --- the textbook's loop ---


def test_the_textbooks_loss_of_a_row_is_the_reference_kernels(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    examples = textbook.read_examples(dataset, manifest, epoch=0)
    center_B1, targets_BL, mask_BL, label_BL = examples[:200]
    center, context = (nn.Embedding(manifest.vocab_size, 7) for _ in range(2))
    tables = (center.weight, context.weight)
    ours_B = reference.row_losses(center_B1.squeeze(1), targets_BL, label_BL.sum(1), *tables, manifest.config.negatives)
    books_B = textbook.textbook_losses(center, context, center_B1, targets_BL, mask_BL, label_BL)
    torch.testing.assert_close(books_B, ours_B)


def test_every_example_is_seen_once_per_epoch_in_another_order(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    examples = textbook.read_examples(dataset, manifest, epoch=0)
    stored = torch.cat(examples[:], dim=1)
    batches = textbook.shuffled(examples)
    first, second = (torch.cat([torch.cat(list(batch), dim=1) for batch in batches]) for _ in range(2))
    assert stored.shape == (manifest.counts.examples, 1 + 3 * manifest.max_len)
    for seen in (first, second):
        assert sorted(seen.tolist()) == sorted(stored.tolist())
    assert not torch.equal(first, second)


# --- the script ---


def test_both_loops_start_with_the_same_loss_and_it_falls(said: str) -> None:
    books, ours = ([float(cell) for cell in cells(said, loop)[:3]] for loop in ("textbook", "ours, nproc 1"))
    assert books[0] == pytest.approx(ours[0], abs=0.01)
    for first, second, run in (books, ours):
        assert math.log(2) > first > second
        assert run == pytest.approx((first + second) / 2, abs=1e-4)


def test_the_table_has_the_speed_of_both_loops_and_their_ratio(said: str) -> None:
    (*_, book, none), (*_, ours, ratio) = (cells(said, loop) for loop in ("textbook", "ours, nproc 1"))
    assert none == ""
    book_per_s, ours_per_s = (float(cell.replace(",", "")) for cell in (book, ours))
    assert float(ratio) == pytest.approx(ours_per_s / book_per_s, abs=0.01)


def test_the_figures_come_with_all_that_they_depend_on(said: str) -> None:
    for fact in (
        "Command: `python ",
        "Data: ",
        "Hardware: ",
        "Software: commit ",
        f"torch {torch.__version__}",
        "Date: ",
    ):
        assert fact in said


def test_the_table_shows_medians_over_the_repeats() -> None:
    def runs(*speeds: float) -> list[Result]:
        return [Result([speed / 1000], speed / 1000, speed) for speed in speeds]

    lines = textbook.table({"textbook": runs(100, 900, 200), "ours, nproc 1": runs(400, 300, 500)})
    assert "| textbook | 0.2000 | 0.2000 | 200 |  |" in lines
    assert "| ours, nproc 1 | 0.4000 | 0.4000 | 400 | 2.00 |" in lines
    assert "- textbook: 100; 900; 200" in lines


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--data=nowhere"], "nowhere: no manifest.json"),
        (["--epochs=0"], "--epochs: found 0"),
        (["--repeats=0"], "--repeats: found 0"),
        (["--nproc", "1", "0"], "--nproc: found 0"),
        (["--nproc", "1", "3"], "3 processes do not divide --lanes"),
        (["--report=nowhere/report.md"], "--report: found nowhere/report.md"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    dataset: Path,
    flags: list[str],
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["textbook.py", f"--data={dataset}", *flags])
    with pytest.raises(SystemExit) as ended:
        textbook.main()
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {reason}")
