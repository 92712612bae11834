"""The arrows between the parts: what imports what, and what each runs without."""

import ast
import graphlib
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for top in ("pipeline", "training", "jobs")
    for path in sorted((ROOT / top).rglob("*.py"))
}
ARROWS = {
    "pipeline": {
        "shared": "",
        "pipeline_config": "shared",
        "dataset": "shared pipeline_config",
        "text": "shared pipeline_config dataset",
        "tables": "shared pipeline_config text",
        "sampling": "shared pipeline_config",
        "spark": "shared pipeline_config dataset text sampling",
        "stages": "shared pipeline_config dataset text sampling spark",
        "manifest": "shared dataset",
    },
    "training": {
        "train_config": "",
        "rendezvous": "",
        "distributed": "rendezvous",
        "stopping": "distributed",
        "spawning": "rendezvous distributed stopping",
        "run": "train_config distributed",
        "model": "train_config rendezvous distributed",
        "reading": "train_config distributed run model",
        "vectors": "model",
        "judging": "model vectors",
        "runs": "train_config distributed stopping run model vectors judging",
        "train": "train_config distributed stopping spawning run model reading judging runs",
        "evaluate": "vectors judging",
        "export": "vectors",
        "neighbors": "vectors",
        "report": "runs",
    },
}
"""What each part may import of its own side; ``training`` also imports pipeline's ``shared`` and ``dataset``."""


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@cache
def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at its top or within a function."""
    found = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    return found


@pytest.mark.parametrize("module", [module for module in MODULES if not module.startswith("jobs")])
def test_imports_follow_the_arrows(module: str) -> None:
    side, part = [*module.split("."), "", ""][:2]
    allowed = {f"{side}.{name}" for name in (part, *ARROWS[side].get(part, "").split())}
    if side == "training":
        allowed |= {"pipeline.shared", "pipeline.dataset"}
    ours = {name for name in imports(MODULES[module]) if name.split(".")[0] in {"benchmarks", "jobs", *ARROWS}}
    assert {".".join(name.split(".")[:2]) for name in ours} <= allowed


def test_no_module_imports_itself_by_way_of_others() -> None:
    graphlib.TopologicalSorter({module: imports(path) & MODULES.keys() for module, path in MODULES.items()}).prepare()


def test_neither_side_names_the_others_library() -> None:
    for module, path in MODULES.items():
        theirs = {"pipeline": "torch", "training": "pyspark"}.get(module.split(".")[0])
        assert theirs not in {name.split(".")[0] for name in imports(path)}, path


def test_no_two_modules_share_a_name() -> None:
    names = Counter(path.stem for path in MODULES.values() if path.stem != "__init__")
    assert [name for name, times in names.items() if times > 1] == []


def test_no_folder_has_more_than_twelve_modules() -> None:
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "*.py"], capture_output=True, text=True, check=True)
    folders = Counter(Path(line).parent for line in listed.stdout.splitlines() if Path(line).name != "__init__.py")
    assert {folder: num for folder, num in folders.items() if num > 12} == {}


INTRINSICS = dict.fromkeys(("dot_4", "scatter_4"), "training.model.kernels.vector")
"""numba gives an intrinsic a parameter for each argument. All other compiled code, Triton's too, takes NamedTuples."""


def test_no_function_has_more_than_eight_parameters() -> None:
    """``self`` and ``cls`` do not count."""
    found = {}
    for module, path in MODULES.items():
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and INTRINSICS.get(node.name) != module:
                names = {part.arg for part in ast.walk(node.args) if isinstance(part, ast.arg)} - {"self", "cls"}
                if len(names) > 8:
                    found[f"{module}.{node.name}"] = len(names)
    assert found == {}


TRAINING = """
import sys
sys.modules |= dict.fromkeys("pyspark triton gensim mlflow scipy matplotlib jinja2 tensorboard".split())
import training.train
for name in ("matplotlib", "jinja2", "tensorboard"):
    del sys.modules[name]
import training.neighbors, training.export
del sys.modules["scipy"]
import training.reading.stream, training.evaluate, training.report
import training.vectors.alignment, training.judging.heldout, training.vectors.compare
"""
PIPELINE = """
import sys
sys.modules |= dict.fromkeys(["torch", "mlflow", "deltalake", "pyiceberg"])
import pipeline.stages, pipeline.text.demo, pipeline.tables.sources, pipeline.manifest, pyspark
assert not pyspark.SparkContext._active_spark_context
"""


@pytest.mark.parametrize("code", [TRAINING, PIPELINE], ids=["training", "pipeline"])
def test_what_is_not_needed_is_not_imported_and_importing_prints_nothing(code: str) -> None:
    """None in ``sys.modules`` blocks a library. What needs less is imported first, since a process imports once."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
