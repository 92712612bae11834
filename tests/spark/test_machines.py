"""Laws of prepare on machines as other people have them: no name of the user or the host, no programs in /tmp."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import ROOT, Command
from pyspark import SparkConf, SparkContext
from servers import cluster

from jobs import machine, prepare, session
from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.compiled import compiled
from pipeline.shared.errors import InputError
from pipeline.text.demo import demo_lines
from tools.finish_environment import configure_spark

PREPARE = str(ROOT / "jobs" / "prepare.py")
may_change_machines = pytest.mark.skipif(
    os.name != "posix" or os.getuid() != 0 or subprocess.run(["unshare", "-u", "-m", "true"]).returncode != 0,
    reason="changes its user id, its host name and what is mounted, which only root may",
)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("SPARK_REMOTE", "sc://host/;token=secret", "SPARK_REMOTE"),
        ("SPARK_CONNECT_MODE_ENABLED", "1", "SPARK_CONNECT_MODE_ENABLED"),
        ("SPARK_API_MODE", "Connect", "SPARK_API_MODE"),
        ("SPARK_CONNECT_MODE", "1", "SPARK_CONNECT_MODE"),
        ("PYSPARK_REMOTE_INIT_CONF_LEN", "1", "spark.remote or spark.api.mode"),
    ],
)
def test_spark_connect_is_refused_before_spark_starts(
    call: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, value: str, named: str
) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(session, "build_session", None)
    said = call(lambda: session.run(prepare.main), "--input", __file__, "--output", tmp_path / "out")
    said.assert_refused(f"{named}: is set, so Spark Connect is found", "unset it")
    assert "secret" not in said.stderr
    assert list(tmp_path.iterdir()) == []


def test_what_leads_to_no_spark_connect_is_not_refused() -> None:
    machine.refuse_connect({"SPARK_API_MODE": "classic", "SPARK_CONNECT_MODE": "0", "PATH": "/bin"})


@pytest.mark.parametrize(
    ("host", "there"), [("localhost", True), ("12345", False), ("10.1", False), ("nowhere.invalid", False)]
)
def test_a_host_has_an_address_if_its_name_means_one(host: str, there: bool) -> None:
    assert machine.has_address(host) == there


def test_a_user_has_a_name_or_not() -> None:
    assert machine.has_name(0)
    assert not machine.has_name(2**31 - 5)


def test_a_user_without_a_name_is_told_what_to_do_unless_spark_needs_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Java is not started: it would print 30 lines."""
    monkeypatch.delenv("PYSPARK_GATEWAY_PORT", raising=False)
    monkeypatch.setattr(SparkContext, "_gateway", None)
    monkeypatch.setattr(SparkContext, "_ensure_initialized", lambda: None)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 5)
    monkeypatch.setenv("SPARK_CONF_DIR", str(tmp_path))
    with pytest.raises(InputError, match=r"^user id 2147483643: has no name.*/etc/passwd.*libnss_wrapper"):
        machine.start_java()
    configure_spark(tmp_path, tmp_path / "wrapper", java_home="")
    machine.start_java()


def test_a_folder_has_room_for_temporary_files_or_not(tmp_path: Path) -> None:
    assert machine.may_write(str(tmp_path / "made" / "by spark"))
    (tmp_path / "file").touch()
    assert not machine.may_write(str(tmp_path / "file"))
    assert not machine.may_write("/proc/nowhere")
    assert not machine.may_write("/dev/full")


