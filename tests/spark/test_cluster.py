"""Laws of prepare on a real cluster: a standalone master, two workers and executors that are killed, slow or strange.

What each law needs is waited for by looking at the job, never by sleeping: Spark's REST API, files that appear, files
that a process has open.
"""

import os
import signal
import subprocess
import sysconfig
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT
from servers import cluster
from servers.cluster import Cluster, Job, kill, own_mounts
from tiny import write_tiny_dataset

from jobs import session
from pipeline.dataset.manifest_file import Manifest
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError
from pipeline.shared.storage import Location
from pipeline.spark.generation import LOCK
from pipeline.spark.spark_errors import user_error
from pipeline.spark.task import write_shards
from pipeline.stages import check_shared
from pipeline.text.demo import demo_lines

JOB = ROOT / "jobs" / "prepare.py"
FLAGS = ["--min-count", "5", "--sample", "0", "--num-shards", "4"]
SHORT_RETRIES = {"spark.shuffle.io.maxRetries": "1", "spark.shuffle.io.retryWait": "200ms"}
MANY_TASKS = {"spark.sql.files.maxPartitionBytes": "400000", "spark.sql.files.openCostInBytes": "0"}
WATCHED = {"spark.ui.enabled": "true"}
SPECULATION = {
    "spark.speculation": "true",
    "spark.speculation.interval": "100ms",
    "spark.speculation.multiplier": "1.1",
    "spark.speculation.quantile": "0.25",
}
ISOLATED = {"spark.executor.memory": "1200m"}
"""More than the ordinary workers have: such a job runs on none of them."""


@pytest.fixture(scope="module")
def spark_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster.start(tmp_path_factory.mktemp("cluster"))
    try:
        # Speculation wants another host, so this machine is two.
        started.add_worker("127.0.0.1")
        started.add_worker("localhost")
        started.wait()
        yield started
    finally:
        started.end()


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return list(demo_lines())


