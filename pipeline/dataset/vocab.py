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

from pipeline.shared.errors import InputError, one_line, shown
from pipeline.shared.storage import Location

UNKNOWN = "<unk>"

MAX_WORDS = 2**31 - 1
"""Ids are int32."""

MAX_TEXT_BYTES = 2**31 - 1
"""Of all words together: Arrow's strings have int32 offsets."""

DIGEST_WORDS = 1 << 16
"""Words whose lines are in memory at once."""

SCHEMA = pa.schema(
    [
        pa.field("word_id", pa.int32(), nullable=False),
        pa.field("word", pa.string(), nullable=False),
        pa.field("count", pa.int64(), nullable=False),
    ]
)


class VocabError(ValueError):
    """A file that is not a vocabulary."""


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
        """The vocabulary of counted words, in any order. ``<unk>`` counts the rest of ``num_tokens``.

        Raises InputError for words of more than MAX_TEXT_BYTES.
        """
        table = pa.table({"word": words, "count": counts})
        table = table.filter(pc.not_equal(table["word"], UNKNOWN))
        size = len(UNKNOWN) + (pc.sum(pc.cast(pc.binary_length(table["word"]), pa.int64())).as_py() or 0)
        if size > MAX_TEXT_BYTES:
            raise InputError(
                f"the vocabulary has {len(table):,} words of {size:,} bytes in all, expected at most "
                f"{MAX_TEXT_BYTES:,} bytes; set --max-vocab, or raise --min-count"
            )
        table = table.sort_by([("count", "descending"), ("word", "ascending")]).slice(0, max_vocab)
        known = table["count"].to_numpy()
        return cls(
            words=pa.concat_arrays([pa.array([UNKNOWN]), *table["word"].chunks]),
            counts_V=np.concatenate([[num_tokens - known.sum()], known]).astype(np.int64),
        )

    def digest(self) -> str:
        """SHA-256 of words and counts; it does not depend on the file format."""
        sha = hashlib.sha256()
        for start in range(0, len(self), DIGEST_WORDS):
            part = slice(start, start + DIGEST_WORDS)
            counts = pc.cast(pa.array(self.counts_V[part]), pa.string())
            lines = pc.binary_join_element_wise(counts, self.words[part], " ")
            text = pc.binary_join(pa.ListArray.from_arrays([0, len(lines)], lines), "\n")
            sha.update(text[0].as_buffer())
            sha.update(b"\n")
        return sha.hexdigest()

    def write(self, path: Path | Location) -> None:
        """Writes a Parquet file of SCHEMA, atomically. Raises OSError."""
        ids = pa.array(np.arange(len(self), dtype=np.int32))
        with Location.of(path).atomic_write() as file:
            pq.write_table(pa.table([ids, self.words, pa.array(self.counts_V)], schema=SCHEMA), file)

    @classmethod
    def read(cls, path: Path | Location) -> "Vocab":
        """Reads what ``write`` wrote. Raises OSError, and VocabError for any other file."""
        try:
            with Location.of(path).open() as opened, pq.ParquetFile(opened) as file:
                if file.metadata.num_rows > MAX_WORDS:
                    raise VocabError(f"found {file.metadata.num_rows:,} words, expected at most {MAX_WORDS:,}")
                table = file.read().combine_chunks()
            check_columns(table, *SCHEMA.names)
            _check(table)
            return cls(words=table["word"].combine_chunks(), counts_V=table["count"].to_numpy())
        except VocabError:
            raise
        except (pa.ArrowException, ValueError, KeyError) as error:
            raise VocabError(one_line(error)) from None


def check_columns(table: pa.Table, *names: str) -> None:
    """Raises VocabError unless the table has exactly these columns of SCHEMA, without nulls, and words in UTF-8."""
    found = {field.name: field.type for field in table.schema}
    expected = {name: SCHEMA.field(name).type for name in names}
    if found != expected or table.num_columns > len(names) or any(column.null_count for column in table.columns):
        raise VocabError(
            f"found columns {shown(found)}, or nulls in them, expected {', '.join(expected)} as prepare does"
        )
    try:
        table.validate(full=True)
    except pa.ArrowException as error:
        raise VocabError(one_line(error)) from None


def _check(table: pa.Table) -> None:
    """Raises VocabError unless the table, of valid values, is a vocabulary."""
    if not len(table) or table["word"][0].as_py() != UNKNOWN:
        raise VocabError(f"expected {UNKNOWN} as its first word")
    if not np.array_equal(table["word_id"].to_numpy(), np.arange(len(table), dtype=np.int32)):
        raise VocabError(f"word_id is not 0 to {len(table) - 1}, in this order")
    if pc.min(table["count"]).as_py() < 0:
        raise VocabError("found a count below 0")
    if pc.count_distinct(table["word"]).as_py() != len(table):
        raise VocabError("found a word twice")