def test_a_user_without_a_home_keeps_no_compiled_code_there(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", str)
    folders = compiled(lambda x: x)._cache._folders()  # type: ignore[attr-defined]
    assert folders == [Path(__file__).parent / "__pycache__"]


WAYS = {
    "spark-submit": [str(cluster.BIN / "spark-submit"), PREPARE],
    "python": [sys.executable, PREPARE],
    "command": [sys.executable, "-c", "from jobs.entry_points import prepare; prepare()"],
}
HOSTILE = """
hostname {host}
mount --bind /tmp /tmp
mount -o remount,bind,noexec /tmp
exec setpriv --reuid 2000 --regid 2000 --clear-groups --inh-caps=+dac_read_search --ambient-caps=+dac_read_search "$@"
"""
"""The user may read all files, since Python may be in root's home."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of user 2000, right in /tmp: what pytest makes is root's."""
    with tempfile.TemporaryDirectory(prefix="machine-") as name:
        os.chown(name, 2000, 2000)
        yield Path(name)


@pytest.mark.long
@may_change_machines
@pytest.mark.skipif(str(ROOT).startswith("/tmp/"), reason="no program in /tmp may run here: move this checkout")
@pytest.mark.parametrize(
    ("way", "host", "environment"),
    [
        ("spark-submit", "12345", {"HOME": "/nowhere"}),
        ("spark-submit", "nowhere-at-all", {"PYTHONSAFEPATH": "1"}),
        ("python", "12345", {"HOME": "/nowhere"}),
        ("python", "nowhere-at-all", {}),
        ("command", "12345", {}),
    ],
)
def test_a_run_depends_on_no_name_and_on_no_programs_in_tmp(
    folder: Path, way: str, host: str, environment: dict[str, str]
) -> None:
    """Neither user nor host has a name, and the corpus and the shuffle want code that Java unpacks."""
    text = folder / "text.txt.zst"
    with pa.output_stream(str(text), compression="zstd") as file:
        file.write("".join(f"{line}\n" for line in list(demo_lines())[:2000]).encode())
    mine = {name: value for name, value in cluster.environment().items() if not name.startswith("SPARK_LOCAL")}
    command = [*WAYS[way], "--input", str(text), "--output", str(folder / "out"), "--min-count", "1", "--sample", "0"]
    said = subprocess.run(
        ["unshare", "-u", "-m", "sh", "-ec", HOSTILE.format(host=host), "sh", *command],
        env={**{name: value for name, value in mine.items() if name != "HOME"}, **environment},
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 0, said.stderr
    assert said.stderr == ""
    assert Manifest.load(folder / "out").counts.lines == 2000


@pytest.mark.long
@may_change_machines
@pytest.mark.parametrize("way", WAYS)
def test_credentials_on_a_host_without_an_address_are_one_line(folder: Path, way: str) -> None:
    text = folder / "text.txt"
    text.write_text("a b c\n" * 100)
    command = [*WAYS[way], "--input", str(text), "--output", str(folder / "out"), "--min-count", "1", "--sample", "0"]
    said = subprocess.run(
        ["unshare", "-u", "sh", "-ec", 'hostname nowhere-at-all; exec "$@"', "sh", *command],
        env={**cluster.environment(), "AWS_ACCESS_KEY_ID": "someone", "AWS_SECRET_ACCESS_KEY": "secret"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert said.returncode == 2
    [line] = said.stderr.splitlines()
    assert line.startswith("error: host name nowhere-at-all: found no address")
    assert not (folder / "out").exists()


@pytest.mark.parametrize(
    ("host", "environ", "refused"),
    [
        ("nowhere.invalid", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, True),
        ("nowhere.invalid", {"AWS_ACCESS_KEY_ID": "k"}, False),
        ("12345", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, False),
        ("localhost", {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s"}, False),
    ],
)
def test_only_credentials_need_the_address_of_a_host(host: str, environ: dict[str, str], refused: bool) -> None:
    with pytest.raises(InputError, match=r"/etc/hosts") if refused else nullcontext():
        machine.refuse_credentials_without_address(host, environ)


@pytest.mark.parametrize(
    ("master", "given", "added"),
    [
        ("local[2]", {}, session.UNBOUNDED | session.SURVIVING),
        ("local[2]", {"spark.driver.maxResultSize": "1m"}, session.SURVIVING),
        ("spark://host:7077", {}, session.UNBOUNDED),
        ("spark://host:7077", {"spark.driver.maxResultSize": "1m"}, {}),
    ],
)
def test_memory_bounds_the_vocabulary_unless_the_user_does(
    monkeypatch: pytest.MonkeyPatch, master: str, given: dict[str, str], added: dict[str, str]
) -> None:
    conf = SparkConf(loadDefaults=False).setMaster(master).setAll(list(given.items()))
    monkeypatch.setattr(session, "SparkConf", lambda: conf)
    monkeypatch.setattr(session, "settings_of_one_machine", dict)
    assert session.settings_of_job() == added


@pytest.mark.long
def test_a_vocabulary_of_more_than_the_driver_may_receive_is_prepared(folder: Path) -> None:
    """300,000 words of 4 MB; as a whole command, with a user's limit. test_counting.py holds the same in a session."""
    text = folder / "text.txt"
    text.write_text("".join(f"word{number} word{number + 1}\n" for number in range(0, 300_000, 2)))
    command = [str(cluster.BIN / "spark-submit"), "--conf", "spark.driver.maxResultSize=1m", PREPARE, "-q"]
    flags = ["--input", str(text), "--output", str(folder / "out"), "--min-count", "1"]
    said = subprocess.run([*command, *flags], env=cluster.environment(), capture_output=True, text=True)
    assert said.returncode == 0, said.stdout + said.stderr
    assert Manifest.load(folder / "out").vocab_size == 300_001
