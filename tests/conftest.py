"""What tests share: how a command ended, what stops a run, one Spark session, a dataset, and the folder with real data.

What belongs to Spark is imported late, since petastorm's environment has none; and what takes seconds, for the tests
that need none of it.
"""

import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from training.model.batch import Batch

ROOT = Path(__file__).resolve().parent.parent

# A shell that starts the tests in the background makes them ignore Ctrl-C, and nohup a closed terminal, and with them
# every process they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    def assert_refused(self, *words: str) -> None:
        """Exit code 2, and one line that says ``words``."""
        assert (self.code, len(self.stderr.splitlines())) == (2, 1), self.stderr
        assert self.stderr.startswith("error: ")
        assert [word for word in words if word not in self.stderr] == [], self.stderr


Command = Callable[..., Ended]


def run_here(
    main: Callable[[], None],
    arguments: tuple[object, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Ended:
    """Runs the main of a job in this process, as the job itself would. It leaves no handler of signals behind."""
    from jobs import session

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}

    monkeypatch.setattr(sys, "argv", ["job.py", *map(str, arguments)])
    capsys.readouterr()
    code: Any = 0
    try:
        session.run(main)
    except SystemExit as end:
        code = end.code or 0
    except KeyboardInterrupt:
        code = -2  # not caught: Python would print a traceback
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return Ended(code, *capsys.readouterr())


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs ``main(*arguments)`` as from a command line, in this process."""

    def run(main: Callable[[], None], *arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
        capsys.readouterr()
        code: Any = 0
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
        return Ended(code, *capsys.readouterr())

    return run


Threads = Callable[[int], None]


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[Threads]:
    """Sets how many threads kernels take, on a machine of as many cores as it seems."""
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr("training.model.limits.quota", lambda: 64.0)
    yield torch.set_num_threads
    torch.set_num_threads(before)


Stop = Callable[[int], None]


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stop]:
    """Lets the next run end at a SIGTERM that comes with its batch of that number."""
    from training import train

    timed, place = train.timed, [0]

    def ending(batches: "Iterator[Batch]") -> "Iterator[tuple[Batch, float]]":
        for batch in timed(batches):
            place[0] -= 1
            if place[0] == 0:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def after(batches: int) -> None:
        place[0] = batches

    monkeypatch.setattr(train, "timed", ending)
    yield after
    assert place[0] <= 0, "there were fewer batches"


@pytest.fixture(scope="module")
def no_pages() -> Iterator[None]:
    """In-process runs of a file, its fixtures' too, write no loss.png, report.html and projector: most of their time.

    For files that look at none of these: `pytestmark = pytest.mark.usefixtures("no_pages")`.
    """
    from training.runs import recorder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "write_pages", lambda *_: None)
        yield


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny dataset that no test changes."""
    from tiny import write_tiny_dataset

    folder = tmp_path_factory.mktemp("pristine")
    write_tiny_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def spark() -> "Iterator[SparkSession]":
    """A quiet local session of two cores, which tries a task four times as a cluster does."""
    from pyspark.sql import SparkSession
    from servers import s3

    os.environ.update(s3.CREDENTIALS)  # Spark's Python workers see what its JVM was started with
    builder = SparkSession.builder.master("local[2,4]").appName("tests").config("spark.ui.enabled", "false")
    builder = builder.config("spark.sql.shuffle.partitions", "2").config("spark.python.daemon.module", "worker_daemon")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]))
        session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    yield session
    session.stop()


@pytest.fixture
def job(spark: "SparkSession", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs jobs/prepare.py in this process, with the session that all tests share."""
    from jobs import prepare, session

    def run(*arguments: object) -> Ended:
        return run_here(prepare.main, arguments, monkeypatch, capsys)

    monkeypatch.setattr(session, "build_session", lambda _: spark)
    monkeypatch.setattr(spark, "stop", lambda: None)
    return run


@pytest.fixture(scope="session")
def ptb_file() -> Path:
    """Penn Treebank's training text, which is not ours to ship: figures need it, laws do not."""
    return data_file("ptb/ptb.train.txt", "the PTB figures")


def free_port() -> int:
    """Of 127.0.0.1; nobody keeps it free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def data_file(name: str, purpose: str) -> Path:
    """A file that is not ours to ship; what needs it is skipped where it is not there."""
    path = Path(os.environ.get("SHARDVEC_DATA", ROOT.parent / "shared" / "data")) / name
    if not path.is_file():
        pytest.skip(f"no {path}: set SHARDVEC_DATA to a folder that holds {name} to check {purpose}")
    return path


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """``--dist loadfile``, but all files that use ``spark`` go to one process: a session takes 18 CPU seconds."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class OneSession(LoadFileScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            file: str = super()._split_scope(nodeid)
            return "spark" if file in with_spark else file

    tests = (ROOT / "tests").rglob("test_*.py")
    with_spark = {str(path.relative_to(ROOT)) for path in tests if "spark: Spark" in path.read_text()}
    assert with_spark
    return OneSession(config, log)
