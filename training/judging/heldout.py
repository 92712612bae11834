"""Held-out examples, and the losses of two models on them over the words that both know.

Every published version keeps its corpus' held-out examples, so that later versions are judged on the same lines.

B examples, L places of each (contexts, then negatives, then 0), V words, D dimensions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.dataset.decode import UNREADABLE, Layout, RowGroup, ShardError
from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.dataset.vocab import Vocab, VocabError
from pipeline.shared.compiled import compiled_fast
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import atomic_write
from pipeline.shared.storage import Location
from training.model.kernels.columns import slopes_and_losses
from training.vectors.compare import rows_in
from training.vectors.run_files import VOCAB
from training.vectors.word_vectors import Tables

HELDOUT = "heldout.parquet"

MAX_ROWS = 20_000
"""Enough for a standard error of the loss below 0.5 %, and of two models' difference far below; 2 MB."""

MAX_LEN = 2**15 - 1
"""The most places that prepare allows in a row."""

SCHEMA = pa.schema(
    [
        pa.field("center", pa.int32()),
        pa.field("contexts_negatives", pa.list_(pa.int32())),
        pa.field("num_contexts", pa.int32()),
    ]
)

NOTHING_HELD_OUT = "found no held-out examples, expected some to judge by; prepare with a holdout such as 0.01"

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Heldout:
    """Examples in ids of ``words`` (V): center (B,), contexts_negatives (B, L), num_contexts (B,), all int32.

    Id 0, <unk>, occurs in no example, so it marks empty places.
    """

    words: list[str]
    center_B: Int32
    contexts_negatives_BL: Int32
    num_contexts_B: Int32

    @classmethod
    def of_dataset(cls, dataset: str | Path, max_rows: int = MAX_ROWS) -> "Heldout":
        """The examples that a dataset holds out: at most ``max_rows``, evenly spaced.

        Reads the row groups that contain them, and verifies the checksums. Raises ManifestError, and InputError when
        nothing is held out.
        """
        manifest = Manifest.load(dataset)
        rows = read_rows(dataset, manifest, max_rows)
        return cls(manifest.read_vocab(dataset).words.to_pylist(), *rows)

    @classmethod
    def load(cls, published: Path) -> "Heldout":
        """Reads what ``write`` wrote to a published version's folder. Raises InputError if it is missing or damaged."""
        path = published / HELDOUT
        try:
            words = Vocab.read(published / VOCAB).words.to_pylist()
            with pq.ParquetFile(path) as file:
                if (found := file.metadata.num_rows) > MAX_ROWS:
                    raise ShardError(f"found {found:,} rows, expected at most {MAX_ROWS:,}")
                table = file.read().combine_chunks()
            if not table.schema.equals(SCHEMA) or any(column.null_count for column in table.columns):
                raise ShardError(f"found columns {', '.join(map(str, table.schema))}, or nulls in them")
            table.validate(full=True)
            center_B, num_contexts_B = (table[name].to_numpy() for name in ("center", "num_contexts"))
            lists = table["contexts_negatives"].combine_chunks()
            ids = lists.flatten().to_numpy()
            lengths_B = pc.list_value_length(lists).to_numpy()
            _check(center_B, ids, lengths_B, num_contexts_B, len(words))
        except (*UNREADABLE, VocabError) as error:
            reason = one_line(error)
            raise InputError(
                f"{path}: cannot be read ({reason}); bring it back, or set heldout_increase to null"
            ) from None
        targets_BL = np.zeros((len(center_B), lengths_B.max(initial=0)), np.int32)
        targets_BL[np.arange(targets_BL.shape[1]) < lengths_B[:, None]] = ids
        return cls(words, center_B, targets_BL, num_contexts_B)

    def write(self, folder: Path) -> None:
        """Writes FOLDER/heldout.parquet, atomically, without the empty places; equal bytes for equal examples.

        ``load`` reads it together with the folder's vocab.parquet. Raises OSError.
        """
        real_BL = self.contexts_negatives_BL > 0
        offsets = np.concatenate([[0], np.cumsum(real_BL.sum(1))]).astype(np.int32)
        lists = pa.ListArray.from_arrays(offsets, self.contexts_negatives_BL[real_BL])
        columns = {"center": self.center_B, "contexts_negatives": lists, "num_contexts": self.num_contexts_B}
        with atomic_write(folder / HELDOUT) as file:
            pq.write_table(pa.table(columns, schema=SCHEMA), file, compression="zstd")


def _check(center_B: Int32, ids: Int32, lengths_B: Int32, num_contexts_B: Int32, num_words: int) -> None:
    """Raises ShardError unless the ids are words', and every example has places for its contexts."""
    for values in (center_B, ids):
        if values.size and not 1 <= values.min() <= values.max() < num_words:
            found = f"found ids from {values.min()} to {values.max()}"
            raise ShardError(f"{found}, expected 1 to {num_words - 1}, as {VOCAB} has")
    if lengths_B.max(initial=0) > MAX_LEN or not ((num_contexts_B >= 0) & (num_contexts_B <= lengths_B)).all():
        raise ShardError(f"found lists that do not fit their num_contexts, or of more than {MAX_LEN:,} places")


