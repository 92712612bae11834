"""Runs the commands of a step: prints and logs them and their output, and ends them when this process ends."""

import ctypes
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, NoReturn

from pipeline.shared.errors import InputError
from pipeline.shared.redact import redacted_command

ROOT = Path(__file__).resolve().parents[1]
"""Where jobs/ and training/ are."""

GRACE_S = 60
"""How long a command may take to end after SIGTERM: a trainer saves a checkpoint first. SIGHUP is passed on as that."""

_PR_SET_PDEATHSIG = 1


_ending: list[int] = []
"""The signals that end this process, and have come."""


class StepError(Exception):
    """A step failed, but may succeed if it is repeated."""


def end_on_signals() -> None:
    """From now on SIGTERM and SIGHUP raise SystemExit, so that this process first ends the commands that it runs."""
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _end)


def _end(number: int, _: object) -> NoReturn:
    _ending.append(number)
    sys.exit(128 + number)


def check_ending() -> None:
    """Raises SystemExit if such a signal has come: what it raised is lost if Python ran a finaliser just then."""
    if _ending:
        sys.exit(128 + _ending[0])


def call(arguments: list[str], log: Path, lock: int | None) -> None:
    """Runs a command to its end. Prints its arguments, without secrets, and its output, and appends both to ``log``.

    The command inherits ``lock``, and gets SIGTERM when this process ends, even by SIGKILL (on Linux). Raises
    InputError with the command's own error line after exit code 2, and StepError after other errors; both begin with
    the step's name, which is that of ``log``.
    """
    line = shlex.join(redacted_command(arguments))
    print(f"$ {line}", flush=True)
    with log.open("ab") as file:
        file.write(f"$ {line}    # {datetime.now(UTC).isoformat(timespec='seconds')}\n".encode())
        file.flush()
        code, error = _run(arguments, file.fileno(), lock)
    if code == 2 and error:
        raise InputError(f"{log.stem}: {error}")
    if code != 0:
        reason = f" ({error})" if error else ""
        raise StepError(f"{log.stem} ended with {code}{reason}; what it printed is in {log}")


def started(arguments: list[str], output: int | IO[bytes], lock: int | None) -> subprocess.Popen[bytes]:
    """Starts a command, whose stdout and stderr go to ``output``, a file or subprocess.PIPE.

    It inherits ``lock``, and gets SIGTERM when the thread that calls this ends, even by SIGKILL (on Linux). Raises
    InputError if there is no such command.
    """
    ours = str(Path(sys.executable).parent)  # where this environment has spark-submit and torchrun
    environment = {**os.environ, "PATH": os.pathsep.join([ours, os.environ.get("PATH", os.defpath)])}
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_S - 5))  # torchrun's own is half of that
    try:
        return subprocess.Popen(
            arguments,
            bufsize=0,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=() if lock is None else (lock,),
            preexec_fn=partial(_die_with, os.getpid(), ctypes.CDLL(None)) if sys.platform == "linux" else None,
        )
    except FileNotFoundError:
        raise InputError(f"{arguments[0]}: not found beside {sys.executable} or on the PATH; run make setup") from None


def ended(child: subprocess.Popen[bytes]) -> None:
    """Ends a command: SIGTERM, and SIGKILL after GRACE_S. Its output must have a reader, or be a file."""
    child.terminate()
    try:
        child.wait(timeout=GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def flags(settings: Mapping[str, Any]) -> list[str]:
    """These settings as flags of prepare.py or train.py."""
    found = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if value is True and name != "tensorboard":
            found.append(f"--{flag}")
        elif value is False and name in ("lowercase", "tensorboard"):
            found.append(f"--no-{flag}")
        elif value is not None and not isinstance(value, bool):
            found += [f"--{flag}", str(value)]
    return found


def _run(arguments: list[str], log: int, lock: int | None) -> tuple[int, str | None]:
    """The exit code, and the last error line of the output without its "error: "."""
    child = started(arguments, subprocess.PIPE, lock)
    error = None
    try:
        assert child.stdout is not None
        for line in _lines(child.stdout.fileno()):
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            os.write(log, line)
            if line.startswith(b"error: "):
                error = line.decode(errors="replace").strip().removeprefix("error: ")
        code = child.wait()
    except BaseException:
        child.terminate()
        try:
            os.write(log, child.communicate(timeout=GRACE_S)[0])  # a full pipe would block the child
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    return code, error


def _lines(pipe: int) -> Iterator[bytes]:
    """The lines that come through a pipe, until its end.

    Waits for a second at a time: Python handles a signal that arrives just before a wait only after the wait.
    """
    rest = b""
    while True:
        check_ending()
        if select.select([pipe], [], [], 1.0)[0]:
            found = os.read(pipe, 1 << 16)
            if not found:
                break
            *lines, rest = (rest + found).split(b"\n")
            yield from (line + b"\n" for line in lines)
    if rest:
        yield rest


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    """Asks the kernel for SIGTERM when ``parent`` ends. The parent may have ended already."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)
