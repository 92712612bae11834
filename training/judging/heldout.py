"""Held-out examples, and the losses of two models on them over the words that both know.

Every published version keeps its corpus' held-out examples, so that later versions are judged on the same lines.

B examples, L places of each (contexts, then negatives, then 0), V words, D dimensions.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from pipeline.dataset.decode import UNREADABLE, Layout, RowGroup, ShardError
from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.dataset.vocab import Vocab, VocabError
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import atomic_write
from pipeline.shared.storage import Location
from training.model.skip_gram import SigmoidBCELoss, skip_gram
from training.vectors.compare import rows_in
from training.vectors.run_files import VOCAB
from training.vectors.word_vectors import Tables

HELDOUT = "heldout.parquet"

MAX_ROWS = 20_000
"""Enough for a standard error of the loss below 0.5 %, and of two models' difference far below; 2 MB."""

BLOCK_ROWS = 2048
"""How many examples have their vectors in memory at once: 50 MB at 60 places and 100 dimensions."""

MAX_LEN = 2**15 - 1
"""The most places that prepare allows in a row."""

SCHEMA = pa.schema(
    [
        pa.field("center", pa.int32()),
        pa.field("contexts_negatives", pa.list_(pa.int32())),
        pa.field("num_contexts", pa.int32()),
    ]
)

Int32 = npt.NDArray[np.int32]


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
        manifest, folder = Manifest.load(dataset), Location.of(dataset)
        shards = manifest.select(0, "heldout")
        total = sum(shard.rows for shard in shards)
        if not total:
            raise InputError(
                f"{dataset}: found no held-out examples, expected some to judge by; prepare with a holdout such as 0.01"
            )
        words = manifest.read_vocab(dataset).words.to_pylist()
        num_wanted = min(total, max_rows)
        wanted = np.array([index * total // num_wanted for index in range(num_wanted)])
        ends = np.cumsum([shard.rows for shard in shards])
        parts = [
            _rows_of_shard(folder / shard.path, manifest, shard.rows, part - (end - shard.rows))
            for shard, end, part in zip(shards, ends, np.split(wanted, np.searchsorted(wanted, ends[:-1])), strict=True)
        ]
        center_B, targets_BL, num_contexts_B = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        return cls(words, center_B, targets_BL, num_contexts_B)

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
    models = [
        (_tensor(tables.center_VD), _tensor(tables.context_VD), rows_in(heldout.words, tables.words))
        for tables in (first, second)
    ]
    known_V = np.logical_and(*(rows_V > 0 for _, _, rows_V in models))
    sums, rows, places = np.zeros(2), 0, 0
    for begin in range(0, len(heldout.center_B), BLOCK_ROWS):
        block = slice(begin, begin + BLOCK_ROWS)
        center_B, targets_BL = heldout.center_B[block], heldout.contexts_negatives_BL[block]
        label_BL = np.arange(targets_BL.shape[1]) < heldout.num_contexts_B[block, None]
        mask_BL = known_V[targets_BL]
        counted = np.flatnonzero(known_V[center_B] & (mask_BL & label_BL).any(axis=1))
        label, mask = torch.from_numpy(label_BL[counted]), torch.from_numpy(mask_BL[counted])
        for index, (center_VD, context_VD, rows_V) in enumerate(models):
            center = torch.from_numpy(rows_V[center_B[counted]])[:, None]
            targets = torch.from_numpy(rows_V[targets_BL[counted]])
            scores = skip_gram(center, targets, center_VD, context_VD).squeeze(1)
            loss_B = SigmoidBCELoss()(scores, label, mask) * (mask.shape[1] / mask.sum(1))
            sums[index] += loss_B.double().sum().item()
        rows, places = rows + len(counted), places + int(mask.sum())
    if not rows:
        return None
    return Losses(float(sums[0] / rows), float(sums[1] / rows), rows, places, int(known_V.sum()))


def _tensor(table_VD: npt.NDArray[np.float32]) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no read-only tensors, and warns of a mapped table; we only read it
        return torch.from_numpy(table_VD)
