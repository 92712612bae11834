"""Commands that a step runs: what they print is shown and kept, and they end when the step does."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT

from jobs.children import GRACE_S, StepError, call
from pipeline.shared.errors import InputError

LIMIT_S = 60


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_what_a_command_prints_is_shown_and_kept_after_its_argument_list(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "step.log"
    for number in (1, 2):
        call(
            python(f"import sys; print('out {number}', flush=True); print('err {number}', file=sys.stderr)"), log, None
        )
    lines = log.read_text().splitlines()
    assert [line for line in lines if not line.startswith("$ ")] == ["out 1", "err 1", "out 2", "err 2"]
    assert sum(line.startswith(f"$ {sys.executable} -c ") for line in lines) == 2
    assert "out 1\nerr 1\n" in capfd.readouterr().out


def test_secrets_are_passed_on_but_neither_shown_nor_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = python("import sys; print(len(sys.argv[1]), sys.argv[2][-2:])")
    call([*code, "spark.hadoop.fs.s3a.secret.key=hunter2", "x.password=abc"], tmp_path / "step.log", None)
    for kept in (capfd.readouterr().out, (tmp_path / "step.log").read_text()):
        assert "38 bc\n" in kept
        assert "hunter2" not in kept
        assert "secret.key=***" in kept


@pytest.mark.parametrize(
    ("exit_code", "kind", "message"),
    [
        (2, InputError, r"^train: --lr: found 9$"),
        (1, StepError, r"^train ended with 1 \(--lr: found 9\); what it printed is in .*train.log$"),
    ],
)
def test_an_error_is_said_in_the_commands_own_words_and_its_exit_code_tells_who_can_fix_it(
    exit_code: int, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    code = f"import sys; print('error: --lr: found 9', file=sys.stderr); print('more'); sys.exit({exit_code})"
    with pytest.raises(kind, match=message):
        call(python(code), tmp_path / "train.log", None)


def test_what_is_left_names_the_log(tmp_path: Path) -> None:
    with pytest.raises(StepError, match=rf"ended with 7; what it printed is in {tmp_path}/log"):
        call(python("import sys; sys.exit(7)"), tmp_path / "log", None)


def test_a_command_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="spark-summit: not found"):
        call(["spark-summit"], tmp_path / "log", None)


def test_commands_of_our_own_environment_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    call(["torchrun", "--help"], tmp_path / "log", None)
    assert "nproc" in (tmp_path / "log").read_text()


PARENT = """
import signal, sys
from pathlib import Path
from jobs.children import call
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: sys.exit(128 + number))
child = (
    "import signal, sys, time; from pathlib import Path\\n"
    "def end(*_): Path('ended').touch(); print('x' * 200_000, flush=True); sys.exit(0)\\n"
    "signal.signal(signal.SIGTERM, end); Path('begun').touch(); time.sleep(60)"
)
call([sys.executable, "-c", child], Path("log"), None)
"""


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_command_ends_with_its_step_and_is_asked_first(sent: signal.Signals, code: int, tmp_path: Path) -> None:
    path = os.pathsep.join([str(ROOT / "jobs"), str(ROOT)])
    parent = subprocess.Popen(
        python(PARENT), cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, stdout=subprocess.DEVNULL
    )
    wait_for(tmp_path / "begun")
    parent.send_signal(sent)
    assert parent.wait(GRACE_S / 2) == code  # what a command says at its end is read, or it would wait
    wait_for(tmp_path / "ended")


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} does not appear"
        time.sleep(0.01)


def test_a_signal_that_comes_while_a_finaliser_runs_ends_the_process_all_the_same() -> None:
    """Python prints and forgets what is raised in a finaliser."""
    code = """if True:
        import os, signal
        from jobs.children import check_ending, end_on_signals

        class Finalised:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)

        end_on_signals()
        Finalised()
        print("goes on", flush=True)
        check_ending()
        print("never here")"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S)
    assert (done.returncode, done.stdout) == (143, "goes on\n"), done.stderr
