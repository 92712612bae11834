"""Training in processes of its own, which tests watch, stop and kill. Waits have bounds, and nothing is left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from conftest import ROOT, Ended

from training.runs.checkpoint import FOLDER, LATEST, newest, steps

PYTHON = [sys.executable, str(ROOT / "training" / "train.py")]
TORCHRUN = [str(Path(sys.executable).with_name("torchrun"))]
TRAIN = PYTHON[1]
LIMIT_S = 180
"""For what takes seconds: other tests may have the machine's cores."""


class Launched:
    """A command, and all processes that come from it wherever they put themselves: their environment has a mark."""

    def __init__(self, command: list[str], logs: Path, environment: Mapping[str, str]):
        self._mark = uuid4().hex
        logs.mkdir(parents=True, exist_ok=True)
        self._stdout, self._stderr = logs / f"{self._mark}.out", logs / f"{self._mark}.err"
        with self._stdout.open("wb") as out, self._stderr.open("wb") as err:
            environment = {**os.environ, **environment, "SHARDVEC_TEST": self._mark}
            self.process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)

    @property
    def errors(self) -> str:
        return self._stderr.read_text()

    def pids(self) -> list[int]:
        """Of all that live, in rising order: none of a zombie, whose environment is gone."""
        return sorted(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if self._is_ours(pid))

    def ranks(self) -> list[int]:
        """The processes that ``--nproc`` has made, in their order."""
        return [pid for pid in self.pids() if b"spawn_main" in _read(f"/proc/{pid}/cmdline")]

    def workers(self) -> list[int]:
        """The processes that torchrun has made, by their local rank."""
        found = {}
        for pid in self.pids():
            names = dict(entry.partition(b"=")[::2] for entry in _read(f"/proc/{pid}/environ").split(b"\0"))
            if b"TORCHELASTIC_RUN_ID" in names and b"spawn" not in _read(f"/proc/{pid}/cmdline"):
                found[int(names[b"LOCAL_RANK"])] = pid
        return [found[local_rank] for local_rank in sorted(found)]

    def wait_for(self, happened: Callable[[], Any]) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not happened():
            assert self.process.poll() is None, f"it ended first, with {self.process.poll()}:\n{self.errors}"
            assert time.monotonic() < deadline, f"nothing in {LIMIT_S} s:\n{self.errors}"
            time.sleep(0.001)

    def freeze(self) -> None:
        """Stops every thread of the process where it is."""
        self.process.send_signal(signal.SIGSTOP)
        tasks = f"/proc/{self.process.pid}/task"
        deadline = time.monotonic() + LIMIT_S
        while any(_state(f"{tasks}/{task}/stat") not in "TZ" for task in os.listdir(tasks)):
            assert time.monotonic() < deadline
        assert self.process.poll() is None, f"it ended first:\n{self.errors}"

    def freeze_at(self, happened: Callable[[], Any], delay_s: float = 0) -> None:
        """Stops it some time after something has happened that is still so then; the next time sooner if it is not."""
        while True:
            self.wait_for(happened)
            time.sleep(delay_s)
            self.freeze()
            if happened():
                return
            self.process.send_signal(signal.SIGCONT)
            delay_s /= 2

    def kill(self) -> None:
        """Kills all at once, as a machine that goes down does."""
        deadline = time.monotonic() + LIMIT_S
        while pids := self.pids():
            assert time.monotonic() < deadline
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait(LIMIT_S)

    def end(self, limit_s: float = LIMIT_S) -> Ended:
        """How it ended, by itself and with all its processes, within the time."""
        deadline = time.monotonic() + limit_s
        try:
            self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"it goes on after {limit_s} s:\n{self.errors}") from None
        while left := self.pids():
            assert time.monotonic() < deadline, f"{left} outlived it"
            time.sleep(0.01)
        return Ended(self.process.returncode, self._stdout.read_text(), self.errors)

    def _is_ours(self, pid: int) -> bool:
        return self._mark.encode() in _read(f"/proc/{pid}/environ")


@contextmanager
def launched(command: list[str], logs: Path, environment: Mapping[str, str] | None = None) -> Iterator[Launched]:
    found = Launched(command, logs, environment or {})
    try:
        yield found
    finally:
        found.kill()


def completed(command: list[str], logs: Path, environment: Mapping[str, str] | None = None) -> Ended:
    """How a command ended that nobody disturbed."""
    with launched(command, logs, environment) as running:
        return running.end()


def told(output: Path) -> int:
    """The step of the last whole line of metrics.jsonl; -1 before there is such a file, 0 before the first line."""
    path = output / "metrics.jsonl"
    if not path.exists():
        return -1
    lines = path.read_bytes().split(b"\n")[:-1]
    return int(json.loads(lines[-1])["step"]) if lines else 0


def numbers(output: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl, without what depends on the clock."""
    clock = ("seconds", "tokens_per_s", "wait_share")
    lines = map(json.loads, (output / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in clock} for line in lines]


def vectors(output: Path) -> bytes:
    return (output / "vectors.safetensors").read_bytes()


def in_a_write(output: Path) -> bool:
    """Whether a checkpoint is written, but not yet named as the newest."""
    folder = output / FOLDER
    if not folder.is_dir():
        return False
    half = any(name.startswith(".") for name in os.listdir(folder))
    unnamed = bool(steps(output)) and not (folder / LATEST).exists()
    return half or unnamed or max(steps(output), default=None) != newest(output)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


def _state(path: str) -> str:
    """Of a thread: R, S, D, T or Z."""
    text = _read(path).decode(errors="replace")
    return text.rpartition(")")[2].split()[0] if text else "Z"
