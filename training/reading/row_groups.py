"""Row groups, each opened once for all lanes of a rank, by the thread that first needs it.

R rows of a row group.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from itertools import chain
from threading import Lock

from pipeline.dataset.decode import RowGroup
from pipeline.dataset.unpacking import Int32
from training.reading.plan import Piece
from training.reading.remote import Stored

Opened = tuple[RowGroup, Int32]
"""A row group, and the order (R,) of all its rows."""


class Opening:
    """A row group that is opened when first used, by one thread; others that use it then wait for that."""

    def __init__(self, opened: Callable[[Future[Stored] | None], Opened], fetch: Future[Stored] | None):
        """``fetch``, which ``opened`` is given, is under way; None for a file of this machine."""
        self._opened, self._fetch = opened, fetch
        self._lock = Lock()
        self._found: Opened | None = None

    def must_wait(self) -> bool:
        """Whether ``get`` would wait for the network."""
        fetch = self._fetch
        return fetch is not None and not fetch.done()

    def get(self) -> Opened:
        """Raises ManifestError."""
        with self._lock:
            if self._found is None:
                self._found = self._opened(self._fetch)
                self._fetch = None  # and with it the bytes as they are stored
            return self._found


Part = tuple[Piece, Opening]


def row_groups(
    lanes: Sequence[Sequence[Piece]], chunks: Iterable[Sequence[Sequence[Piece]]], begin: Callable[[Piece], Opening]
) -> Iterator[list[list[Part]]]:
    """``chunks``, into which the pieces of ``lanes`` are cut, and the row group of every piece.

    Each is begun once, when its first piece comes, and kept until no lane has rows of it left.
    """
    rows_left = Counter[tuple[int, int]]()
    for piece in chain.from_iterable(lanes):
        rows_left[piece.key] += piece.size
    kept: dict[tuple[int, int], Opening] = {}

    def of(piece: Piece) -> Opening:
        found = kept.get(piece.key) or begin(piece)
        kept[piece.key] = found
        rows_left[piece.key] -= piece.size
        if not rows_left[piece.key]:
            del kept[piece.key]
        return found

    for chunk in chunks:
        yield [[(piece, of(piece)) for piece in lane] for lane in chunk]
