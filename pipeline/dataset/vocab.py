"""Vocab: words, their ids and their counts.

Ids are ordered by falling count, then by spelling (code points). Id 0 is ``<unk>``: all words that are not kept, and
the token ``<unk>`` of a corpus. It is never a center, a context or a negative, so 0 is also the padding.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.shared.storage import Location

UNKNOWN = "<unk>"

SCHEMA = pa.schema(
    [
        pa.field("word_id", pa.int32(), nullable=False),
        pa.field("word", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)


@dataclass(frozen=True)
class Vocab:
    """V words in order of id: ``words`` (V,) strings and ``counts_V`` (V,) int64, ``<unk>`` at 0."""

    words: pa.StringArray
    counts_V: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.words)

    @classmethod
    def from_counts(
        cls, words: pa.StringArray, counts: pa.Int64Array, num_tokens: int, max_vocab: int | None
    ) -> "Vocab":
        """The vocabulary of counted words, in any order. ``<unk>`` counts the rest of ``num_tokens``."""
        table = pa.table({"word": words, "count": counts})
        table = table.filter(pc.not_equal(table["word"], UNKNOWN))
        table = table.sort_by([("count", "descending"), ("word", "ascending")]).slice(0, max_vocab)
        known = table["count"].to_numpy()
        return cls(
            words=pa.concat_arrays([pa.array([UNKNOWN]), *table["word"].chunks]),
            counts_V=np.concatenate([[num_tokens - known.sum()], known]).astype(np.int64),
        )

    def digest(self) -> str:
        """SHA-256 of words and counts; it does not depend on the file format."""
        sha = hashlib.sha256()
        for word, count in zip(self.words.to_pylist(), self.counts_V.tolist(), strict=True):
            sha.update(f"{count} {word}\n".encode())
        return sha.hexdigest()

    def write(self, path: Path | Location) -> None:
        """Writes a Parquet file of SCHEMA, atomically. Raises OSError."""
        ids = pa.array(np.arange(len(self), dtype=np.int32))
        buffer = pa.BufferOutputStream()
        pq.write_table(pa.table([ids, self.words, pa.array(self.counts_V)], schema=SCHEMA), buffer)
        Location.of(path).put(buffer.getvalue().to_pybytes())

    @classmethod
    def read(cls, path: Path | Location) -> "Vocab":
        """Reads what ``write`` wrote. Raises OSError, pa.ArrowException or KeyError for other files."""
        with Location.of(path).open() as file:
            table = pq.read_table(file)
        return cls(words=table["word"].combine_chunks(), counts_V=table["count"].to_numpy())
