"""Laws of what commands print: help that is whole and quick, and an end without a word when nobody reads on."""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, Command, Ended
from tiny import write_run, write_tiny_dataset

from jobs import prepare, prepare_demo, prepare_ptb, retrain
from pipeline import manifest
from pipeline.shared.cli import HELP_COLUMNS, Parser, uri
from pipeline.tables import shop
from training import evaluate, export, neighbors, train
from training.runs import report_page as report

Main = Callable[[], None]

STEPS = ("run", "plan", "prepare", "train", "evaluate", "publish", "rollback", "status")
COMMANDS: dict[str, Main] = {
    "jobs/prepare.py": prepare.main,
    "jobs/prepare_ptb.py": prepare_ptb.main,
    "jobs/prepare_demo.py": prepare_demo.main,
    "jobs/retrain.py": retrain.main,
    **{f"jobs/retrain.py {step}": retrain.main for step in STEPS},
    "training/train.py": train.main,
    "-m training.neighbors": neighbors.main,
    "-m training.evaluate": evaluate.main,
    "-m training.export": export.main,
    "-m training.report": report.main,
    "-m pipeline.manifest": manifest.main,
    "-m pipeline.tables.shop": shop.main,
}
QUICK = [
    name
    for name in COMMANDS
    if name not in ("training/train.py", "-m training.report") and name.count(" ") == name.count("-m")
]
"""Those that need no torch; the steps of retraining are one command."""

SLOW = {"torch", "torch._C", "mlflow", "matplotlib", "pandas", "tensorboard"}
"""What takes a second or so to import."""

