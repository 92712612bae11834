"""Lies about retraining's settings and records; its children and its registry are stand-ins."""

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import lies
import retrain_tools
import yaml
from lying import makers
from lying.cases import Case, change, damage_one, honest
from lying.makers import Random

from jobs import retrain, session
from pipeline.shared.errors import InputError
from training.vectors.word_vectors import Tables


class FakeTools(retrain_tools.Tools):
    """Children that refuse what they cannot do in one line."""

    def call(self, arguments: list[str], log: Path, lock: int | None) -> None:
        try:
            super().call(arguments, log, lock)
        except Exception as error:
            raise InputError(f"a child failed: {type(error).__name__}") from None


class FakeRegistry(retrain_tools.FileRegistry):
    """A registry that refuses a version that is not whole."""

    def record(self, run_id: str, cycle: Path, vectors: Path) -> str:
        if not (vectors / "summary.json").is_file():
            raise InputError("the registry found no summary")
        return super().record(run_id, cycle, vectors)


class ConfigLies:
    """Retraining's settings, read by status."""

    YAML = (
        "name: words\nworkspace: w\ncorpus:\n  input: [corpus.txt]\n  changed_by: content\nprepare: &p\n  window: 5\n"
        "  holdout: 0.01\ntrain: {dim: 8, epochs: 3, lr: 0.01}\nwarm_start:\n  epochs: 2\ngates:\n  overlap: 0.5\n"
        "  pairs: [pairs.txt]\nregistry:\n  if_unreachable: fail\nspark_submit: [--master, yarn]\nkeep: 3\n"
    )

    def __init__(self, home: Path):
        pass

    def lie(self, place: Path, rng: Random) -> Case:
        inner = place / "a" / "b" / "c"
        inner.mkdir(parents=True)
        os.chdir(inner)
        file = inner / "c.yaml"
        if rng.random() < 0.5:
            file.write_text(self.YAML)
            about = change(file, rng.choice((makers.damage, makers.lie_in_text, makers.lie_in_text)), rng)
        else:
            document = makers.lie_in(yaml.safe_load(self.YAML), rng)
            about = "a setting"
            file.write_bytes(rng.choice((as_yaml, makers.json_text))(document, rng))
        return Case(about, run_retrain, ["status", "--config", str(file)])


def as_yaml(document: Any, _: Random) -> bytes:
    with suppress(RecursionError):
        return yaml.safe_dump(document).encode(errors="replace")
    return b"[" * 5000


def run_retrain() -> None:
    session.run(retrain.main)


class WorkspaceLies:
    """A workspace with a published version, and a cycle that was judged and not published."""

    def __init__(self, home: Path):
        self.folder, place = home / "workspace", home / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.chdir(place)
        config = {
            **{"name": "words", "workspace": "w", "corpus": {"input": "corpus.txt"}, "prepare": {"holdout": 0}},
            **{"train": {"dim": retrain_tools.DIM, "epochs": 3}},
            "gates": {"heldout_increase": None, "overlap": 0.5, "frequent_words": 20},
        }
        Path("c.yaml").write_text(yaml.safe_dump(config))
        Path("corpus.txt").write_text(("word " * 600)[:600])
        flags = ["--config", "c.yaml"]
        honest(run_retrain, ["run", *flags])
        Path("corpus.txt").write_text(("word " * 640)[:640])
        for step in ("plan", "prepare", "train", "evaluate"):
            honest(run_retrain, [step, *flags])
        shutil.copytree(place, self.folder, symlinks=True)

    def lie(self, place: Path, rng: Random) -> Case:
        shutil.copytree(self.folder, place, symlinks=True, dirs_exist_ok=True)
        workspace = place / "w"
        records = sorted(workspace.glob("cycles/*/*.json"))
        records += [workspace / "cycle.json", *workspace.glob("published/*/summary.json")]
        if rng.random() < 0.3:
            database = (workspace / "mlflow.db").rename(place / "mlflow.db")  # MLflow's own
            about = damage_one(workspace, rng)
            database.rename(workspace / "mlflow.db")
        else:
            path = rng.choice(records)
            about = f"{change(path, rng.choice((makers.damage, makers.lie_in_json, makers.lie_in_json)), rng)}"
        step = rng.choice(("status", "run", "run", "plan", "evaluate", "publish", "rollback"))
        codes = {"status": (0, 2), "run": (0, 2, 4), "plan": (0, 2, 3), "evaluate": (0, 2, 4)}

        def judge(ended: lies.Ended) -> str | None:
            if step in ("run", "publish") and ended.code == 0:
                try:
                    Tables.load(workspace / "current")
                except InputError as error:
                    return f"a version that cannot be read is published: {error}"
            return None

        return Case(f"{about}, {step}", run_retrain, [step, "--config", "c.yaml"], judge, codes=codes.get(step, (0, 2)))