@pytest.fixture(scope="module")
def long_text(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600,000 tokens: seconds of work in every stage."""
    return written(tmp_path_factory.mktemp("text") / "long.txt", lines * 2)


@pytest.fixture(scope="module")
def short_text(lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("text") / "short.txt", lines[:2000])


def written(path: Path, lines: list[str]) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def submit(spark_cluster: Cluster, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    """Submits a job that does not outlive its test."""
    jobs = []

    def start(text: Path, name: str = "out", conf: Mapping[str, str] | None = None) -> Job:
        jobs.append(spark_cluster.submit(tmp_path / name, JOB, "--input", text, *FLAGS, conf=conf or {}))
        return jobs[-1]

    yield start
    for job in jobs:
        job.end()
    print(spark_cluster.latest_logs())  # pytest shows it when the test has failed


@pytest.fixture(scope="module")
def on_one_core(long_text: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The digests of ``long_text``'s shards, made by ``local[1]``."""
    output = tmp_path_factory.mktemp("local") / "out"
    submit = [str(cluster.BIN / "spark-submit"), "--master", "local[1]", "--driver-java-options", cluster.QUICK_JAVA]
    command = [*submit, str(JOB), *FLAGS, "--input", str(long_text)]
    environment = cluster.environment() | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--output", str(output)], env=environment, capture_output=True, text=True, timeout=cluster.JOB_S
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return digests(output)


def digests(output: Path) -> list[str]:
    """Every shard's, once the dataset is found to be whole and nothing but whole."""
    manifest = Manifest.load(output)
    manifest.check_files(output)
    listed = {manifest.vocab_path, *(shard.path for shard in manifest.shards), "manifest.json"}
    assert {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()} == listed
    assert len(manifest.shards) == 4
    return [shard.sha256 for shard in manifest.shards]


def first_writers(spark_cluster: Cluster, job: Job) -> dict[str, list[int]]:
    """Waits until files of attempts are open; executor id -> its Python workers that have one."""

    def writing() -> dict[str, list[int]]:
        generation = job.generation()
        return spark_cluster.writing(generation) if generation else {}

    return job.until(writing, "executor that writes")


def test_what_is_shipped_is_the_whole_package_and_nothing_else() -> None:
    path = session.code_zip()
    with zipfile.ZipFile(path) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    sources = [path for path in (ROOT / "pipeline").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert found == {source.relative_to(ROOT).as_posix(): source.read_bytes() for source in sources}
    assert {"pipeline/spark/sink.py", "pipeline/text/demo_words.txt"} <= found.keys()
    session.code_zip.cache_clear()
    assert session.code_zip().read_bytes() == path.read_bytes()


@pytest.mark.long
def test_executors_do_not_have_this_project(spark_cluster: Cluster, tmp_path: Path) -> None:
    def imports(name: str) -> str:
        command = [str(spark_cluster.executor_python), "-c", f"import {name}"]
        return subprocess.run(command, cwd=tmp_path, env=cluster.environment(), capture_output=True, text=True).stderr

    assert "No module named 'pipeline'" in imports("pipeline")
    assert imports("numpy, pyarrow, pandas, numba, pydantic, pyspark") == ""


@pytest.mark.long
def test_executors_with_a_filled_cache_compile_nothing(
    submit: Callable[..., Job], short_text: Path, tmp_path: Path
) -> None:
    """As docs/cluster.md has them given one; new executors, and code that was sent anew."""
    cache = tmp_path / "compiled"
    conf = {"spark.executorEnv.NUMBA_CACHE_DIR": str(cache)}
    assert submit(short_text, "first", conf).ended().code == 0
    filled = {entry: entry.stat().st_ino for entry in cache.iterdir()}
    assert {"fill_rows", "_pack", "_find"} <= {entry.name.split(".")[1] for entry in filled}
    for entry in filled:
        os.utime(entry, (1e9, 1e9))
    assert submit(short_text, "second", conf).ended().code == 0
    assert {entry: entry.stat().st_ino for entry in cache.iterdir()} == filled, "something was compiled anew"
    assert min(entry.stat().st_mtime for entry in filled) > 1e9, "something was not asked for"


@pytest.mark.long
def test_executors_lost_in_mid_shuffle_and_in_mid_write_change_no_byte(
    spark_cluster: Cluster, submit: Callable[..., Job], long_text: Path, on_one_core: list[str]
) -> None:
    job = submit(long_text, conf=SHORT_RETRIES | MANY_TASKS | WATCHED)

    def other_with_map_output() -> str | None:
        for stage in job.active_stages():
            done: dict[str, Any] = stage.get("executorSummary", {}) if stage["shuffleWriteBytes"] else {}
            for executor in done:
                if executor != held and done[executor]["succeededTasks"]:
                    return executor
        return None

    job.until(lambda: list(job.output.glob("gen-*/tables-*.npy")), "vocabulary")
    held, held_pid = spark_cluster.executors().popitem()
    kill(held_pid, signal.SIGSTOP)  # the stage cannot end before we have looked at it
    try:
        in_shuffle = job.until(other_with_map_output, "executor with map output")
        kill(spark_cluster.executors()[in_shuffle], signal.SIGKILL)
    finally:
        kill(held_pid, signal.SIGCONT)
    in_write = next(iter(first_writers(spark_cluster, job)))
    kill(spark_cluster.executors()[in_write], signal.SIGKILL)

    ended = job.ended()
    assert ended.code == 0, ended.stdout
    assert digests(job.output) == on_one_core
    assert {in_shuffle, in_write} <= {event["Executor ID"] for event in events(job, "ExecutorRemoved")}
    ends = events(job, "TaskEnd")
    again = {end["Stage ID"] for end in ends if end["Task End Reason"]["Reason"] in ("Resubmitted", "FetchFailed")}
    assert again, "no task had to be run again for its lost output"


def events(job: Job, kind: str) -> list[dict[str, Any]]:
    return [event for event in job.logged() if event["Event"] == f"SparkListener{kind}"]


@pytest.mark.long
def test_speculative_attempts_change_no_byte_and_leave_no_file(
    spark_cluster: Cluster, submit: Callable[..., Job], long_text: Path, on_one_core: list[str]
) -> None:
    """A worker that stands still in mid-write is overtaken."""
    job = submit(long_text, conf=SPECULATION)

    def stopped_in_mid_write() -> int | None:
        executor, (pid, *_) = first_writers(spark_cluster, job).popitem()
        kill(pid, signal.SIGSTOP)
        generation = job.generation()
        if generation and pid in spark_cluster.writing(generation).get(executor, []):
            return pid
        kill(pid, signal.SIGCONT)  # it was just done
        return None

    slow = job.until(stopped_in_mid_write, "worker that stands still in mid-write")
    try:
        ended = job.ended()
    finally:
        kill(slow, signal.SIGCONT)
    assert ended.code == 0, ended.stdout
    speculative = [end for end in events(job, "TaskEnd") if end["Task Info"]["Speculative"]]
    assert [end for end in speculative if end["Task End Reason"]["Reason"] == "Success"]
    assert digests(job.output) == on_one_core


@pytest.mark.long
def test_a_driver_killed_in_mid_write_leaves_no_manifest_and_the_same_again_succeeds(
    spark_cluster: Cluster, submit: Callable[..., Job], long_text: Path, on_one_core: list[str], tmp_path: Path
) -> None:
    """A driver that has nothing of this project gets it by --py-files, as the second time here."""
    killed = submit(long_text)
    first_writers(spark_cluster, killed)
    killed.end()
    assert sorted(path.name[:4] for path in killed.output.iterdir() if path.name != LOCK) == ["gen-"]

    with zipfile.ZipFile(tmp_path / "shardvec.zip", "w") as archive:
        for source in (path for folder in ("pipeline", "jobs") for path in (ROOT / folder).rglob("*")):
            if "__pycache__" not in source.parts:
                archive.write(source, source.relative_to(ROOT))
    mine = {
        "spark.submit.pyFiles": str(tmp_path / "shardvec.zip"),
        "spark.pyspark.driver.python": str(spark_cluster.executor_python),
    }
    again = submit(long_text, conf=mine)
    assert again.ended().code == 0, again.text()
    assert digests(again.output) == on_one_core


@pytest.mark.long
@pytest.mark.parametrize(
    ("mounts", "says"),
    [
        pytest.param("mount -t tmpfs none {0}", "worker {host} does not see what the driver wrote there", id="to read"),
        pytest.param(
            "mount -t tmpfs none {1} && mkdir {1}/upper {1}/work && "
            "mount -t overlay -o lowerdir={0},upperdir={1}/upper,workdir={1}/work none {0}",
            "the driver does not see what the workers wrote",
            id="to write",
        ),
    ],
)
def test_an_output_that_machines_do_not_share_is_refused(
    spark_cluster: Cluster, submit: Callable[..., Job], short_text: Path, tmp_path: Path, mounts: str, says: str
) -> None:
    """A worker whose disk is its own: it sees nothing of the driver's, or what it writes stays with it."""
    unshare = own_mounts()
    if not unshare:
        pytest.skip("the kernel lets this user have no mount namespace")
    places = [tmp_path / "data", tmp_path / "own"]
    for place in places:
        place.mkdir()
    before = mounts.format(*places)
    tried = subprocess.run([*unshare, "sh", "-c", before], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"the kernel refuses: {tried.stderr}")
    worker = spark_cluster.add_worker("127.0.0.1", memory="1500m", before=before)
    try:
        spark_cluster.wait()
        job = submit(short_text, "data/out", conf=ISOLATED)
        refused(job, f"--output {job.output}", says.format(host=os.uname().nodename), "s3://")
    finally:
        worker.end(gracefully=True)


@pytest.mark.long
def test_executors_with_another_numpy_are_refused(
    spark_cluster: Cluster, submit: Callable[..., Job], short_text: Path, tmp_path: Path
) -> None:
    """They could write other bytes than the driver's versions promise."""
    shim = tmp_path / "shim.py"
    shim.write_text(
        "import runpy, sys, numpy\n"
        "numpy.__version__ = numpy.__version__.rpartition('.')[0] + '.99'\n"
        "assert sys.argv[1] == '-m', sys.argv\n"
        "sys.argv = sys.argv[2:]\n"
        "runpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
    )
    python = cluster.program(tmp_path / "strange-python", f"-S {shim}", sysconfig.get_path("purelib"))
    job = submit(short_text, conf={"spark.pyspark.python": str(python)})
    refused(job, os.uname().nodename, "99", "expected the driver's numpy")


def test_a_worker_that_does_not_find_what_the_driver_wrote_names_output_and_host(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^--output {tmp_path}: worker {os.uname().nodename} does not see"):
        write_shards(Location.of(tmp_path) / "gen-0", PipelineConfig(), 0, iter(()))


def test_a_driver_that_does_not_find_what_workers_wrote_names_output_and_file(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path)
    check_shared(manifest, Location.of(tmp_path))
    (tmp_path / manifest.shards[0].path).unlink()
    with pytest.raises(InputError, match=f"^--output {tmp_path}: the driver does not see .*{manifest.shards[0].path}"):
        check_shared(manifest, Location.of(tmp_path))


def test_an_input_that_a_worker_does_not_see_is_the_users_to_fix() -> None:
    """Spark 4.3's words."""
    found = "Encountered error while reading file file:///data/in%20/s.txt. File does not exist. It is possible that"
    error = user_error(
        RuntimeError(f"Job aborted\nCaused by: [FAILED_READ_FILE.FILE_NOT_EXIST] {found}\n\tat x"), "in.txt"
    )
    assert str(error).startswith(
        "--input in.txt: [FAILED_READ_FILE.FILE_NOT_EXIST] Encountered error while reading file"
    )
    assert "file:///data/in%20/s.txt" in str(error)
    assert "; a worker does not see the file; it must lie on storage that all machines share" in str(error)
    assert "\n" not in str(error)


def test_only_a_workers_input_error_is_the_users() -> None:
    trace = "Job aborted\nTraceback (most recent call last):\n  File x\n{}\n\n\tat org.apache.spark.api.python"
    error = user_error(
        RuntimeError(trace.format("pipeline.shared.errors.InputError: --output /x: found, do this")), "in.txt"
    )
    assert str(error) == "--output /x: found, do this"
    assert user_error(RuntimeError(trace.format("ValueError: a bug")), "in.txt") is None


def refused(job: Job, *words: str) -> None:
    """Exit code 2, one line of ours, which comes last, and no dataset."""
    ended = job.ended()
    lines = ended.stdout.splitlines()
    assert ended.code == 2, ended.stdout
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:], ended.stdout
    assert [word for word in words if word not in lines[-1]] == [], lines[-1]
    assert "Traceback" not in ended.stdout
    assert not job.output.exists()
