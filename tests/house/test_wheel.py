"""The wheel, built and installed elsewhere: what it holds, and that its commands work from a folder of the user's."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Ended

pytestmark = pytest.mark.long

PACKAGES = ("pipeline", "training", "jobs")
SCRIPTS = sorted(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"])
PIP = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a wheel could be made of, without what a build has left there."""
    folder = tmp_path_factory.mktemp("source")
    for name in (*PACKAGES, "benchmarks", "tests", "tools"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with this environment's setuptools, so without a network."""
    folder = tmp_path_factory.mktemp("wheel")
    building = [*PIP, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(building, check=True)
    (found,) = folder.glob("*.whl")
    return found


Installed = Callable[..., Ended]


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """Runs a command of a new environment that has the wheel, in a folder that is empty at first.

    All other packages are those of this environment, to which a .pth file leads. Python does not follow the .pth files
    that are there, so an editable install of the project stays hidden. Neither environment is activated.
    """
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("folder")
    venv.create(environment, symlinks=True)
    programs = environment / "bin"
    subprocess.run([*PIP, "--python", programs / "python", "install", "--no-deps", wheel], check=True)
    here = sysconfig.get_path("purelib")
    packages = sysconfig.get_path("purelib", scheme="venv", vars={"base": str(environment)})
    Path(packages, "others.pth").write_text(here)
    variables = {name: os.environ[name] for name in os.environ.keys() - {"PYTHONPATH", "PYSPARK_PYTHON", "VIRTUAL_ENV"}}
    path = variables.get("PATH", os.defpath).split(os.pathsep)
    variables["PATH"] = os.pathsep.join(part for part in path if Path(part) != Path(sys.prefix, "bin"))

    def run(command: str, *arguments: str) -> Ended:
        words = [str(programs / command), *arguments]
        done = subprocess.run(words, cwd=folder, env=variables, capture_output=True, text=True, timeout=600)
        return Ended(done.returncode, done.stdout, done.stderr)

    return run


def test_the_wheel_holds_the_packages_with_all_their_files_and_nothing_else(source: Path, wheel: Path) -> None:
    expected = {
        path.relative_to(source).as_posix()
        for package in PACKAGES
        for path in (source / package).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.partition("/")[0].endswith(".dist-info")}
        (license_file,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        assert archive.read(license_file) == (ROOT / "LICENSE").read_bytes()
        assert b"\nLicense-Expression: Apache-2.0\n" in archive.read(metadata)
    assert found == expected
    assert found >= {f"{package}/py.typed" for package in PACKAGES}
    assert found >= {"pipeline/text/demo_words.txt", "training/runs/report.html.j2"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_command_says_how_it_is_used(installed: Installed, script: str) -> None:
    ended = installed(script, "--help")
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"usage: {script} ")


def test_the_demo_is_prepared_and_trained_and_looked_at_away_from_the_tree(installed: Installed) -> None:
    """From the corpus to the report, with two ranks; then once more as the README has it."""

    def said(command: str, *arguments: str) -> str:
        ended = installed(command, *arguments)
        assert ended.code == 0, ended.stderr
        return ended.stdout

    where = said("python", "-c", f"import {', '.join(PACKAGES)}; print(*pipeline.__path__, *training.__path__)")
    assert str(ROOT) not in where
    assert "data/demo: dataset " in said("shardvec-prepare-demo")
    assert "every digest" in said("shardvec-manifest", "verify", "data/demo")
    # In place, one epoch is enough for the groups of words to be found.
    training = ["--data", "data/demo", "--output", "runs/demo", "--epochs", "1", "--nproc", "2", "--sync-every", "4"]
    assert "tokens/sec" in said("shardvec-train", *training)
    neighbors = said("shardvec-neighbors", "runs/demo", "violin", "--topk", "1")
    assert neighbors.startswith("cosine sim=")
    assert said("python", "-m", "training.neighbors", "runs/demo", "violin", "--topk", "1") == neighbors
    assert "report.html" in said("shardvec-report", "runs/demo")
    assert "words" in said("shardvec-export", "runs/demo", "--format", "word2vec", "--output", "demo.txt")


def test_bad_input_is_one_line_and_names_the_command(installed: Installed) -> None:
    installed("shardvec-prepare", "--window", "5").assert_refused("--output", "shardvec-prepare --help lists")
    installed("shardvec-retrain", "run").assert_refused("--config", "shardvec-retrain run --help lists")
    installed("shardvec-train", "--data", "nowhere").assert_refused("nowhere")
    installed("shardvec-neighbors", "nowhere", "chip").assert_refused("nowhere")


def test_the_installed_trainer_waits_as_the_script_does_and_needs_no_spark(installed: Installed) -> None:
    """Its threads sleep while they wait: torch reads the variable when it is imported."""
    code = """if True:
        import atexit, os, sys
        from jobs import entry_points
        assert "torch" not in sys.modules
        sys.modules["pyspark"] = None
        atexit.register(lambda: print(os.environ["OMP_WAIT_POLICY"]))
        sys.argv = ["shardvec-train", "--help"]
        entry_points.train()"""
    ended = installed("python", "-c", code)
    assert (ended.code, ended.stderr, ended.stdout.splitlines()[-1]) == (0, "", "PASSIVE")
