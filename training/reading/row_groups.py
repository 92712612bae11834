"""Row groups. Each is opened once for all lanes of a rank, by the thread that first needs it.

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
"""A row group, and the order, (R,), of all its rows."""


class LazyRowGroup:
    """A row group that is opened by the first ``get``. Other threads that call ``get`` wait until it is open."""

    def __init__(self, opened: Callable[[Future[Stored] | None], Opened], fetch: Future[Stored] | None):
        """``opened(fetch)`` opens the row group. ``fetch`` is None for a local file."""
        self._opened, self._fetch = opened, fetch
        self._lock = Lock()
        self._found: Opened | None = None

    def must_wait(self) -> bool:
        """Whether ``get`` would wait for the network."""
        fetch = self._fetch
        return fetch is not None and not fetch.done()

    def get(self) -> Opened:
        """The open row group. Raises ManifestError in every thread if it cannot be opened."""
        with self._lock:
            if self._found is None:
                self._found = self._opened(self._fetch)
                self._fetch = None  # frees the bytes as they are stored
            return self._found


Pieces = Sequence[Piece]
Part = tuple[Piece, LazyRowGroup]


def row_groups(
    lanes: Sequence[Pieces], chunks: Iterable[Sequence[Pieces]], begin: Callable[[Piece], LazyRowGroup]
) -> Iterator[list[list[Part]]]:
    """Yields ``chunks``, which contain the pieces of ``lanes``, with the row group of every piece.

    ``begin`` is called once for every row group, at its first piece. A row group is kept as long as some lane still
    needs rows of it.
    """
    rows_left = Counter[tuple[int, int]]()
    for piece in chain.from_iterable(lanes):
        rows_left[piece.key] += piece.size
    kept: dict[tuple[int, int], LazyRowGroup] = {}

    def of(piece: Piece) -> LazyRowGroup:
        found = kept.get(piece.key) or begin(piece)
        kept[piece.key] = found
        rows_left[piece.key] -= piece.size
        if not rows_left[piece.key]:
            del kept[piece.key]
        return found

    for chunk in chunks:
        yield [[(piece, of(piece)) for piece in lane] for lane in chunk]
