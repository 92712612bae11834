"""A standalone Spark cluster of this machine's processes, and jobs on it as a user submits them.

Executors find numpy, pyarrow and pyspark as installed, and nothing of this project: what they run of it was sent.
"""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from conftest import ROOT, Ended, free_port

BIN = Path(sys.executable).parent
START_S = 60
JOB_S = 240
POLL_S = 0.03
QUICK_JAVA = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Xss512k"  # a JVM that lives for seconds need not optimise
NOT_OURS = re.compile(r"PYTHON(PATH|HOME|STARTUP)|(PYSPARK|SPARK|HADOOP|AWS)_.*|.*_proxy", re.IGNORECASE)

_Found = TypeVar("_Found")
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def environment() -> dict[str, str]:
    """The environment of a user who has set nothing of Spark's and Python's, all on loopback."""
    mine = {name: value for name, value in os.environ.items() if not NOT_OURS.fullmatch(name)}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**mine, "PATH": path, "SPARK_LOCAL_IP": "127.0.0.1", "SPARK_LOCAL_HOSTNAME": "127.0.0.1"}


def get_json(url: str) -> Any:
    """What a server says; None while it does not answer."""
    try:
        with _opener.open(url, timeout=5) as answer:
            return json.load(answer)
    except (OSError, ValueError):
        return None


@dataclass
class Process:
    """A command in a session of its own, so that whatever it starts can be found and ended, orphans too."""

    command: list[str]
    log: Path
    cwd: Path
    popen: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=environment() | {"SPARK_DAEMON_MEMORY": "256m", "SPARK_DAEMON_JAVA_OPTS": QUICK_JAVA},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def pids(self) -> list[int]:
        """Every living process of the session."""
        return [pid for pid, status in processes() if status["session"] == self.popen.pid]

    def until(self, condition: Callable[[], _Found | None], what: str, timeout_s: float = JOB_S) -> _Found:
        """Waits for ``condition``. Fails with the log when the process ends before, or when it takes too long."""
        end = time.monotonic() + timeout_s
        while not (found := condition()):
            state = self.popen.poll()
            assert state is None, f"ended with {state} before {what}:\n{self.text()}"
            assert time.monotonic() < end, f"no {what} within {timeout_s} s:\n{self.text()}"
            time.sleep(POLL_S)
        return found

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def end(self, gracefully: bool = False) -> None:
        """Nothing of the session is left."""
        if gracefully:
            self.popen.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.popen.wait(5)
        end = time.monotonic() + 20
        while pids := self.pids():
            assert time.monotonic() < end, f"cannot be ended: {pids}"
            for pid in pids:
                kill(pid, signal.SIGKILL)
            self.popen.poll()
            time.sleep(0.02)
        self.popen.wait(5)


def kill(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def processes() -> Iterator[tuple[int, dict[str, int]]]:
    """(pid, parent and session) of every process that lives."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                state, parent, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                if state not in "ZX":
                    yield int(folder.name), {"parent": int(parent), "session": int(session)}


@dataclass
class Job(Process):
    """A spark-submit."""

    output: Path = Path()
    ui: str = ""
    events: Path = Path()

    def ended(self) -> Ended:
        """Waits for the end. Python's stderr is in stdout, as spark-submit has it."""
        try:
            code = self.popen.wait(JOB_S)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"not finished within {JOB_S} s:\n{self.text()}") from None
        return Ended(code, self.text(), "")

    def generation(self) -> Path | None:
        return next(self.output.glob("gen-*"), None)

    def active_stages(self) -> list[dict[str, Any]]:
        """What the driver's REST API says of the stages that run, with a summary of each executor."""
        applications = f"{self.ui}/api/v1/applications"
        return [
            stage
            for application in get_json(applications) or []
            for stage in get_json(f"{applications}/{application['id']}/stages?status=active&details=true") or []
        ]

    def logged(self) -> list[dict[str, Any]]:
        """The event log, once the job is over."""
        files = sorted(path for path in self.events.rglob("*") if path.is_file() and not path.name.startswith("."))
        texts = [path.read_text() for path in files if "appstatus" not in path.name]
        return [json.loads(line) for text in texts for line in text.splitlines()]


