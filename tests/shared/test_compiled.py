"""Laws of shared.compiled: machine code is made once, found again by what decides it, and never breaks a run."""

import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import numba
import numpy as np
import oracles
import pytest
from conftest import ROOT

from pipeline.shared import compiled
from pipeline.shared.code_digest import code_digest
from pipeline.shared.files import locked

DRAW = """
import numpy as np
from pipeline.shared.draws import sums_of_draws
drawn = sums_of_draws(np.array([1234], dtype=np.uint64), np.array([1]))
print(drawn[0], sum(sums_of_draws.stats.cache_hits.values()))
"""
RIGHT = oracles.fold(1234, 0)


def start(package: Path, cache: Path | str, **settings: str) -> "subprocess.Popen[str]":
    """A process of its own that draws once, with the package from a folder or zip and its cache in a folder."""
    places = {"HOME": f"{cache}", "XDG_CACHE_HOME": f"{cache}", "NUMBA_CACHE_DIR": f"{cache}"}
    env = {**os.environ, **places, "PYTHONPATH": str(package), **settings}
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


def test_of_processes_that_begin_together_one_compiles(package: Path, tmp_path: Path) -> None:
    together = [start(package, tmp_path / "cache") for _ in range(3)]
    drawn, hits = zip(*map(result, together), strict=True)
    assert drawn == (RIGHT, RIGHT, RIGHT)
    assert sorted(hits) == [0, 1, 1]
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".nbc"]


def test_a_cache_serves_the_code_wherever_it_lies(package: Path, tmp_path: Path) -> None:
    """As Spark sends it, in a zip that lies elsewhere each time; and on a volume that cannot be written."""
    cache = tmp_path / "filled"
    zipped = Path(shutil.make_archive(str(tmp_path / "shipped"), "zip", package))
    elsewhere = Path(shutil.copy(zipped, tmp_path / "another.zip"))
    assert result(start(zipped, cache)) == (RIGHT, 0)
    assert result(start(elsewhere, cache)) == (RIGHT, 1)
    cache = Path(shutil.copytree(cache, tmp_path / "copy"))
    (entry,) = cache.iterdir()
    long_ago = 1e9
    os.utime(entry, (long_ago, long_ago))
    cache.chmod(0o555)
    entry.chmod(0o444)
    assert result(start(package, cache)) == (RIGHT, 1)


def test_with_nowhere_to_write_every_process_compiles(package: Path, tmp_path: Path) -> None:
    zipped = Path(shutil.make_archive(str(tmp_path / "shipped"), "zip", package))
    assert result(start(zipped, "/dev/null")) == (RIGHT, 0)


