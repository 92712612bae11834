"""A real S3 server (moto's) as a process of its own, on this machine alone."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "shardvec-tests"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def server(log: Path, **environment: str) -> Iterator[str]:
    """The address of a server with one empty bucket; ``environment`` holds moto's own settings."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env={**os.environ, **CREDENTIALS, **environment}
        )
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process, log)
        request = urllib.request.Request(f"{address}/{BUCKET}", method="PUT", headers={"Host": "s3.amazonaws.com"})
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10).close()
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        assert process.poll() is None, log.read_text()
        try:
            opener.open(f"{address}/moto-api/", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no S3 server after 30 s: {log.read_text()}")