def read_rows(dataset: str | Path, manifest: Manifest, max_rows: int = MAX_ROWS) -> tuple[Int32, Int32, Int32]:
    """The arrays of ``Heldout.of_dataset``, without the words."""
    folder, shards = Location.of(dataset), manifest.select(0, "heldout")
    total = sum(shard.rows for shard in shards)
    if not total:
        raise InputError(f"{dataset}: {NOTHING_HELD_OUT}")
    num_wanted = min(total, max_rows)
    wanted = np.array([index * total // num_wanted for index in range(num_wanted)])
    ends = np.cumsum([shard.rows for shard in shards])
    parts = [
        _rows_of_shard(folder / shard.path, manifest, shard.rows, part - (end - shard.rows))
        for shard, end, part in zip(shards, ends, np.split(wanted, np.searchsorted(wanted, ends[:-1])), strict=True)
    ]
    center_B, targets_BL, num_contexts_B = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return center_B, targets_BL, num_contexts_B


def _rows_of_shard(
    path: Location, manifest: Manifest, num_rows: int, wanted: npt.NDArray[np.int64]
) -> tuple[Int32, Int32, Int32]:
    """The ``wanted`` rows, in rising order, of a shard of ``num_rows`` rows."""
    layout, group_rows = Layout.of(manifest), manifest.row_group_rows
    parts = []
    try:
        with path.open() as file:
            metadata = pq.read_metadata(file)
        read = path.reader()
        for number in np.unique(wanted // group_rows).tolist():
            begin, size = number * group_rows, min(group_rows, num_rows - number * group_rows)
            row_group = RowGroup.read(read, metadata, number, size, layout)
            rows = wanted[(wanted >= begin) & (wanted < begin + size)] - begin
            parts.append(row_group.rows(rows.astype(np.int32)))
    except UNREADABLE as error:
        raise ManifestError.unreadable(path, error) from None
    empty = np.zeros(0, np.int32), np.zeros((0, layout.max_len), np.int32), np.zeros(0, np.int32)
    center_B, targets_BL, num_contexts_B = (np.concatenate(columns) for columns in zip(empty, *parts, strict=True))
    targets_BL[np.arange(layout.max_len) >= (num_contexts_B * layout.targets_a_context)[:, None]] = 0
    return center_B, targets_BL, num_contexts_B


@dataclass(frozen=True)
class Losses:
    """The mean losses of two models on the same examples and places."""

    first: float
    second: float
    rows: int
    """The number of examples that counted."""
    places: int
    """The number of contexts and negatives that counted."""
    words: int
    """The number of words of the examples' vocabulary that both models know."""


def losses(heldout: Heldout, first: Tables, second: Tables) -> Losses | None:
    """Both models' losses over the words that both know; None when no example counts.

    A place counts if both know its word. An example counts if both know its center and one of its contexts: negatives
    alone say nothing about the text. An example's loss is the mean over its places that count; if all count, it is the
    loss of training/model/kernels/reference.py. Deterministic on one machine.
    """
    known_V = np.logical_and(*(rows_in(heldout.words, tables.words) > 0 for tables in (first, second)))
    is_context_BL = np.arange(heldout.contexts_negatives_BL.shape[1]) < heldout.num_contexts_B[:, None]
    known_BL = known_V[heldout.contexts_negatives_BL]
    counted = np.flatnonzero(known_V[heldout.center_B] & (known_BL & is_context_BL).any(axis=1))
    if not counted.size:
        return None
    center_B, known_BL, num_contexts_B = heldout.center_B[counted], known_BL[counted], heldout.num_contexts_B[counted]
    means = []  # of the first model and of the second
    for tables in (first, second):
        rows_V = rows_in(heldout.words, tables.words).astype(np.int32)
        targets_BL = np.where(known_BL, rows_V[heldout.contexts_negatives_BL[counted]], 0)
        losses_B = np.empty(len(counted), np.float32)
        row_losses(rows_V[center_B], targets_BL, num_contexts_B, (tables.center_VD, tables.context_VD), losses_B)
        means.append(mean(losses_B))
    return Losses(means[0], means[1], len(counted), int(known_BL.sum()), int(known_V.sum()))


def mean(losses_B: Float32) -> float:
    """The loss of a model: the mean over its examples."""
    return float(losses_B.mean(dtype=np.float64))


@compiled_fast
def row_losses(
    center_B: Int32, targets_BL: Int32, num_contexts_B: Int32, tables: tuple[Float32, Float32], losses_B: Float32
) -> None:
    """Writes the loss of each example: the mean over its places, except those of word 0, which do not count.

    ``tables`` are centers and contexts, (V, D) each. The same loss as training/model/kernels/reference.py defines.
    """
    center_VD, context_VD = tables
    num_places, dim = targets_BL.shape[1], center_VD.shape[1]
    scores_L, signs_L = np.empty(num_places, np.float32), np.empty(num_places, np.float32)
    places_L = np.empty(num_places, np.float32)
    for row in range(center_B.size):
        center, count = center_B[row], 0
        for place in range(num_places):
            target = targets_BL[row, place]
            if target:
                score = np.float32(0)
                for column in range(dim):
                    score += center_VD[center, column] * context_VD[target, column]
                scores_L[count] = score
                signs_L[count] = 1 if place < num_contexts_B[row] else -1
                count += 1
        slopes_and_losses(scores_L, signs_L, count, places_L)
        total = np.float32(0)
        for place in range(count):
            total += places_L[place]
        losses_B[row] = total / np.float32(count)
