"""Row groups. Each is opened once for all lanes of a rank, by the thread that first needs it.

R rows of a row group.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import chain
from threading import Lock

from pipeline.dataset.decode import RowGroup, ShardError
from pipeline.dataset.manifest_file import PREPARE_AGAIN, ManifestError
from pipeline.dataset.unpacking import Int32, Places, Rows
from pipeline.shared.errors import one_line
from pipeline.shared.storage import Location
from training.reading.plan import Piece
from training.reading.remote import Stored


@dataclass(frozen=True)
class Opened:
    """A row group of the shard ``where``, and the order of all its rows."""

    where: Location
    row_group: RowGroup
    order_R: Int32

    def unpack(self, piece: Piece, places: Places, out: Rows) -> None:
        """Writes the piece's rows, in its order, to ``places`` of ``out``. Raises ManifestError for a wrong id."""
        try:
            self.row_group.unpack(self.order_R[piece.start : piece.stop], places, out)
        except ShardError as error:
            raise damaged(self.where, error) from None


def damaged(where: Location, error: Exception) -> ManifestError:
    """The error of a shard that is not as the manifest says."""
    return ManifestError(f"{where}: damaged or unreadable ({one_line(error)}); {PREPARE_AGAIN}")


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
