"""Law: a command prints any text to any terminal. What the terminal's encoding lacks becomes an escape."""

import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from tiny import write_run, write_tiny_dataset

from jobs import session
from jobs.session import log
from pipeline import manifest
from training import evaluate, export, neighbors

WORDS = ["<unk>", "Émile", "Zürich", "数据", "ok"]
FOLDER = "Ü 数"

Print = Callable[..., str]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run and a dataset in a folder whose name is not ASCII."""
    folder = tmp_path_factory.mktemp("here") / FOLDER
    write_tiny_dataset(folder / "data")
    write_run(folder / "run", WORDS, np.array([[0, 0], [1, 2], [2, 1], [3, 1], [1, 3]], np.float32))
    (folder / "pairs").write_text("Émile Zürich 1\n数据 ok 2\nÉmile ok 3\n", encoding="utf-8")
    (folder / "questions").write_text(": Städte 市\nÉmile Zürich 数据 ok\n", encoding="utf-8")
    return folder


@pytest.fixture(params=["ascii", "latin-1", "utf-8"])
def printed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Print:
    """``printed(main, *arguments)``: stdout of a command that ends with 0, in an encoding, with escapes undone."""

    def run(main: Callable[[], None], *arguments: object) -> str:
        terminal = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(terminal, encoding=request.param))
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        main()
        sys.stdout.flush()
        text = terminal.getvalue().decode(request.param)
        return text if request.param == "utf-8" else text.encode("latin-1").decode("unicode_escape")

    return run


def test_neighbors_prints_every_word(printed: Print, place: Path) -> None:
    found = printed(neighbors.main, place / "run", "Émile", "数据")
    assert [word for word in WORDS[1:] if word not in found] == []


def test_export_writes_utf8_and_names_its_file(printed: Print, place: Path, tmp_path: Path) -> None:
    output = tmp_path / FOLDER / "é数.vec"
    assert f"4 words, 2 dimensions: {output}" in printed(
        export.main, place / "run", "--format", "word2vec", "--output", output
    )
    assert [line.split()[0] for line in output.read_text("utf-8").splitlines()[1:]] == WORDS[1:]


def test_evaluate_prints_its_numbers(printed: Print, place: Path) -> None:
    found = printed(evaluate.main, place / "run", "--pairs", place / "pairs", "--analogies", place / "questions")
    assert '"pairs": 3' in found


@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_dataset_is_named(printed: Print, place: Path, command: str) -> None:
    assert f"{place / 'data'}: dataset " in printed(manifest.main, command, place / "data")


def test_a_job_prints_and_logs(printed: Print, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        print("Ü 数 prints")
        log.info("%s", "Ü 数 logs")

    assert printed(lambda: session.run(main)) == "Ü 数 prints\nÜ 数 logs\n"
    assert capsys.readouterr().err == ""


def test_a_command_works_in_the_c_locale(place: Path) -> None:
    """Without Python's UTF-8 mode, which it turns on there: names of files are then bytes in surrogates."""
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": ""}
    arguments = [sys.executable, "-m", "pipeline.manifest", "verify", str(place / "data")]
    ended = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, timeout=60, check=False)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert b"every digest and count is right" in ended.stdout