def test_without_a_folder_of_the_users_entries_lie_beside_the_source_or_in_the_users_cache(
    package: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    assert result(start(package, home, NUMBA_CACHE_DIR="")) == (RIGHT, 0)
    assert list((package / "pipeline" / "shared" / "__pycache__").glob("*.nbc"))
    zipped = Path(shutil.make_archive(str(tmp_path / "shipped"), "zip", package))
    assert result(start(zipped, home, NUMBA_CACHE_DIR="")) == (RIGHT, 0)
    assert result(start(zipped, home, NUMBA_CACHE_DIR="")) == (RIGHT, 1)
    assert list((home / "shardvec").glob("*.nbc"))


def twice(numbers: np.ndarray) -> None:
    for place in range(numbers.size):
        numbers[place] *= 2


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def hits(function: Callable[[np.ndarray], None]) -> int:
    """Compiles the function as a new process would; whether its code came from the cache."""
    fresh: Any = compiled.compiled(function)
    numbers = np.ones(3)
    fresh(numbers)
    assert numbers.tolist() == [2, 2, 2]
    return sum(fresh.stats.cache_hits.values())


def test_damaged_entries_change_nothing(cache: Path) -> None:
    assert hits(twice) == 0
    (entry,) = cache.iterdir()
    for content in (b"\0" * 100, b"", entry.read_bytes()[:-1000]):
        entry.write_bytes(content)
        assert [hits(twice), hits(twice)] == [0, 1]


def test_checked_indices_are_another_code(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hits(twice) == 0
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    assert [hits(twice), hits(twice)] == [0, 1]


def test_named_tuples_whose_fields_change_places_are_another_code(cache: Path) -> None:
    """Types that differ in nothing else: code of the one would read the other's wrong field."""
    digests = set()
    kinds: list[Any] = [namedtuple("Pair", ("first", "second")), namedtuple("Pair", ("second", "first"))]
    for pair in kinds:
        for expected in (0, 1):
            second: Any = compiled.compiled(lambda pairs: pairs[0].second[0])
            assert second((pair(first=np.ones(1), second=np.full(1, 2.0)),)) == 2
            assert sum(second.stats.cache_hits.values()) == expected
        digests.add(code_digest(eval("lambda: Pair(1, 2).second", {"Pair": pair, "__name__": "test"})))
    assert len(digests) == 2


SOURCE = {
    "constants": "FACTOR = 2\nOTHER = 1\n",
    "callee": "from constants import FACTOR, OTHER\n\n\ndef doubled(number):\n    return FACTOR * number\n",
    "kernel": """
from callee import doubled

doubled = compiled.inner(doubled)

def twice(numbers):
    "Doubles."
    for place in range(numbers.size):
        numbers[place] = doubled(numbers[place])

def fail():
    raise ValueError("expected another")
""",
}


@pytest.mark.parametrize(
    ("file", "old", "new", "decides"),
    [
        ("kernel", "", "", False),
        ("kernel", '"Doubles."', '"Doubles every number."', False),
        ("kernel", "expected another", "wanted another", False),
        ("kernel", "\ndef", "\n# a comment\n\n\ndef", False),
        ("constants", "OTHER = 1", "OTHER = 3", False),
        ("constants", "FACTOR = 2", "FACTOR = 2.0", True),
        ("constants", "FACTOR = 2", "import numpy\nFACTOR = numpy.uint64(2)", True),
        ("callee", "FACTOR * number", "number * FACTOR", True),
        ("callee", "FACTOR * number", "FACTOR * number + 0 * OTHER", True),
        ("kernel", "range(numbers.size)", "range(len(numbers))", True),
    ],
)
def test_an_entry_is_named_by_what_decides_the_code_and_the_one_it_replaces_goes(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, old: str, new: str, decides: bool
) -> None:
    """In other files too; and not by texts, comments, lines and other functions of the same file."""
    monkeypatch.syspath_prepend(tmp_path)

    def kernel(sources: dict[str, str]) -> Callable[[np.ndarray], None]:
        for name, text in sources.items():
            found = sys.modules[name] = ModuleType(name)
            monkeypatch.delitem(sys.modules, name)
            monkeypatch.setitem(sys.modules, name, found)
            vars(found)["compiled"] = compiled
            exec(compile(text, str(tmp_path / f"{name}.py"), "exec"), vars(found))
        return cast("Callable[[np.ndarray], None]", vars(found)["twice"])

    assert hits(kernel(SOURCE)) == 0
    assert old in SOURCE[file]
    changed = {**SOURCE, file: SOURCE[file].replace(old, new)}
    assert hits(kernel(changed)) == (not decides)
    assert len(list(cache.iterdir())) == 1


def test_a_process_that_stands_still_while_it_compiles_does_not_hold_others(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled, "PATIENCE_S", 0.2)
    compiled.compiled(twice)(np.ones(1))
    (entry,) = cache.iterdir()
    entry.unlink()
    with locked(cache / f".{entry.name}.lock"):
        begin = time.monotonic()
        numbers = np.ones(3)
        compiled.compiled(twice)(numbers)
    assert time.monotonic() - begin >= 0.2
    assert numbers.tolist() == [2, 2, 2]
    assert list(cache.iterdir()) == [entry]


def test_entries_go_that_nobody_has_used_for_a_month(cache: Path) -> None:
    cache.mkdir()
    names = "a.b.cpython-311.00000000.0000000000000000.00000000.nbc", "c.d.cpython-311.0.0.0.nbc", "notes.txt"
    old, fresh, not_ours = (cache / name for name in names)
    for path, days in ((old, 31), (fresh, 29), (not_ours, 99)):
        path.write_bytes(b"")
        os.utime(path, (time.time() - days * 86400,) * 2)
    compiled.compiled(twice)(np.ones(1))
    assert (old.exists(), fresh.exists(), not_ours.exists(), len(list(cache.iterdir()))) == (False, True, True, 3)
    (ours,) = set(cache.glob("*.nbc")) - {fresh}
    os.utime(ours, (1e9, 1e9))
    compiled.compiled(twice)(np.ones(1))  # loads it
    assert ours.stat().st_mtime > 1e9, "an entry in use stays"


def test_an_inner_function_serves_compiled_callers_and_python() -> None:
    inner: Any = compiled.inner(lambda number: number + 1)
    outer: Any = numba.njit(lambda number: inner(inner(number)))
    assert (outer(1), inner(1), inner(1), inner(1.5), outer(1)) == (3, 2, 2, 2.5, 3)


def test_code_may_not_read_what_no_name_can_tell() -> None:
    for value in (np.arange(3), object()):
        function = eval("lambda: value + 1", {"value": value, "__name__": "test"})
        with pytest.raises(TypeError, match=r"value = .*: compiled code may read numbers"):
            code_digest(function)
