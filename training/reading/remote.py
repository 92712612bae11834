"""Row groups of remote shards, fetched with one request each, with retries and a cache.

Every shard takes two more requests: one to see that it exists, and one for its footer.
"""

import hashlib
import json
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from threading import Event, Lock
from typing import NamedTuple, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    stop_before_delay,
    wait_exponential,
    wait_random,
)

from pipeline.dataset.decode import ShardError, stored_range
from pipeline.dataset.manifest_file import ManifestError, ShardInfo
from pipeline.shared.errors import one_line
from pipeline.shared.storage import Location
from training.reading.shard_cache import ShardCache

NUM_FETCHES = 16
"""A rank's concurrent requests: the usual number of lanes."""

ATTEMPTS = 5
FIRST_PAUSE_S = 0.25
"""The pause before the second attempt. Each further pause is three times as long. Up to a second is added at random."""

PATIENCE_S = 30
"""No attempt begins later than this after the first one. pipeline.shared.storage sets the timeout of an attempt."""

FOOTER_BYTES = 1 << 16
"""Bytes at a shard's end that are read first: enough for the footer of a hundred row groups."""

_OPEN_SHARDS = 1024
_PERMANENT = {
    "ACCESS_DENIED": "check your credentials for it",
    "FORBIDDEN": "check your credentials for it",
    "INVALID_ACCESS_KEY_ID": "check your credentials for it",
    "SIGNATURE_DOES_NOT_MATCH": "check your credentials for it",
    "EXPIRED_TOKEN": "renew your credentials",
    "NO_SUCH_KEY": "run prepare again with --overwrite",
    "NO_SUCH_BUCKET": "check the address",
}
"""Permanent errors of the AWS SDK, which are not retried, and the user's remedy for each."""


class Stored(NamedTuple):
    """The metadata of a file, and the bytes of a row group's ``stored_range``."""

    metadata: pq.FileMetaData
    content: bytes

    def read(self, offset: int, num_bytes: int) -> bytes:
        """Acts as a reader of the file, for the ``stored_range`` only."""
        return self.content


class Requests:
    """The requests of a rank. When one gives up, the others fail too, without another attempt.

    The first ``begin`` starts the threads; ``close`` ends them.
    """

    def __init__(self) -> None:
        self.num_begun = 0
        """Row groups that were fetched or are being fetched."""
        self._pool = ThreadPoolExecutor(NUM_FETCHES, thread_name_prefix="fetch")
        self._ended = Event()
        self._failure: ManifestError | None = None

    def begin(self, shard: "RemoteShard", row_group: int) -> Future[Stored]:
        """Fetches the row group in the background."""
        self.num_begun += 1
        return self._pool.submit(shard.fetch, row_group, self)

    def with_retries(self, attempt: Callable[[], bytes], where: str) -> bytes:
        """Returns what ``attempt`` returns. Retries after an OSError, with exponential backoff.

        Raises ManifestError when it gives up: after a permanent error, at once.
        """

        def unless_ended() -> bytes:
            if self._ended.is_set():
                raise self._failure or ManifestError(f"{where}: not read, because reading has stopped")
            return attempt()

        def give_up(last: RetryCallState) -> NoReturn:
            assert last.outcome
            reason = one_line(last.outcome.exception())
            self._failure = self._failure or ManifestError(
                f"{where}: cannot be read, tried {last.attempt_number} time(s) in {last.seconds_since_start:.0f} s "
                f"({reason}); see that its server can be reached, and train again"
            )
            self._ended.set()
            raise self._failure

        attempts = Retrying(
            retry=retry_if_exception(lambda error: isinstance(error, OSError) and not _remedy(error)),
            stop=stop_after_attempt(ATTEMPTS) | stop_before_delay(PATIENCE_S),
            wait=wait_exponential(FIRST_PAUSE_S, exp_base=3) + wait_random(0, 4 * FIRST_PAUSE_S),
            sleep=sleep_using_event(self._ended),
            retry_error_callback=give_up,
        )
        try:
            return attempts(unless_ended)
        except OSError as error:
            raise ManifestError(f"{where}: cannot be read ({one_line(error)}); {_remedy(error)}") from None

    def close(self) -> None:
        """Waits for the requests in progress, and cancels those that have not started."""
        self._ended.set()
        self._pool.shutdown(cancel_futures=True)


def _remedy(error: OSError) -> str | None:
    """The user's remedy for a permanent error; None for a transient error."""
    if isinstance(error, FileNotFoundError):
        return _PERMANENT["NO_SUCH_KEY"]
    if isinstance(error, PermissionError):
        return _PERMANENT["ACCESS_DENIED"]
    return next((remedy for code, remedy in _PERMANENT.items() if f"AWS Error {code} " in one_line(error)), None)


class RemoteShard:
    """One shard of ``dataset``, whose footer is fetched once. Thread-safe."""

    def __init__(self, dataset: Location, info: ShardInfo, cache: ShardCache | None):
        self.where, self._info, self._cache = dataset / info.path, info, cache
        # Not the SHA-256 alone, which nobody compares with the bytes: another dataset's manifest may list it too.
        parts = [str(dataset), os.environ.get("AWS_ENDPOINT_URL", ""), info.path, info.sha256]
        self._key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
        self._lock = Lock()
        self._read: Callable[[int, int], bytes] | None = None
        self._metadata: pq.FileMetaData | None = None

    def fetch(self, row_group: int, requests: Requests, fresh: bool = False) -> Stored:
        """The row group's bytes. ``fresh`` fetches footer and bytes again, here and in the cache.

        Raises ManifestError if the bytes cannot be fetched, ShardError or pa.ArrowException if the footer is damaged.
        """
        with self._lock:  # otherwise other threads would fetch the same footer
            if self._metadata is None or fresh:
                self._metadata = self._footer(requests, fresh)
            metadata = self._metadata
        begin, end = stored_range(metadata, row_group)
        return Stored(metadata, self._kept(f"{row_group}", begin, end, requests, fresh))

    def _footer(self, requests: Requests, fresh: bool) -> pq.FileMetaData:
        size = self._info.bytes
        tail = self._kept("footer", max(0, size - FOOTER_BYTES), size, requests, fresh)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            tail = self._range(size - length, size, requests)
        return pq.read_metadata(pa.BufferReader(tail))

    def _kept(self, what: str, begin: int, end: int, requests: Requests, fresh: bool) -> bytes:
        """These bytes of the file, from the cache if they are there."""
        if self._cache is None:
            return self._range(begin, end, requests)
        name = f"{self._key}.{what}"
        if fresh:
            self._cache.remove(name)
        content = self._cache.get(name)
        if content is None:
            content = self._range(begin, end, requests)
            self._cache.put(name, content)
        return content

    def _range(self, begin: int, end: int, requests: Requests) -> bytes:
        if not 0 <= begin < end <= self._info.bytes:
            raise ShardError(f"its footer places it at bytes {begin} to {end} of {self._info.bytes}")

        def attempt() -> bytes:
            if self._read is None:
                self._read = self.where.reader()
            content = self._read(begin, end - begin)
            if len(content) != end - begin:
                raise OSError(f"received {len(content)} of {end - begin} bytes")
            return content

        return requests.with_retries(attempt, str(self.where))


@lru_cache(maxsize=4)
def remote_shards(dataset: Location, cache: ShardCache | None) -> Callable[[ShardInfo], RemoteShard]:
    """The shards of a dataset. Each is opened once per process: all epochs use the same footers."""
    return lru_cache(maxsize=_OPEN_SHARDS)(lambda info: RemoteShard(dataset, info, cache))