@dataclass
class Cluster:
    """A master and its workers, one core each."""

    folder: Path
    master: Process
    port: int
    webui: str
    executor_python: Path
    driver_python: Path
    workers: list[Process] = field(default_factory=list)
    num_jobs: int = 0

    @classmethod
    def start(cls, folder: Path) -> "Cluster":
        port, webui_port = free_port(), free_port()
        master = ["org.apache.spark.deploy.master.Master", "--host", "127.0.0.1", "--port", str(port)]
        site_packages = sysconfig.get_path("purelib")
        return cls(
            folder,
            spark_class(folder / "master", *master, "--webui-port", str(webui_port)),
            port,
            f"http://127.0.0.1:{webui_port}",
            # -S: no .pth file is read, so the editable install of this project is not there.
            program(folder / "executor-python", "-S", site_packages),
            program(folder / "driver-python", "", str(ROOT)),
        )

    def add_worker(self, host: str, memory: str = "1g", before: str = "") -> Process:
        """Starts a worker; ``before`` is a shell command that it needs in a mount namespace of its own."""
        number = len(self.workers)
        worker = ["org.apache.spark.deploy.worker.Worker", f"spark://127.0.0.1:{self.port}", "--host", host]
        worker += ["--cores", "1", "--memory", memory, "--webui-port", "0"]
        folder = self.folder / f"worker-{number}"
        process = spark_class(folder, *worker, "--work-dir", str(folder / "work"), before=before)
        self.workers.append(process)
        return process

    def wait(self) -> None:
        """All workers are there."""
        num_workers = sum(worker.popen.poll() is None for worker in self.workers)
        for worker in self.workers:
            worker.until(lambda: self.state().get("aliveworkers", 0) >= num_workers, "worker at the master", START_S)

    def state(self) -> dict[str, Any]:
        return get_json(f"{self.webui}/json/") or {}

    def submit(self, output: Path, *command: object, conf: Mapping[str, str]) -> Job:
        """``spark-submit COMMAND --output OUTPUT`` on this cluster, with ``conf`` beside what a test needs anyway."""
        self.num_jobs += 1
        folder = output.parent / f"driver-{self.num_jobs}"
        (folder / "events").mkdir(parents=True)
        ui_port = free_port()
        settings = {
            "spark.pyspark.python": str(self.executor_python),
            "spark.pyspark.driver.python": str(self.driver_python),
            "spark.driver.memory": "512m",
            "spark.executor.memory": "512m",
            "spark.driver.extraJavaOptions": QUICK_JAVA,
            "spark.executor.extraJavaOptions": QUICK_JAVA,
            "spark.ui.enabled": "false",
            "spark.ui.port": str(ui_port),
            "spark.ui.liveUpdate.period": "0",
            "spark.eventLog.enabled": "true",
            "spark.eventLog.dir": (folder / "events").as_uri(),
            "spark.eventLog.compress": "false",
            **conf,
        }
        flags = [flag for name, value in settings.items() for flag in ("--conf", f"{name}={value}")]
        submit = [str(BIN / "spark-submit"), "--master", f"spark://127.0.0.1:{self.port}", *flags]
        submit += [*map(str, command), "--output", str(output)]
        return Job(submit, folder / "log", folder, output, f"http://127.0.0.1:{ui_port}", folder / "events")

    def executors(self) -> dict[str, int]:
        """Executor id -> pid of its JVM, of those that live."""
        found = {}
        for worker in self.workers:
            for pid in worker.pids():
                arguments = command_line(pid)
                if "org.apache.spark.executor.CoarseGrainedExecutorBackend" in arguments:
                    found[arguments[arguments.index("--executor-id") + 1]] = pid
        return found

    def writing(self, generation: Path) -> dict[str, list[int]]:
        """Executor id -> the Python workers of it that have a file of an attempt open."""
        parents = {pid: status["parent"] for pid, status in processes()}
        found: dict[str, list[int]] = {}
        for executor, executor_pid in self.executors().items():
            for pid in parents:
                if executor_pid in ancestors(pid, parents) and has_attempt_open(pid, generation):
                    found.setdefault(executor, []).append(pid)
        return found

    def latest_logs(self) -> str:
        """The ends of what master, workers and the latest executors logged."""
        executors = sorted(self.folder.glob("worker-*/*/*/*/stderr"), key=lambda log: log.stat().st_mtime)
        logs = [*self.folder.glob("*/log"), *executors[-4:]]
        return "".join(f"==> {log}\n{log.read_text(errors='replace')[-3000:]}\n" for log in logs)

    def end(self) -> None:
        for process in (*self.workers, self.master):
            process.end(gracefully=True)


def program(path: Path, options: str, python_path: str) -> Path:
    """A Python that looks in ``python_path`` too, before what else Spark has it look in, and has no home."""
    path.write_text(
        f'#!/bin/sh\nexport HOME=/dev/null PYTHONPATH={shlex.quote(python_path)}"${{PYTHONPATH:+:$PYTHONPATH}}"\n'
        f'exec {shlex.quote(sys.executable)} {options} "$@"\n'
    )
    path.chmod(0o755)
    return path


def spark_class(folder: Path, *arguments: str, before: str = "") -> Process:
    folder.mkdir()
    command = [str(BIN / "spark-class"), *arguments]
    if before:
        command = [*own_mounts(), "sh", "-c", f"{before} && exec {shlex.join(command)}"]
    return Process(command, folder / "log", folder)


def own_mounts() -> list[str]:
    """The command that runs another in a mount namespace of its own; empty where the kernel refuses."""
    for command in (["unshare", "--mount"], ["unshare", "--user", "--map-root-user", "--mount"]):
        with suppress(OSError):
            if subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0:
                return command
    return []


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []


def ancestors(pid: int, parents: dict[int, int]) -> Iterator[int]:
    while pid := parents.get(pid, 0):
        yield pid


def has_attempt_open(pid: int, generation: Path) -> bool:
    with suppress(OSError):
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = Path(os.readlink(link))
                if target.is_relative_to(generation) and target.name.startswith(".shard-"):
                    return True
    return False
