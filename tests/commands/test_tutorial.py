"""docs/tutorial.md and docs/items.md do what they say: their commands and Python, in order, in a folder of their own.

In its outputs ``...`` stands for anything, as in doctest.
"""

import doctest
import importlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command
from tiny import write_run

from pipeline.text.demo import GROUPS

PAGE, ITEMS = ROOT / "docs" / "tutorial.md", ROOT / "docs" / "items.md"
BIN = Path(sys.executable).parent
OPTIONS = doctest.ELLIPSIS


@dataclass(frozen=True)
class Block:
    """A block of the page between ``` marks: ``console``, ``pycon``, or others, which are not run."""

    language: str
    text: str
    line: int
    """Where it begins in the page."""


def blocks(file: Path) -> list[Block]:
    page = file.read_text(encoding="utf-8")
    return [
        Block(found[1], found[2], page.count("\n", 0, found.start(2)))
        for found in re.finditer(r"^```(\w*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    ]


def commands(block: Block) -> list[tuple[str, str]]:
    """Each command of a console block, ``$ `` before it, and what it prints."""
    parts = re.split(r"^\$ (.*)\n", block.text, flags=re.MULTILINE)
    assert parts[0] == "", f"line {block.line}: output before a command"
    return list(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the project's root is to the page; nothing of it is written to."""
    for name in ("jobs", "training", "pipeline", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(command: str, printed: str, folder: Path) -> None:
    """Runs a command as a shell would, and compares what it prints."""
    environment = {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        command, shell=True, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, f"$ {command}\n{done.stdout}{done.stderr}"
    same = doctest.OutputChecker().check_output(printed, done.stdout, OPTIONS)
    assert same, f"$ {command}\nfound\n{done.stdout}\nthe page has\n{printed}"


class Python:
    """The session that the pycon blocks of a page are: each goes on where the one before ended."""

    def __init__(self, page: Path) -> None:
        self.page = page
        self.names: dict[str, object] = {}

    def run(self, block: Block, compared: bool = True) -> None:
        test = doctest.DocTestParser().get_doctest(block.text, self.names, "page", str(self.page), block.line)
        assert test.examples
        if not compared:
            for example in test.examples:
                example.want = "..." if example.want else ""
        report: list[str] = []
        failed, _ = doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append, clear_globs=False)
        self.names = test.globs
        assert not failed, "".join(report)


@pytest.mark.long
@pytest.mark.parametrize("page", [PAGE, ITEMS], ids=lambda page: page.stem)
def test_the_page_does_what_it_says(folder: Path, page: Path) -> None:
    python = Python(page)
    for block in blocks(page):
        if block.language == "console":
            for command, printed in commands(block):
                run(command, printed, folder)
        elif block.language == "pycon":
            python.run(block)


def write_stand_in(run: Path) -> None:
    """A run of the demo corpus' groups: words of one are close to each other, as training makes them."""
    rng = np.random.default_rng(0)
    words = ["<unk>", *dict.fromkeys(word for group in GROUPS.values() for word in group)]
    centers = {word: rng.standard_normal(100) for group in GROUPS.values() for word in [group[0]]}
    center_of = {word: centers[group[0]] for group in GROUPS.values() for word in group}
    center_VD = np.array([np.zeros(100), *(center_of[word] + rng.standard_normal(100) / 4 for word in words[1:])])
    write_run(run, words, center_VD.astype(np.float32))


def test_the_pages_python_runs_and_its_small_commands(folder: Path, call: Command) -> None:
    """Without Spark and training: on vectors that stand in for what these would make, so their numbers are others."""
    for name in ("runs/demo", "runs/mine", "data/retrain-demo/current"):
        write_stand_in(folder / name)
    (folder / "data" / "cache").mkdir()
    (folder / "data" / "cache" / "demo.txt").write_text("a text\n" * 20_000)
    python, count = Python(PAGE), 0
    for block in blocks(PAGE):
        if block.language == "pycon":
            python.run(block, compared=False)
            count += 1
        elif block.language == "console":
            for command, printed in commands(block):
                if command.startswith("python -m training."):  # in this process: each would import for a second
                    _, _, module, *arguments = shlex.split(command)
                    ended = call(importlib.import_module(module).main, *arguments)
                    assert (ended.code, bool(ended.stdout)) == (0, bool(printed)), ended.stderr
                    count += 1
                elif not command.startswith(("spark-submit", "torchrun", "python jobs/")):
                    run(command, "..." if printed else "", folder)
                    count += 1
    assert count > 7
