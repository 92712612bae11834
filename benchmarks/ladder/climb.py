"""Climbs: tries one rung after the other, each in a process of its own, within a budget of time.

A rung that crashes, hangs, or leaves the GPU unusable for its process cannot harm the next one. What a process prints
is kept in ``logs/``.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.measuring.provenance import ROOT

Result = Literal["passed", "failed", "skipped"]
ENDING_S = 10.0
"""How long a killed process may take to be gone."""

CLOSING_S = 2.0
"""Of the budget, what is left to end the last rung and to write the report."""


class Rung(NamedTuple):
    """Something to be shown."""

    name: str
    part: str
    """Its heading in the report."""
    function: str
    """``module:function`` in this folder. Called with a Work and ``arguments``; returns a Found, or raises."""
    seconds: float
    """What it is expected to take on a GPU, with the start of its process."""
    arguments: tuple[Any, ...] = ()
    """What JSON can hold."""
    needs: tuple[str, ...] = ()
    """Names of rungs without which it cannot be tried."""
    means_nothing: str = ""
    """Why it is not to be tried here; empty if it is."""


@dataclass(frozen=True)
class Work:
    """What a rung gets: a folder of its own, the datasets by name, and what earlier rungs have found."""

    rehearses: bool
    folder: Path
    datasets: dict[str, str] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)


class Found(NamedTuple):
    """What a rung that passed says, in words and in figures, which JSON can hold."""

    text: str
    figures: dict[str, Any] = {}  # noqa: RUF012 - never changed


class Skip(Exception):
    """The rung has no meaning here; says why."""


@dataclass(frozen=True)
class Outcome:
    rung: Rung
    result: Result
    text: str
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)


class Budget:
    """Seconds that are left; the clock starts now."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic):
        self._clock, self._end = clock, clock() + seconds

    @property
    def left_s(self) -> float:
        return self._end - self._clock()

    def limit_of(self, rung: Rung, patience: float) -> float:
        """After how long the rung is ended; raises Skip if it does not fit any more."""
        left_s = self.left_s - CLOSING_S
        if left_s < rung.seconds:
            raise Skip(f"needs about {rung.seconds:.0f} s, found {max(0.0, left_s):.0f} s left; raise --minutes")
        return min(left_s, patience * rung.seconds + 30)


Attempt = Callable[[Rung, float], Outcome]
"""Tries a rung for at most so many seconds."""


def climb(rungs: Sequence[Rung], budget: Budget, patience: float, attempt: Attempt) -> Iterator[Outcome]:
    """The outcome of each rung, in order. Whatever happens to one, the next one is tried."""
    results: dict[str, Result] = {}
    for rung in rungs:
        try:
            if rung.means_nothing:
                raise Skip(rung.means_nothing)
            missing = [name for name in rung.needs if results.get(name) != "passed"]
            if missing:
                raise Skip(f"needs what {' and '.join(missing)} did not bring")
            outcome = attempt(rung, budget.limit_of(rung, patience))
        except Skip as why:
            outcome = Outcome(rung, "skipped", str(why))
        results[rung.name] = outcome.result
        yield outcome


def try_apart(rung: Rung, limit_s: float, work: Work, environment: dict[str, str], log: Path) -> Outcome:
    """Tries a rung in a process of its own, which is ended with all its children after ``limit_s``."""
    task, answer = work.folder / "task.json", work.folder / "answer.json"
    task.write_text(json.dumps(asdict(work), default=str))
    command = [*CHILD, "rung", json.dumps(rung), str(task), str(answer)]
    began, code = time.monotonic(), None
    with log.open("wb") as printed:
        process = begin(command, environment, printed, start_new_session=True)
        try:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(limit_s)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            with suppress(subprocess.TimeoutExpired):  # a driver that hangs may keep it for ever
                process.wait(ENDING_S)
    seconds = time.monotonic() - began
    if code is None:
        return Outcome(rung, "failed", f"ended after {limit_s:.0f} s; {last_line(log)}", seconds)
    if code or not answer.exists():
        return Outcome(rung, "failed", f"{said(code)}; {last_line(log)}", seconds)
    found = json.loads(answer.read_text())
    return Outcome(rung, found["result"], found["text"], seconds, found["figures"])


CHILD = [sys.executable, "-m", "benchmarks.ladder.child"]


def begin(
    command: Sequence[str], environment: dict[str, str], printed: Any, **others: Any
) -> "subprocess.Popen[bytes]":
    """A process that prints to a file. It knows nothing of a launcher of this one, nor of its interpreter."""
    inherited = {name: value for name, value in os.environ.items() if name not in OURS_TO_SET}
    telling = {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"}  # of one that crashes the log says where
    given = {**inherited, "PYTHONPATH": str(ROOT), **telling, **environment}
    streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": printed, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=ROOT, env=given, **streams, **others)


OURS_TO_SET = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TRITON_INTERPRET", "OMP_WAIT_POLICY"),
)


def said(code: int) -> str:
    """How a process has ended."""
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def last_line(log: Path) -> str:
    """The last line that a process printed, for a cell of a table."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"its last line: {lines[-1].strip()[:300]}" if lines else "it printed nothing"
