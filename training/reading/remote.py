"""Row groups of shards that lie elsewhere: fetched ahead, one request each, tried again where that fails, and cached.

Around every shard there are two requests more: whether it is there, and its footer.
"""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from threading import Event, Lock

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.decode import Layout, RowGroup, ShardError, stored_range
from pipeline.dataset.manifest_file import ManifestError, ShardInfo
from pipeline.shared.errors import one_line
from pipeline.shared.storage import Location
from training.reading.shard_cache import ShardCache

NUM_FETCHES = 16
"""Requests of a rank at the same time; as many as there usually are lanes."""

ATTEMPTS = 5
FIRST_PAUSE_S = 0.25
"""Before the second attempt; three times as long before each further one, and at random up to half as long."""

PATIENCE_S = 30
"""No attempt begins later than this after the first one; each may last as long as pipeline.shared.storage lets it."""

FOOTER_BYTES = 1 << 16
"""What is read of a shard's end at first: the footer of a hundred row groups."""

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
"""What no further attempt would change, in the words of the AWS SDK, and what would."""


@dataclass(frozen=True)
class Stored:
    """A row group's bytes as they are stored; ``content`` begins at ``begin`` of the file that ``metadata`` is of."""

    metadata: pq.FileMetaData
    begin: int
    content: bytes

    def decode(self, row_group: int, num_rows: int, layout: Layout) -> RowGroup:
        """Raises what ``RowGroup.decode`` raises."""
        content = memoryview(self.content)

        def read(offset: int, num_bytes: int) -> memoryview:
            return content[offset - self.begin : offset - self.begin + num_bytes]

        return RowGroup.decode(read, self.metadata, row_group, num_rows, layout)


class RemoteShard:
    """One shard, whose footer is fetched once. Threads may use it together."""

    def __init__(self, where: Location, info: ShardInfo, cache: ShardCache | None):
        self.where, self._info, self._cache = where, info, cache
        self._lock = Lock()
        self._read: Callable[[int, int], bytes] | None = None
        self._metadata: pq.FileMetaData | None = None

    def fetch(self, row_group: int, stop: Event, fresh: bool = False) -> Stored:
        """The row group's bytes; ``fresh``: not those that are kept here or in the cache, and these are replaced.

        Raises ManifestError when the bytes cannot be had. That is so for all others who have the same ``stop``, which
        is set then, unless it is this shard's fault. Raises ShardError or pa.ArrowException for a damaged footer.
        """
        with self._lock:  # others would fetch the same footer
            if self._metadata is None or fresh:
                self._metadata = self._footer(stop, fresh)
            metadata = self._metadata
        begin, end = stored_range(metadata, row_group)
        return Stored(metadata, begin, self._kept(f"{row_group}", begin, end, stop, fresh))

    def _footer(self, stop: Event, fresh: bool) -> pq.FileMetaData:
        size = self._info.bytes
        tail = self._kept("footer", max(0, size - FOOTER_BYTES), size, stop, fresh)
        length = int.from_bytes(tail[-8:-4], "little") + 8
        if length > len(tail):
            tail = self._range(size - length, size, stop)
        return pq.read_metadata(pa.BufferReader(tail))

    def _kept(self, what: str, begin: int, end: int, stop: Event, fresh: bool) -> bytes:
        """These bytes of the file, from the cache where it has them."""
        if self._cache is None:
            return self._range(begin, end, stop)
        name = f"{self._info.sha256}.{what}"
        if fresh:
            self._cache.remove(name)
        content = self._cache.get(name)
        if content is None:
            content = self._range(begin, end, stop)
            self._cache.put(name, content)
        return content

    def _range(self, begin: int, end: int, stop: Event) -> bytes:
        if not 0 <= begin < end <= self._info.bytes:
            raise ShardError(f"bytes {begin} to {end} of {self._info.bytes}, says its footer")

        def attempt() -> bytes:
            if self._read is None:
                self._read = self.where.reader()
            content = self._read(begin, end - begin)
            if len(content) != end - begin:
                raise OSError(f"{len(content)} of {end - begin} bytes came")
            return content

        return tried(attempt, str(self.where), stop)


