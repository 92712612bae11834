"""On one machine, nothing listens beyond loopback: every listening socket of a command and of all that it starts."""

import ipaddress
import os
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import ROOT
from launch import PYTHON, TORCHRUN, TRAIN, Launched, launched
from pyspark import SparkConf, SparkContext
from ranks import train_here

from jobs import session

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

LISTENING = "0A"
SPARK_SUBMIT = str(Path(sys.executable).with_name("spark-submit"))
PREPARE = str(ROOT / "jobs" / "prepare_demo.py")


def addresses(table: str) -> dict[str, str]:
    """The address of every listening socket in a table of /proc/net, by its inode."""
    found = {}
    for line in Path("/proc/net", table).read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == LISTENING:
            words = bytes.fromhex(fields[1].partition(":")[0])  # of four bytes each, in the machine's order
            parts = [words[at : at + 4] for at in range(0, len(words), 4)]
            packed = b"".join(part[::-1] if sys.byteorder == "little" else part for part in parts)
            address = ipaddress.ip_address(packed)
            found[fields[9]] = str(getattr(address, "ipv4_mapped", None) or address)
    return found


def listeners(pids: list[int]) -> set[str]:
    """The addresses on which these processes listen."""
    known = addresses("tcp") | addresses("tcp6")
    return {known[inode] for inode in inodes(pids) & known.keys()}


def inodes(pids: list[int]) -> set[str]:
    """Of the sockets of these processes."""
    found = set()
    for pid in pids:
        with suppress(OSError):
            for file in os.scandir(f"/proc/{pid}/fd"):
                with suppress(OSError):
                    found.add(os.readlink(file.path).removeprefix("socket:[").removesuffix("]"))
    return found


def test_ranks_listen_on_loopback_only(pristine: Path, tmp_path: Path) -> None:
    """The ranks of ``--nproc 2``, and this process, which starts them: every socket that was not there before."""
    given = ["--data", pristine, "--output", tmp_path / "run", "--epochs", "1", "--no-tensorboard", "--nproc", "2"]
    before, over = inodes(ours()), threading.Event()
    found: set[str] = set()

    def watch() -> None:
        while not over.wait(0.01):
            known = addresses("tcp") | addresses("tcp6")
            found.update(known[inode] for inode in (inodes(ours()) - before) & known.keys())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        ended = train_here(*given, logs=tmp_path)
    finally:
        over.set()
        watching.join()
    assert ended.code == 0, ended.stderr
    assert (bool(found), outside(found)) == (True, set())


def ours() -> list[int]:
    """This process and all that have come from it."""
    parents = {}
    for pid in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with suppress(OSError):
            parents[pid] = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    found = {os.getpid()}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def watched(running: Launched) -> tuple[set[str], str]:
    """All addresses on which the command listened until its end, which has to be good, and what it printed."""
    found: set[str] = set()
    while running.process.poll() is None:
        found |= listeners(running.pids())
        time.sleep(0.02)
    ended = running.end()
    assert ended.code == 0, ended.stderr
    return found, ended.stdout


def outside(addresses: set[str]) -> set[str]:
    return {address for address in addresses if not ipaddress.ip_address(address).is_loopback}


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "listens"),
    [
        pytest.param([*PYTHON, "--nproc", "2"], True, id="python --nproc 2"),
        pytest.param(PYTHON, False, id="one rank"),
        pytest.param([*TORCHRUN, TRAIN, "--nproc", "2"], True, id="torchrun --nproc 2"),
        *(
            pytest.param(
                [*TORCHRUN, *options, "--nproc-per-node", "2", TRAIN],
                True,
                id=" ".join(["torchrun", *options, "--nproc-per-node 2"]),
            )
            for options in ([], ["--standalone"], ["--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"])
        ),
    ],
)
def test_a_training_listens_on_loopback_only(command: list[str], listens: bool, pristine: Path, tmp_path: Path) -> None:
    given = ["--data", str(pristine), "--output", str(tmp_path / "run"), "--epochs", "1", "--no-tensorboard"]
    with launched([*command, *given], tmp_path / "logs") as running:
        found, _ = watched(running)
    assert (bool(found), outside(found)) == (listens, set())


WATCHED = {"spark.ui.enabled": "true"}


@pytest.mark.parametrize(
    ("master", "given", "ip", "added"),
    [
        ("local[*]", {}, None, session.LOOPBACK | session.CLOSED),
        ("local", {}, None, session.LOOPBACK | session.CLOSED),
        ("local[2,4]", WATCHED, None, {**session.LOOPBACK, "spark.authenticate": "true"}),
        ("local[2]", session.LOOPBACK | session.CLOSED, None, {}),
        ("local[2]", {}, "192.0.2.1", session.CLOSED),
        ("local-cluster[2,1,1024]", {}, None, {}),
        ("spark://host:7077", {}, None, {}),
        ("yarn", {}, None, {}),
    ],
)
def test_spark_is_closed_on_one_machine_unless_the_user_says_otherwise(
    master: str, given: dict[str, str], ip: str | None, added: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = SparkConf(loadDefaults=False).setMaster(master).setAll(list(given.items()))
    monkeypatch.setattr(SparkContext, "_ensure_initialized", lambda: None)
    monkeypatch.setattr(session, "SparkConf", lambda: conf)
    monkeypatch.delenv("SPARK_LOCAL_IP", raising=False)
    if ip:
        monkeypatch.setenv("SPARK_LOCAL_IP", ip)
    assert session.settings_of_one_machine() == added


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher", "environment", "pages"),
    [
        ([SPARK_SUBMIT], {}, "none"),
        ([sys.executable], {}, "none"),
        ([SPARK_SUBMIT, "--conf", "spark.ui.enabled=true"], {"SPARK_LOCAL_IP": "127.0.0.1"}, "http://"),
    ],
    ids=["spark-submit", "python", "with web pages"],
)
def test_a_prepare_listens_on_loopback_only(
    launcher: list[str], environment: dict[str, str], pages: str, tmp_path: Path
) -> None:
    environment = {"PYTHONPATH": str(ROOT), "PYSPARK_PYTHON": sys.executable, **environment}
    given = ["--output", str(tmp_path / "data"), "--num-shards", "2", "--epochs", "1", "-v"]
    with launched([*launcher, PREPARE, *given], tmp_path / "logs", environment) as running:
        found, stdout = watched(running)
    assert (bool(found), outside(found)) == (True, set())
    assert f"Spark's pages: {pages}" in stdout
