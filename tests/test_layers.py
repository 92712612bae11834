"""The arrows between the parts: what imports what, and what each runs without."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

OF_PIPELINE = ("compiled", "errors", "lock", "manifest", "randomness", "storage")
ALLOWED_OF_PIPELINE = {f"pipeline.{name}" for name in OF_PIPELINE}


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def files_of(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("path", files_of("training"), ids=lambda path: path.stem)
def test_training_takes_little_from_the_pipeline(path: Path) -> None:
    found = imports(path)
    assert {name for name in found if name.split(".")[0] == "pipeline"} <= ALLOWED_OF_PIPELINE
    assert not {name for name in found if name.split(".")[0] in ("pyspark", "jobs", "session", "benchmarks")}


@pytest.mark.parametrize("path", files_of("pipeline"), ids=lambda path: path.stem)
def test_the_pipeline_knows_neither_torch_nor_training(path: Path) -> None:
    assert not {name.split(".")[0] for name in imports(path)} & {"torch", "training", "jobs", "session"}


@pytest.mark.parametrize(
    ("blocked", "modules"),
    [
        (
            "pyspark triton gensim mlflow",
            [
                f"training.{name}"
                for name in [
                    "train",
                    "stream",
                    "neighbors",
                    "evaluate",
                    "export",
                    "align",
                    "heldout",
                    "compare",
                    "report",
                ]
            ],
        ),
        ("pyspark triton gensim mlflow scipy", ["training.neighbors", "training.export"]),
        ("pyspark triton gensim mlflow scipy matplotlib jinja2 tensorboard", ["training.train"]),
        ("torch mlflow", ["pipeline.stages", "pipeline.corpus", "pipeline.demo", "pipeline.manifest"]),
    ],
)
def test_what_is_not_needed_is_not_imported(blocked: str, modules: list[str]) -> None:
    code = f"import sys; sys.modules |= dict.fromkeys({blocked.split()}); import {', '.join(modules)}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_importing_starts_nothing_and_prints_nothing() -> None:
    code = "import pipeline.stages, pyspark; assert not pyspark.SparkContext._active_spark_context"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True)
    assert done.stdout + done.stderr == b""