RowGroupOf = tuple[RemoteShard, int]


@lru_cache(maxsize=4)
def remote_shards(dataset: Location, cache: ShardCache | None) -> Callable[[ShardInfo], RemoteShard]:
    """The shards of a dataset, each opened once a process: all epochs use the same footers."""
    return lru_cache(maxsize=_OPEN_SHARDS)(lambda info: RemoteShard(dataset / info.path, info, cache))


def tried(attempt: Callable[[], bytes], where: str, stop: Event) -> bytes:
    """What ``attempt`` returns, which is called again after an OSError, with growing pauses.

    Raises ManifestError: at once where that is of no use, or when somebody else sets ``stop``; else it sets ``stop``.
    """
    if stop.is_set():
        raise ManifestError(f"{where}: not read, since another request has failed for good")
    begin = time.monotonic()
    for number in count(1):
        try:
            return attempt()
        except OSError as error:
            reason = one_line(error)
            remedy = _remedy(error, reason)
        if remedy:
            raise ManifestError(f"{where}: cannot be read ({reason}); {remedy}")
        pause_s = FIRST_PAUSE_S * 3 ** (number - 1) * random.uniform(1, 1.5)
        took_s = time.monotonic() - begin
        if number == ATTEMPTS or took_s + pause_s > PATIENCE_S or stop.wait(pause_s):
            stop.set()
            raise ManifestError(
                f"{where}: cannot be read, tried {number} time(s) in {took_s:.0f} s ({reason}); "
                f"see that its server can be reached, and train again"
            )
    raise AssertionError


def _remedy(error: OSError, reason: str) -> str | None:
    """What the user can do about an error that will stay; None for one that may pass."""
    if isinstance(error, FileNotFoundError):
        return _PERMANENT["NO_SUCH_KEY"]
    if isinstance(error, PermissionError):
        return _PERMANENT["ACCESS_DENIED"]
    return next((remedy for code, remedy in _PERMANENT.items() if f"AWS Error {code} " in reason), None)


class FetchAhead:
    """Fetches row groups in the background, in the order in which they will be needed; ``close`` it at the end.

    There are no threads before the first one is expected.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(NUM_FETCHES, thread_name_prefix="fetch")
        self._stop = Event()
        self._lock = Lock()
        self._failure: ManifestError | None = None
        self._fetches: dict[RowGroupOf, Future[Stored]] = {}
        self._soon: list[Future[Stored]] = []

    def expect(self, soon: Sequence[RowGroupOf], later: Sequence[RowGroupOf]) -> None:
        """Begins to fetch these row groups, where that has not begun, and forgets all others.

        ``is_ready`` asks for those that are wanted ``soon``. Not while others ``take``.
        """
        with self._lock:
            self._fetches = {key: fetch for key, fetch in self._fetches.items() if key in {*soon, *later}}
        self._soon = [self._begun(*key) for key in soon]
        for key in later:
            self._begun(*key)

    def is_ready(self) -> bool:
        """Whether nobody would have to wait for what is wanted soon."""
        return all(fetch.done() for fetch in self._soon)

    def take(self, shard: RemoteShard, row_group: int) -> Stored:
        """Waits for the row group; it is fetched once for all who take it. Raises what ``RemoteShard.fetch`` does."""
        try:
            return self._begun(shard, row_group).result()
        except ManifestError as error:
            raise self._failure or error from None

    def close(self) -> None:
        """Waits for the requests that are under way, and no longer; who waits for another gets an error."""
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def _begun(self, shard: RemoteShard, row_group: int) -> Future[Stored]:
        key = shard, row_group
        with self._lock:
            if key not in self._fetches:
                self._fetches[key] = self._pool.submit(self._fetch, shard, row_group)
            return self._fetches[key]

    def _fetch(self, shard: RemoteShard, row_group: int) -> Stored:
        """Remembers the first failure for good, for which all others give up: it is the one to be told."""
        try:
            return shard.fetch(row_group, self._stop)
        except ManifestError as error:
            if self._stop.is_set() and self._failure is None:
                self._failure = error
            raise