NO_DEFAULT = {"--to", "--input", "--column", "--pairs", "--analogies", "--init-from", "--resume", "--shard-cache"} | {
    *("--probe", "--evaluation", "--next-item", "--history", "--table", "--where", "--group-by", "--order-by")
}
"""Flags with a value that may be left out, and then mean that there is no such thing."""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_whole(call: Command, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Every flag says what it is for, and its default where it has one; an example ends it; no line is too wide."""
    monkeypatch.setenv("COLUMNS", "200")
    ended = call(COMMANDS[name], *name.split()[1:] if "retrain" in name else [], "--help")
    assert (ended.code, ended.stderr) == (0, "")
    assert max(map(len, ended.stdout.splitlines())) <= HELP_COLUMNS
    assert re.search(r"\nexamples?:\n  (spark-submit|torchrun|python) \S", ended.stdout)
    usage = ended.stdout.partition("\n\n")[0]
    entries = re.findall(r"^  (-\S.*(?:\n {8,}.*)*)", ended.stdout, re.MULTILINE)
    assert len(entries) > 0
    for entry in entries:
        flags, _, text = re.sub(r"\n\s+", "  ", entry, count=1).partition("  ")
        assert text.strip(), f"{flags} says nothing"
        flag = re.findall(r"--[\w-]+", flags)[0]
        takes_value = f"[{flag} " in usage and not re.search(rf"{flag} \|", usage)
        if takes_value and flag not in NO_DEFAULT:
            assert "(default: " in " ".join(entry.split()), f"{flag} shows no default"
    assert "None" not in ended.stdout


@pytest.mark.parametrize("name", QUICK)
def test_help_loads_nothing_slow_and_starts_no_java(name: str) -> None:
    """Where it needs no torch."""
    ended = start(["-X", "importtime", *name.split(), "--help"], JAVA_HOME="/nowhere", SPARK_HOME="/nowhere")
    imported = [line for line in ended.stderr.splitlines() if line.startswith("import time:")]
    assert (ended.code, ended.stderr.splitlines()) == (0, imported)
    names = {line.rpartition("|")[2].strip() for line in imported}
    assert "argparse" in names
    assert names & SLOW == set()


def start(arguments: list[str], **environment: str) -> Ended:
    """How a command ended, in a process of its own."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment, "PYTHONPATH": str(ROOT)},
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_flag_shows_the_default_it_has_and_what_kind_of_value_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("job.py", "A job.", "python job.py --size 3")
    parser.add_argument("--size", type=int, default=0, help="in bytes")
    parser.add_argument("--rate", type=float, default=0.5, help="of it (default: half)")
    parser.add_argument("--place", type=uri, help="where")
    parser.add_argument("--files", nargs="+", default=[], action="extend", help="which")
    parser.add_argument("--twice", action="store_true", help="again")
    parser.add_argument("--hidden", default=argparse.SUPPRESS, help="left out")
    parser.print_help()
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert {
        "--size N in bytes (default: 0)",
        "--rate X of it (default: half)",
        "--place PATH where",
        "--files FILES [FILES ...] which",
        "--twice again",
        "--hidden HIDDEN left out",
        "python job.py --size 3",
    } <= set(lines)


# A reader that has seen enough


@pytest.fixture(scope="module")
def many_words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose neighbours are more than a pipe holds."""
    folder = tmp_path_factory.mktemp("many") / "run"
    words = ["<unk>", *(f"a-rather-long-word-{number}" for number in range(8_000))]
    center_VD = np.random.default_rng(0).standard_normal((len(words), 4), dtype=np.float32)
    center_VD[0] = 0
    write_run(folder, words, center_VD)
    return folder


def before_a_reader_that_leaves(arguments: list[str]) -> tuple[int, bytes, bytes]:
    """(exit code, first line, stderr) of a command before one that reads its first line and goes."""
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as running:
        assert running.stdout
        assert running.stderr
        line = running.stdout.readline()
        running.stdout.close()
        return running.wait(60), line, running.stderr.read()


def test_a_command_whose_reader_has_seen_enough_ends_without_a_word(many_words: Path) -> None:
    command = ["-m", "training.neighbors", str(many_words), "a-rather-long-word-7", "--topk", "8000"]
    code, line, errors = before_a_reader_that_leaves(command)
    assert (code, errors) == (141, b"")
    assert line.startswith(b"cosine sim=")


@pytest.mark.parametrize(
    "command",
    [
        "-m pipeline.manifest show data",
        "training/train.py --device cpu --data data --output out",
        pytest.param("training/train.py --nproc 2 --device cpu --data data --output out", marks=pytest.mark.long),
    ],
)
def test_a_command_that_nobody_reads_ends_without_a_word(tmp_path: Path, command: str) -> None:
    write_tiny_dataset(tmp_path / "data")
    (tmp_path / "training").symlink_to(ROOT / "training")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, *command.split()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=writing,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_another_broken_pipe_is_no_readers_doing(tmp_path: Path) -> None:
    """A connection that breaks is an error, which must be seen."""
    script = tmp_path / "job.py"
    script.write_text(
        "from pipeline.shared.cli import command\nwith command():\n    raise BrokenPipeError(32, 'a socket')\n"
    )
    ended = start([str(script)])
    assert ended.code == 1
    assert "a socket" in ended.stderr


# The end after an error

FAILS = """
import sys
from pipeline.shared.cli import Parser, command
from pipeline.shared.errors import InputError
with command("stopped"):
    Parser("job.py", "A job.", "python job.py").parse_args()
    {}
"""


def failed(tmp_path: Path, code: str, *flags: str) -> Ended:
    """How a command ended that does what ``code`` says."""
    script = tmp_path / "job.py"
    script.write_text(FAILS.format(code))
    return start([str(script), *flags])


@pytest.mark.parametrize(
    ("code", "exit_code", "line"),
    [
        ("raise InputError('--lr: found 9')", 2, "error: --lr: found 9"),
        (
            "raise ValueError('a bug\\nin two lines')",
            1,
            "error: ValueError: a bug in two lines; run again with -v for the traceback",
        ),
        ("open('/no/such/file')", 1, "error: FileNotFoundError: [Errno 2] No such file or directory: '/no/such/file';"),
        ("raise ValueError('x' * 9999 + ' end')", 1, "error: ValueError: xxx"),
        ("raise KeyboardInterrupt", 130, "stopped"),
        ("try: raise KeyboardInterrupt\n    finally: raise ConnectionError('Java is gone')", 130, "stopped"),
    ],
)
def test_an_error_is_one_line_and_its_exit_code_tells_who_can_fix_it(
    tmp_path: Path, code: str, exit_code: int, line: str
) -> None:
    ended = failed(tmp_path, code)
    assert (ended.code, ended.stdout, len(ended.stderr.splitlines())) == (exit_code, "", 1), ended.stderr
    assert ended.stderr.startswith(line)
    assert len(ended.stderr) < 600


@pytest.mark.parametrize("flag", ["-v", "--verbose"])
def test_verbose_shows_the_traceback_of_an_unexpected_error_only(tmp_path: Path, flag: str) -> None:
    ended = failed(tmp_path, "raise ValueError('a bug')", flag)
    assert (ended.code, ended.stderr.splitlines()[0]) == (1, "Traceback (most recent call last):")
    assert ended.stderr.endswith("ValueError: a bug\n")
    assert failed(tmp_path, "raise InputError('found 9')", flag).stderr == "error: found 9\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_takes_verbose(call: Command, name: str) -> None:
    ended = call(COMMANDS[name], *name.split()[1:] if "retrain" in name else [], "--help")
    assert re.search(r"-v, --verbose ", ended.stdout)


# The end of make run

STUBS = {
    "spark-submit": "exit 0",
    "torchrun": "mkdir -p runs/ptb; cd runs/ptb; touch summary.json loss.png vectors.safetensors",
    "python": "echo cosine sim=1.000: intel",
}


@pytest.mark.parametrize("report", [False, True])
def test_make_run_ends_with_where_to_look(tmp_path: Path, report: bool) -> None:
    """Of files, with those that are there."""
    (tmp_path / "bin").mkdir()
    for name, does in STUBS.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    if report:
        (tmp_path / "runs" / "ptb").mkdir(parents=True)
        (tmp_path / "runs" / "ptb" / "report.html").touch()
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", str(ROOT / "tools" / "run.sh")],
        cwd=tmp_path,
        env={**os.environ, "PATH": path, "INPUT": ""},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    before, _, end = done.stdout.partition("runs/ptb holds the run. Where to look:\n")
    assert "cosine sim=1.000: intel" in before
    assert ("  runs/ptb/report.html  " in end) == report
    assert "  runs/ptb/loss.png  " in end
    assert "metrics.jsonl" not in end
    for word in ("training.neighbors runs/ptb WORD", "training.export runs/ptb", "README.md and docs/"):
        assert word in end
