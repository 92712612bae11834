"""What Spark's Java needs from the machine of the driver. What is missing is replaced, or refused in one line.

Under spark-submit, Java starts before Python; there tools/spark-env.sh does the first part of this.
"""

import os
import pwd
import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkRuntimeError
from pyspark.find_spark_home import _find_spark_home

from pipeline.shared.errors import InputError

CONNECT = {
    "SPARK_REMOTE": "",
    "SPARK_CONNECT_MODE_ENABLED": "",
    "SPARK_API_MODE": "connect",
    "SPARK_CONNECT_MODE": "1",
    "PYSPARK_REMOTE_INIT_CONF_LEN": "",
}
"""Variables that make pyspark use Spark Connect, with the value that does so; "" is any. spark-submit sets the last."""
NATIVE_CODE = ("ZstdTempFolder", "org.xerial.snappy.tempdir")
"""Java's settings of the folders into which zstd and snappy unpack their native code. lz4 and netty can do without."""


def refuse_connect(environ: Mapping[str, str]) -> None:
    """Raises InputError if pyspark would use Spark Connect. It tells no value: SPARK_REMOTE may have a token."""
    for name, value in CONNECT.items():
        if name in environ and value in ("", environ[name].lower()):
            found = "spark.remote or spark.api.mode" if name.startswith("PYSPARK") else name
            raise InputError(
                f"{found}: is set, so Spark Connect is found where Spark itself is expected; unset it, or name the "
                f"cluster's master with spark-submit --master"
            )


def start_java() -> None:
    """Starts Spark's Java, unless spark-submit or the caller has. Raises InputError if it does not start."""
    refuse_connect(os.environ)
    if "PYSPARK_GATEWAY_PORT" not in os.environ and SparkContext._gateway is None:
        if not (has_address(socket.gethostname()) or "SPARK_LOCAL_IP" in os.environ):
            os.environ.setdefault("SPARK_LOCAL_HOSTNAME", "127.0.0.1")
        refuse_credentials_without_address(socket.gethostname(), os.environ)
        if not (has_name(os.getuid()) or spark_needs_no_name()):
            raise InputError(
                f"user id {os.getuid()}: has no name, and Spark's Java needs one; add it to /etc/passwd "
                f"(docker run -v /etc/passwd:/etc/passwd:ro), preload libnss_wrapper.so, or run make setup's Spark"
            )
    try:
        SparkContext._ensure_initialized()
    except PySparkRuntimeError as error:
        if error.getCondition() != "JAVA_GATEWAY_EXITED":
            raise
        raise InputError(
            "Spark's Java did not start, see above; it needs Java 17 or newer, which JAVA_HOME names"
        ) from None


def refuse_credentials_without_address(host: str, environ: Mapping[str, str]) -> None:
    """Raises InputError if Spark would look up this machine's name in vain: with AWS's credentials it does."""
    credentials = environ.get("AWS_ACCESS_KEY_ID") and environ.get("AWS_SECRET_ACCESS_KEY")
    if credentials and host.strip("0123456789.") and not has_address(host):
        raise InputError(
            f"host name {host}: found no address of it, which Spark needs if AWS_ACCESS_KEY_ID is set; add the name to "
            f"/etc/hosts, or unset AWS_ACCESS_KEY_ID"
        )


def has_address(host: str) -> bool:
    """Whether Java can look up a name. It takes a name of digits for an address."""
    try:
        return bool(host.strip("0123456789.") and socket.getaddrinfo(host, None))
    except OSError:
        return False


def has_name(user: int) -> bool:
    try:
        return bool(pwd.getpwuid(user))
    except KeyError:
        return False


def spark_needs_no_name() -> bool:
    """Whether this Spark reads the spark-env.sh of make setup."""
    conf = Path(os.environ.get("SPARK_CONF_DIR") or Path(_find_spark_home(), "conf"))
    try:
        return "jdk.security.auth" in (conf / "spark-env.sh").read_text()
    except OSError:
        return False


def prepare_folders() -> None:
    """Checks Spark's temporary folders. Lets Java unpack native code elsewhere if its own folder is mounted noexec.

    Java has to be running. Raises InputError if Spark cannot write to any of its folders.
    """
    given = SparkConf()
    jvm: Any = SparkContext._jvm
    system = jvm.java.lang.System
    temporary = system.getProperty("java.io.tmpdir")
    folders = os.environ.get("SPARK_LOCAL_DIRS") or given.get("spark.local.dir") or temporary
    # YARN and Kubernetes choose folders of their own, later.
    if str(given.get("spark.master", "local")).startswith("local") and not any(map(may_write, folders.split(","))):
        raise InputError(
            f"{folders}: no file can be written there, and Spark needs temporary ones; set SPARK_LOCAL_DIRS to a folder"
        )
    if not may_run(temporary):
        others = (tempfile.gettempdir(), "/var/tmp", os.path.expanduser("~"), os.getcwd())
        folder = next((folder for folder in others if may_write(folder) and may_run(folder)), temporary)
        for name in NATIVE_CODE:
            if system.getProperty(name) is None:
                system.setProperty(name, folder)


def may_write(folder: str) -> bool:
    """Whether there is room for files in a folder, which is made if it is missing, as Spark does."""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            return file.write(b"0") == 1
    except OSError:
        return False


def may_run(folder: str) -> bool:
    """Whether programs in a folder may be run: it is there, and not mounted noexec."""
    try:
        return not os.statvfs(folder).f_flag & os.ST_NOEXEC
    except OSError:
        return False
