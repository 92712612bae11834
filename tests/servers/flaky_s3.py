"""A server in front of a real S3 server that is slow and fails as networks do: 503, resets, half bodies, wrong bytes.

Which GETs fail follows from their file and range, so it is the same whatever their order: of ``share`` of them the
first answer is a failure. A process of its own; ``python tests/servers/flaky_s3.py PORT UPSTREAM_PORT LOG``.
"""

import hashlib
import http.client
import json
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock
from typing import Any
from urllib.parse import unquote, urlsplit

CONTROL = "/flaky-control"
FAILURES = ("503", "reset", "truncated")
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class Flaky:
    """A running server: its address, the log of the GETs it has answered, and its process."""

    address: str
    log: Path
    process: "subprocess.Popen[bytes]"

    def behave(self, **behaviour: Any) -> None:
        """From now on: ``delay_ms`` before each answer; ``share`` (0 to 1) of GETs whose first answer is a failure;
        ``damage_first``: a bit of each first answer is wrong; ``always``: the failure of every GET (also "silent" and
        "403"); ``key``: what the credentials of requests must contain. Starts a new log.
        """
        self.log.write_bytes(b"")
        body = json.dumps(behaviour).encode()
        request = urllib.request.Request(self.address + CONTROL, data=body, method="PUT")
        OPENER.open(request, timeout=10).close()

    def requests(self, suffix: str = ".parquet") -> list[dict[str, Any]]:
        """The GETs of files that end so, since ``behave``: path, range, result, begin, end."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines()]
        return [line for line in lines if line["path"].endswith(suffix)]


@contextmanager
def in_front_of(upstream: str, log: Path) -> Iterator[Flaky]:
    """A server in front of the one at ``upstream``; it behaves until told otherwise."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log.write_bytes(b"")
    process = subprocess.Popen([sys.executable, __file__, str(port), str(urlsplit(upstream).port), str(log)])
    flaky = Flaky(f"http://127.0.0.1:{port}", log, process)
    try:
        for _ in range(100):
            try:
                flaky.behave()
                break
            except OSError:
                time.sleep(0.1)
        yield flaky
    finally:
        process.kill()
        process.wait(10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    upstream_port = 0
    log_file = Path()
    behaviour: dict[str, Any]
    seen: Counter[tuple[str, str]]
    lock = Lock()
    record: dict[str, Any] = {}  # noqa: RUF012
    """What the log will say of the GET that is answered; empty once it says so."""

    def do_PUT(self) -> None:
        assert self.path == CONTROL, "write to the server behind"
        type(self).behaviour = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).seen = Counter()
        self._answer(200, {}, b"")

    def do_GET(self) -> None:
        begin = time.monotonic()
        asked = unquote(urlsplit(self.path).path), self.headers.get("Range", "")
        with self.lock:
            self.seen[asked] += 1
            first = self.seen[asked] == 1
        failure = self.behaviour.get("always", "")
        number = int(hashlib.sha256((Path(asked[0]).name + asked[1]).encode()).hexdigest(), 16)
        if not failure and first and number % 100 < 100 * self.behaviour.get("share", 0):
            failure = FAILURES[number // 100 % len(FAILURES)]
        if first and self.behaviour.get("damage_first"):
            failure = "damaged"
        self.record = {"path": asked[0], "range": asked[1], "result": failure or "ok", "begin": begin}
        time.sleep(self.behaviour.get("delay_ms", 0) / 1000)
        try:
            self._pass_on(failure)
        finally:
            self._log()

    def do_HEAD(self) -> None:
        time.sleep(self.behaviour.get("delay_ms", 0) / 1000)
        self._pass_on("silent" if self.behaviour.get("always") == "silent" else "")

    def _pass_on(self, failure: str) -> None:
        key = self.behaviour.get("key")
        if failure == "silent":
            time.sleep(600)
        if failure == "reset":
            self._log()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
            return
        if failure == "503" or failure == "403" or (key and key not in self.headers.get("Authorization", "")):
            code = "SlowDown" if failure == "503" else "AccessDenied"
            text = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
            self._answer(503 if failure == "503" else 403, {"Content-Type": "application/xml"}, text)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.upstream_port, timeout=30)
        upstream.request(self.command, self.path, None, dict(self.headers))
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        headers = {name: value for name, value in answer.getheaders() if name.lower() not in ("connection", "date")}
        if failure == "damaged" and content:
            middle = len(content) // 2
            content = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        if failure == "truncated":
            self._answer(answer.status, headers, content, len(content) // 2)
            self.close_connection = True
        else:
            self._answer(answer.status, headers, content)

    def _log(self) -> None:
        """Once, and before anything is sent: whoever has the answer finds the request in the log."""
        if self.record:
            with self.lock, self.log_file.open("a") as log:
                log.write(json.dumps({**self.record, "end": time.monotonic()}) + "\n")
            self.record = {}

    def _answer(self, status: int, headers: dict[str, str], content: bytes, sent: int | None = None) -> None:
        self._log()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            if name.lower() != "transfer-encoding":
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:sent])

    def log_message(self, *_: object) -> None:
        pass


if __name__ == "__main__":
    _Handler.upstream_port, _Handler.log_file = int(sys.argv[2]), Path(sys.argv[3])
    ThreadingHTTPServer.request_queue_size = 128
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
