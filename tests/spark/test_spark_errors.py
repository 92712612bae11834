"""Laws of Spark's failures: each that a user can fix is one line with a remedy that fits, and no other is."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from pipeline.shared.errors import InputError
from pipeline.spark.spark_errors import input_errors, user_error

PACKAGE = "--input IN: .*; add the package of its file system"
NATIVE = "Spark: .*; Java could not load native code .*java.io.tmpdir"


def assert_told(action: Callable[[], object], line: str) -> None:
    with pytest.raises(InputError) as told, input_errors("IN"):
        action()
    assert re.fullmatch(f"{line}.*", str(told.value)), told.value


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("hdfs:///x", "--input IN: .*Incomplete HDFS URI.*; name the host"),
        ("hdfs://host:port/x", "--input IN: .*Incomplete HDFS URI.*; name the host"),
        ("hdfs://nowhere.invalid/x", "--input IN: .*UnknownHost.*; check the address"),
        ("webhdfs://127.0.0.1:1/x", "--input IN: .*Connection refused.*; check the address"),
        ("foo://host/x", PACKAGE),
        ("s3a://bucket/x", PACKAGE),
        ("dbfs:/x", PACKAGE),
        ("https://127.0.0.1:1/x", "--input IN: .*; Spark cannot read web addresses: download"),
        ("file:///nowhere-at-all", "--input IN: .*PATH_NOT_FOUND.*; name files that are there"),
        ("viewfs://cluster/x", "--input IN: .*ViewFs.*; expected a path, or a URI"),
        ("jar:file:x", "--input IN: .*URISyntaxException.*; expected a path, or a URI"),
    ],
)
def test_a_place_that_spark_cannot_read_is_told(spark: SparkSession, path: str, line: str) -> None:
    assert_told(lambda: spark.read.text(path).count(), line)
    assert_told(lambda: spark.read.format("binaryFile").load(path).count(), line)


def test_a_codec_that_spark_has_not_is_told_as_that_and_a_torn_file_as_torn(
    spark: SparkSession, tmp_path: Path
) -> None:
    pq.write_table(pa.table({"w": ["a"]}), tmp_path / "brotli.parquet", compression="brotli")
    read = spark.read.parquet(f"file:{tmp_path}/brotli.parquet")
    assert_told(read.collect, "--input IN: .*BrotliCodec.*; this Spark cannot decompress it; write the files with gzip")
    (tmp_path / "torn.gz").write_bytes(b"\x1f\x8b\x08\0\0")
    assert_told(
        spark.read.text(f"file:{tmp_path}").collect, "--input IN: .*torn.gz.*; name files that are there, whole"
    )


def test_a_library_that_workers_lack_is_told(spark: SparkSession) -> None:
    def task(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        import nothing_of_that_name  # noqa: F401

        yield from batches

    rows = spark.range(1).mapInArrow(task, "id bigint")
    assert_told(rows.collect, "Spark: .*nothing_of_that_name.*; install it in the workers' Python")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("java.lang.UnsatisfiedLinkError: /tmp/libzstd-jni-1.5.so: failed to map segment from shared object", NATIVE),
        ("java.lang.NoClassDefFoundError: Could not initialize class com.github.luben.zstd.Zstd", NATIVE),
        ("org.xerial.snappy.SnappyError: [FAILED_TO_LOAD_NATIVE_LIBRARY] /tmp/snappy-1.1.so", NATIVE),
        (
            "results (1230 KiB) is bigger than spark.driver.maxResultSize (1 KiB)",
            "Spark: .*; .*maxResultSize=0.*--num-shards",
        ),
        ("java.lang.OutOfMemoryError: Java heap space", "Spark: .*; if memory is too small.*--driver-memory"),
        ("SparkException: Python worker exited unexpectedly (crashed)", "Spark: .*; its memory may be too small"),
        ("ExecutorLostFailure (executor 1 exited caused by SIGKILL)", "Spark: .*; its memory may be too small"),
        ("java.io.IOException: No space left on device", "Spark: .*; make room .*SPARK_LOCAL_DIRS"),
        ('java.io.IOException: Cannot run program "/python": error=2', "Spark: .*; set PYSPARK_PYTHON"),
        ("[PYTHON_VERSION_MISMATCH] Python in worker has different version: 3.10", "Spark: .*; set PYSPARK_PYTHON"),
        ("[JVM_ATTRIBUTE_NOT_SUPPORTED] `sparkContext`", "Spark: .*; found a session of Spark Connect"),
        (
            "java.io.FileNotFoundException: /x (Permission denied)",
            "--input IN: .*; check that Spark's user may read it",
        ),
        (
            "java.nio.file.AccessDeniedException: s3a://b/x: 403 Forbidden",
            "--input IN: .*; check that Spark's user may",
        ),
        ("AccessControlException: SIMPLE authentication is not enabled", "--input IN: .*; check that Spark's user may"),
        (
            "java.lang.RuntimeException: native lz4 library not available",
            "--input IN: .*; this Spark cannot decompress",
        ),
        ("java.net.NoRouteToHostException: No route to host", "--input IN: .*; check the address"),
    ],
)
def test_a_failure_inside_a_file_that_could_not_be_read_is_told_by_its_cause(text: str, line: str) -> None:
    """Spark 4.3's words, as they follow its own of the file."""
    read = (
        "An error occurred while calling o1.collect.\n: [FAILED_READ_FILE.NO_HINT] while reading file file:/x\n\tat x\n"
    )

    def fail() -> None:
        raise RuntimeError(f"{read}Caused by: {text}\n\tat y")

    assert_told(fail, line)


def test_a_bug_is_no_users_error() -> None:
    assert user_error(RuntimeError("Caused by: java.lang.NullPointerException\n\tat x"), "IN") is None
    assert user_error(ZeroDivisionError("division by zero"), "IN") is None
