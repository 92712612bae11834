"""Commands that a step runs: shown, logged with all they print, and ended when we are."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pipeline.shared.errors import InputError

GRACE_S = 60
"""How long a command may take to end when it is asked to: a trainer saves a checkpoint first."""

_PR_SET_PDEATHSIG = 1


class StepError(Exception):
    """What failed by nothing that the user is known to be able to mend, and may go well the next time."""


def call(arguments: list[str], log: Path, lock: int | None) -> None:
    """Runs a command to its end; what it prints goes to the screen and to ``log``, after its argument list.

    It holds ``lock`` too, and gets SIGTERM when we end, even by SIGKILL (on Linux). Raises InputError with the
    command's own line where it failed by what the user can mend, else StepError.
    """
    line = shlex.join(arguments)
    print(f"$ {line}", flush=True)
    with log.open("ab") as file:
        file.write(f"$ {line}    # {datetime.now(UTC).isoformat(timespec='seconds')}\n".encode())
        file.flush()
        code, said = _run(arguments, file.fileno(), lock)
    if code != 0 and said:
        raise InputError(f"{arguments[0]}: {said}")
    if code != 0:
        raise StepError(f"{arguments[0]} ended with {code}; what it printed is in {log}")


def _run(arguments: list[str], log: int, lock: int | None) -> tuple[int, str | None]:
    """The exit code, and the last line that says what the user can mend."""
    ours = str(Path(sys.executable).parent)  # where spark-submit and torchrun of this environment are
    environment = {**os.environ, "PATH": os.pathsep.join([ours, os.environ.get("PATH", os.defpath)])}
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(GRACE_S - 5))  # torchrun's own is half of that
    try:
        child = subprocess.Popen(
            arguments,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=() if lock is None else (lock,),
            preexec_fn=partial(_die_with, os.getpid(), ctypes.CDLL(None)) if sys.platform == "linux" else None,
        )
    except FileNotFoundError:
        raise InputError(f"{arguments[0]}: not found beside {sys.executable} or on the PATH; run make setup") from None
    said = None
    try:
        assert child.stdout is not None
        for line in child.stdout:
            sys.stdout.buffer.write(line)
            sys.stdout.flush()
            os.write(log, line)
            if line.startswith(b"error: "):
                said = line.decode(errors="replace").strip().removeprefix("error: ")
        code = child.wait()
    except BaseException:
        child.terminate()
        try:
            os.write(log, child.communicate(timeout=GRACE_S)[0])  # read on, or it would wait for us to
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        raise
    return code, said


def _die_with(parent: int, libc: ctypes.CDLL) -> None:
    """Asks the kernel for SIGTERM when ``parent`` ends, which may have happened by now."""
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        os._exit(128 + signal.SIGTERM)
