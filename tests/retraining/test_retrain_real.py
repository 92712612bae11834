"""Whole retraining cycles: Spark, the trainer and MLflow as they are, in this process or in ones that are killed.

Kills at more points than here, with stand-ins for the three, are in test_retrain.py.
"""

import shlex
import shutil
import signal
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Ended, Threads, free_port, run_here
from launch import Launched, completed, launched
from pyspark.sql import SparkSession
from retrain_project import Real, shuffle
from retrain_tools import flags

import jobs.retraining.cycle_steps
from jobs import prepare, retrain
from jobs.retraining.workspace import Workspace
from pipeline.text.demo import demo_lines
from training import train
from training.runs.checkpoint import newest
from training.vectors.word_vectors import Vectors

MAINS = {"prepare.py": prepare.main, "train.py": train.main}


def call_here(arguments: list[str], log: Path, lock: int | None) -> None:
    """In this process, what a command would run in one of its own."""
    script = next(place for place, word in enumerate(arguments) if word.endswith(".py"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments[script:])
        MAINS[Path(arguments[script]).name]()
    log.touch()


def test_a_grown_corpus_is_published_on_top_of_the_first_and_shuffled_text_is_refused(
    spark: SparkSession,
    tmp_path: Path,
    threads: Threads,
    no_pages: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(SparkSession, "stop", lambda _: None)  # other tests have the same session
    monkeypatch.setattr(jobs.retraining.cycle_steps, "call", call_here)
    settings = {"epochs": 15, "dim": 32, "threads": 1, "tensorboard": False}
    project = Real(tmp_path / "project", train=settings, warm_start={"epochs": 3, "lr": 0.001})

    def run(lines: list[str] | None = None) -> Ended:
        if lines:
            project.add("corpus.txt", lines)
        return run_here(retrain.main, ("run", "--config", project.config), monkeypatch, capsys)

    lines = list(islice(demo_lines(), 4400))
    first, second = run(lines[:4000]), run(lines[:4200])
    assert (first.code, second.code) == (0, 0), (first, second)
    assert "warm start from" in second.stdout
    assert "nothing is new" in run().stdout
    published = project.published()
    refused = run(shuffle(lines))
    assert refused.code == retrain.REFUSED, refused
    assert "held-out loss, champion's lines" in refused.stdout.splitlines()[-1]
    assert project.published() == published
    assert list(Workspace(project.workspace).publications()) == ["000001", "000002"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project.workspace}/mlflow.db")
    champion, current = (Vectors.load(name) for name in ("models:/words@champion", project.workspace / "current"))
    assert (champion.words, champion.center_VD.tobytes()) == (current.words, current.center_VD.tobytes())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """A project with one published version, and a corpus that has grown by a tenth since."""
    project = Real(tmp_path_factory.mktemp("real") / "project")
    lines = list(islice(demo_lines(), 11_000))
    project.add("before.txt", lines[:10_000])
    ended = project("run")
    assert ended.code == 0, ended
    project.add("since.txt", lines[10_000:])
    return project


@pytest.mark.long
def test_a_cycle_that_is_killed_at_every_step_publishes_the_bytes_of_one_that_is_not(real: Real) -> None:
    """The trainer is asked to stop, too, before it is killed; evaluation meets a disk that is full."""
    before = real.folder / "before"
    shutil.copytree(real.workspace, before, symlinks=True)
    ended = real("run")
    assert ended.code == 0, ended
    assert "warm start from" in ended.stdout
    wanted, decision = real.published(), real.cycle.read("decision")
    assert real.load("models:/words@champion", "violin") == real.load(str(real.workspace / "current"), "violin")

    shutil.rmtree(real.workspace)
    before.rename(real.workspace)
    run = real.command("run")
    with launched(run, real.folder / "logs") as running:
        running.wait_for(lambda: any((real.workspace / "cycles").glob("*/dataset/gen-*/vocab.parquet")))
        end(running, signal.SIGKILL)
    for sent in (signal.SIGTERM, signal.SIGKILL):
        done = saved(real)
        with launched(run, real.folder / "logs") as running:
            running.wait_for(partial(has_saved_more, real, done))
            end(running, sent)
    assert real("train").code == 0
    assert "goes on after step" in (real.cycle.folder / "train.log").read_text()

    limited = f"ulimit -f 500; exec {shlex.join(real.command('evaluate'))}"  # kB, less than the vectors have
    full = completed(["bash", "-c", limited], real.folder / "logs")
    full.assert_refused("cannot be used (File too large)", "make room")
    assert real.published()["summary.json"] != wanted["summary.json"]

    ended = real("run")
    assert ended.code == 0, ended
    assert "train: already done" in ended.stdout
    assert real.published() == wanted
    again = real.cycle.read("decision")
    assert (again and again["gates"]) == (decision and decision["gates"])


def saved(real: Real) -> int:
    """The step of the newest checkpoint, 0 before there is one."""
    return (newest(real.cycle.run) or 0) if real.cycle.run.exists() else 0


def has_saved_more(real: Real, than: int) -> bool:
    return saved(real) > than


def end(running: Launched, sent: signal.Signals) -> None:
    """Sends a signal to the job alone: what it has started ends with it."""
    running.process.send_signal(sent)
    assert running.process.wait(120) == (143 if sent == signal.SIGTERM else -sent)


@pytest.mark.long
def test_the_readmes_example_publishes_and_then_says_that_nothing_is_new(tmp_path: Path) -> None:
    config = yaml.safe_load((ROOT / "examples" / "retrain-demo.yaml").read_text())
    config["workspace"] = str(tmp_path / "w")
    project = Real(tmp_path / "project")
    project.config.write_text(yaml.safe_dump(config))
    first = project("run")
    assert (first.code, first.stderr) == (0, ""), first
    assert flags(first.stdout.split())["--deterministic"]
    second = project("run")
    assert (second.code, second.stdout.count("\n")) == (0, 1), second
    assert "nothing is new" in second.stdout
    found = Vectors.load(tmp_path / "w" / "current").most_similar("violin", 3)
    assert {word for word, _ in found} <= {"cello", "flute", "oboe", "trumpet", "clarinet", "bassoon"}


@pytest.mark.long
def test_a_tracking_server_that_is_down_ends_a_cycle_before_spark_starts(tmp_path: Path) -> None:
    project = Real(tmp_path / "project", registry={"tracking_uri": f"http://127.0.0.1:{free_port()}"})
    project.add("text.txt", islice(demo_lines(), 100))
    ended = project("run")
    assert ended.code == 2
    assert "spark-submit" not in ended.stdout
    assert "publish_locally" in ended.stderr
