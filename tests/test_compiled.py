"""Laws of pipeline.compiled: numba's cache saves time where it can, and never breaks a run or changes a number."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import oracles
import pytest
from conftest import ROOT

from pipeline import compiled

DRAW = """
import numpy as np
from pipeline.draws import sums_of_draws
drawn = sums_of_draws(np.array([1234], dtype=np.uint64), np.array([1]))
print(drawn[0], sum(sums_of_draws.stats.cache_hits.values()))
"""
RIGHT = oracles.fold(1234, 0)


def start(package: Path, cache: Path | str) -> "subprocess.Popen[str]":
    """A process of its own that draws once, with the package from a folder or zip and its cache in a folder."""
    places = {"HOME": f"{cache}", "XDG_CACHE_HOME": f"{cache}", "NUMBA_CACHE_DIR": f"{cache}"}
    env = {**os.environ, **places, "PYTHONPATH": str(package)}
    return subprocess.Popen([sys.executable, "-c", DRAW], env=env, cwd="/", stdout=subprocess.PIPE, text=True)


def result(process: "subprocess.Popen[str]") -> tuple[int, int]:
    """The draw, and whether its code came from the cache."""
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    drawn, hits = said.split()
    return int(drawn), int(hits)


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A folder with a copy of the package, as an unpacked release."""
    shutil.copytree(ROOT / "pipeline", tmp_path / "src" / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "src"


def test_two_processes_at_once_and_damaged_files_change_nothing(package: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    both = [start(package, cache), start(package, cache)]
    assert [result(process)[0] for process in both] == [RIGHT, RIGHT]
    assert result(start(package, cache)) == (RIGHT, 1)

    files = [path for path in cache.rglob("*") if path.suffix in (".nbi", ".nbc")]
    for path in files:
        path.write_bytes(b"\0" * 100 if path.suffix == ".nbc" else b"")
    assert len(files) > 2
    assert result(start(package, cache)) == (RIGHT, 0)
    assert result(start(package, cache)) == (RIGHT, 1)


def test_a_change_in_another_file_is_noticed(package: Path, tmp_path: Path) -> None:
    """numba itself looks only at the file of the function, not at the constants it takes from others."""
    assert result(start(package, tmp_path / "cache"))[0] == RIGHT
    file = package / "pipeline" / "randomness.py"
    file.write_text(file.read_text().replace("0x94D049BB133111EB", "0x94D049BB133111ED"))
    assert result(start(package, tmp_path / "cache"))[0] != RIGHT


def test_from_a_zip_and_with_nowhere_to_write(package: Path, tmp_path: Path) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "shipped"), "zip", package))
    assert result(start(zipped, "/dev/null")) == (RIGHT, 0)
    assert result(start(zipped, tmp_path / "cache")) == (RIGHT, 0)
    assert result(start(zipped, tmp_path / "cache")) == (RIGHT, 1)


def test_code_is_named_by_the_sources_of_its_own_package_and_of_pipeline(
    package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        (package / name).mkdir()
        (package / name / "__init__.py").write_text("")
    monkeypatch.setattr(compiled, "files", lambda folder: package / folder)
    digest = compiled._everything_that_decides_the_code.__wrapped__
    seen = [digest("one"), digest("other")]
    for changed in ("other/__init__.py", "one/new.py", "pipeline/draws.py"):
        with (package / changed).open("a") as file:
            file.write("# changed")
        seen.append(digest("one"))
    assert seen[2] == seen[0], "what is in another package decides nothing"
    assert len({seen[0], seen[3], seen[4]}) == 3
    assert digest("one") == seen[4]
