"""jobs/tune.py as a command: Spark, training runs and Optuna as they are."""

import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from conftest import ROOT, Command, Ended, run_here
from launch import launched

from jobs import tune
from jobs.retraining.retrain_config import read_config
from pipeline.tables.shop import shop_events, shop_table

TUNE = [sys.executable, str(ROOT / "jobs" / "tune.py")]
LIMIT_S = 900


class Study:
    """A folder with the events of a small shop, and a study of them."""

    def __init__(self, folder: Path, **changes: Any):
        self.folder, self.output, self.config = folder, folder / "study", folder / "tune.yaml"
        folder.mkdir(exist_ok=True)
        pq.write_table(shop_table(shop_events(200, 6_000)), folder / "shop.parquet", coerce_timestamps="us")
        self.configure(**changes)

    def configure(self, **changes: Any) -> None:
        corpus = {"input": str(self.folder / "shop.parquet"), "format": "parquet", "column": "item", "max_gap": "30m"}
        config = {
            "name": "shop",
            "output": str(self.output),
            "corpus": {**corpus, "group_by": "user_id", "order_by": "ts"},
            "judge": {"share": 0.2},
            "prepare": {"preset": "items", "min_count": 3, "num_shards": 2},
            "train": {"sync_every": 20, "deterministic": True, "threads": 1},
            "search": {
                "prepare": {"window": [1, 3], "window_side": ["both", "right"]},
                "train": {"dim": [16, 32], "lr": {"low": 0.01, "high": 0.3, "log": True}},
            },
            "trials": 5,
        }
        self.config.write_text(yaml.safe_dump({**config, **changes}))

    def command(self, *flags: str) -> list[str]:
        return [*TUNE, "--config", str(self.config), *flags]

    def __call__(self, *flags: str) -> Ended:
        with launched(self.command(*flags), self.folder / "logs") as running:
            return running.end(LIMIT_S)

    def results(self) -> Any:
        return json.loads((self.output / "results.json").read_text())

    def records(self) -> Iterator[dict[str, Any]]:
        for path in sorted(self.output.glob("trials/*/trial.json")):
            record = json.loads(path.read_text())
            del record["seconds"]
            yield record


@pytest.mark.long
def test_a_study_that_is_killed_goes_on_to_the_results_of_one_that_was_not(tmp_path: Path) -> None:
    whole, parts = Study(tmp_path / "whole"), Study(tmp_path / "parts")
    done = whole()
    assert done.code == 0, done.stderr
    assert "tuned         0." in done.stdout
    tuned, words, *_, cooccurrence = whole.results()
    assert tuned["estimate"]["value"] > 1.5 * words["estimate"]["value"]
    assert cooccurrence["name"] == "cooccurrence"
    assert read_config(whole.output / "best.yaml").train["dim"] == tuned["train"]["dim"]
    assert "a study of settings" in (whole.output / "study.html").read_text()
    assert not [*whole.output.glob("trials/*/run")]
    assert len([*whole.output.glob("datasets/*")]) <= 2 + 4  # of the usual settings, and of the search

    for number, kill in enumerate((signal.SIGKILL, signal.SIGTERM)):
        with launched(parts.command(), parts.folder / "logs") as running:
            begun = parts.output / "trials" / f"{2 * number + 1:04}" / "train.log"
            running.wait_for(begun.exists)
            running.process.send_signal(kill)
            assert running.end(LIMIT_S).code == (-9 if kill == signal.SIGKILL else 143)
    done = parts()
    assert done.code == 0, done.stderr
    assert sorted(map(json.dumps, parts.records())) == sorted(map(json.dumps, whole.records()))
    assert parts.results() == whole.results()

    again = parts()
    assert (again.code, parts.results()) == (0, whole.results())
    parts.configure(fraction=0.5)
    parts().assert_refused("holds a study with fraction 1.0, found 0.5; name a new folder")
    parts.configure(trials=6)
    (parts.output / "sample" / "train.parquet").rename(parts.folder / "kept")
    parts().assert_refused("train.parquet: not found, expected the study's sequences; bring it back")
    (parts.output / "study.json").write_text('{"settings": {}}')
    parts().assert_refused("study.json: cannot be read", "begin anew in another folder")


@pytest.mark.long
def test_two_runs_at_once_and_a_budget(tmp_path: Path) -> None:
    study = Study(tmp_path / "a", trials=6)
    done = study("--jobs", "2")
    assert done.code == 0, done.stderr
    assert done.stdout.count("\ntrial ") == 6
    short = Study(tmp_path / "b")
    short("--budget", "1s").assert_refused("search: found no trial with a result, since the budget ended")
    done = short("--budget", "20m")
    assert done.code == 0, done.stderr


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process, with flags."""
    return lambda *flags: run_here(tune.main, flags, monkeypatch, capsys)


def test_mistakes_are_said_in_one_line(tmp_path: Path, job: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    study = Study(tmp_path)
    flags = study.command()[2:]
    job(*flags, "--budget", "1x").assert_refused("--budget: found 1x, expected a time such as 45s, 20m, 8h or 1d")
    job(*flags, "--jobs", "0").assert_refused("--jobs: found 0, expected a whole number from 1")
    job(*flags, "--fraction", "1.5").assert_refused("fraction: found 1.5, expected a number above 0, 1 at most")
    study.configure(judge={"by": "pairs"})
    job(*flags).assert_refused("judge.pairs: found none with by: pairs, expected one file or more")
    study.configure(output=str(tmp_path))
    job(*flags).assert_refused(f"output: {tmp_path}: holds shop.parquet, which is no study's; name a new folder")
    study.configure(corpus={"input": str(tmp_path / "missing.txt")})
    job(*flags).assert_refused("missing.txt")
    assert {path.name for path in study.output.iterdir()} <= {".lock"}
    monkeypatch.setattr(tune, "find_spec", lambda _: None)
    job(*flags).assert_refused("Optuna is not installed; run make setup-retrain")
