"""Turns those of Spark's exceptions that the user can fix into an InputError of one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JNetworkError

from pipeline.shared.errors import InputError, one_line

_OURS = re.compile(r"^pipeline\.(?:shared\.errors\.Input|dataset\.manifest_file\.Manifest)Error: (.*)$", re.MULTILINE)
_MEMORY = (
    "if memory is too small: a line of text is held there as a whole, and so is the vocabulary; give more with "
    "spark-submit --driver-memory 4g, on a cluster --executor-memory, break the longest lines, or set --max-vocab"
)
_INPUT = "--input {}: "
_REMEDIES = (
    (
        r"UnsatisfiedLinkError|FAILED_TO_LOAD_NATIVE_LIBRARY|"
        r"NoClassDefFoundError: Could not initialize class (?:com\.github\.luben|org\.xerial|net\.jpountz)",
        "Spark: ",
        "Java could not load native code from its temporary folder: if /tmp is mounted noexec, name another with "
        "spark-submit --driver-java-options -Djava.io.tmpdir=FOLDER, on a cluster also "
        "--conf spark.executor.extraJavaOptions=-Djava.io.tmpdir=FOLDER",
    ),
    (
        r"bigger than spark\.driver\.maxResultSize",
        "Spark: ",
        "every task sends the driver a few lines, not the vocabulary: give spark-submit "
        "--conf spark.driver.maxResultSize=0, or fewer shards with --num-shards",
    ),
    (r"OutOfMemoryError", "Spark: ", _MEMORY),
    (
        r"Python worker (?:exited unexpectedly|failed to connect back)|ExecutorLostFailure|Container killed",
        "Spark: ",
        "its memory may be too small: use fewer cores, as in spark-submit --master 'local[1]', or on a cluster give a "
        "larger spark.executor.memoryOverhead",
    ),
    (
        r"No space left on device|Disk quota exceeded|[Ff]ailed to (?:create|get) a temp dir|Read-only file system",
        "Spark: ",
        "make room where Spark keeps temporary files (SPARK_LOCAL_DIRS names other folders), and on --output",
    ),
    (
        r"Cannot run program|PYTHON_VERSION_MISMATCH|Python in worker has different version",
        "Spark: ",
        "set PYSPARK_PYTHON to a Python that all machines have, of the driver's version",
    ),
    (r"ModuleNotFoundError|ImportError", "Spark: ", "install it in the workers' Python, which PYSPARK_PYTHON names"),
    (
        r"JVM_ATTRIBUTE_NOT_SUPPORTED|ONLY_SUPPORTED_WITH_SPARK_CONNECT",
        "Spark: ",
        "found a session of Spark Connect, expected one of this process; unset SPARK_REMOTE",
    ),
    (
        r"No FileSystem for scheme|Class org\.apache\.hadoop\.fs\.\S+ not found",
        _INPUT,
        "add the package of its file system, as in spark-submit --packages org.apache.hadoop:hadoop-aws:... for s3a://",
    ),
    (
        r"Incomplete HDFS URI",
        _INPUT,
        "name the host, as in hdfs://NAMENODE:8020/..., or set fs.defaultFS in HADOOP_CONF_DIR's core-site.xml",
    ),
    (
        r"URISyntaxException|Invalid path for the|ViewFs: ",
        _INPUT,
        "expected a path, or a URI of Spark's such as hdfs://NAMENODE:8020/folder",
    ),
    (r"HttpsFileSystem|HttpFileSystem", _INPUT, "Spark cannot read web addresses: download the file and name the copy"),
    (
        r"(?:AccessControl|AccessDenied)\w*Exception|Permission denied|Forbidden",
        _INPUT,
        "check that Spark's user may read it, and the keys of an object store",
    ),
    (
        r"(?:UnknownHost|Connect|NoRouteToHost|SocketTimeout|ConnectTimeout)Exception",
        _INPUT,
        "check the address and access",
    ),
    (
        r"native \w+ library not available|\w+Codec\w* (?:was )?not found|Cannot find codec|without native",
        _INPUT,
        "this Spark cannot decompress it; write the files with gzip, snappy or zstd",
    ),
    (
        r"FILE_NOT_EXIST",
        _INPUT,
        "a worker does not see the file; it must lie on storage that all machines share, and stay",
    ),
    (r"PATH_NOT_FOUND|FAILED_READ_FILE", _INPUT, "name files that are there, whole, and of one type"),
)
"""A pattern that a line of Spark's message matches, what the line begins with, and the remedy. The first one counts."""


@contextmanager
def input_errors(given: str) -> Iterator[None]:
    """Raises an exception of the block as the InputError that ``user_error`` makes of it; others as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (known := user_error(error, given)) is None:
            raise
        raise known from None


def user_error(error: BaseException, given: str) -> InputError | None:
    """The InputError to raise instead of ``error``; None for a bug. ``given`` is the input as the user named it.

    Spark passes on a Python worker's exception as text, so our own InputError is found by its name in that text.
    """
    if isinstance(error, Py4JNetworkError | ConnectionError):
        return InputError(f"Spark's Java ended early; {_MEMORY}")
    text = str(error)
    if ours := _OURS.search(text):
        return InputError(ours[1])
    for sign, where, remedy in _REMEDIES:
        if found := re.search(f".*(?:{sign}).*", text):
            line = one_line(found[0].strip().removeprefix("Caused by").strip(": "))
            return InputError(f"{where.format(given)}{line}; {remedy}")
    return None
