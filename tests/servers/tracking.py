"""MLflow's own tracking server, without its pages, as a process of its own on this machine alone.

``mlflow server`` needs more of MLflow than its client has; the application that it runs does not.
``python tests/servers/tracking.py PORT DATABASE ARTIFACTS``
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a server that keeps everything in ``folder``."""
    port, log = free_port(), folder / "server.log"
    arguments = [str(port), f"sqlite:///{folder}/mlflow.db", str(folder / "served")]
    with log.open("wb") as output:
        process = subprocess.Popen([sys.executable, __file__, *arguments], stdout=output, stderr=subprocess.STDOUT)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait_for(address, process, log)
        yield address
    finally:
        process.terminate()
        process.wait(10)


def _wait_for(address: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            OPENER.open(f"{address}/health", timeout=5).close()
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(f"no tracking server after 60 s: {log.read_text()}")


if __name__ == "__main__":
    os.environ |= {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "_MLFLOW_SERVER_FILE_STORE": sys.argv[2],
        "_MLFLOW_SERVER_REGISTRY_STORE": sys.argv[2],
        "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
        "_MLFLOW_SERVER_ARTIFACT_DESTINATION": sys.argv[3],
        "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
    }
    from mlflow.server import app
    from werkzeug.serving import run_simple

    run_simple("127.0.0.1", int(sys.argv[1]), app, threaded=True)
