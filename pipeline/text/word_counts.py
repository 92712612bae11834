"""Counts of words, lines and so on within a task, and their exchange between tasks.

The words of a large corpus are too many to pass between Java and Python one by one. A task cuts its counts into pieces
by the words' hashes, and each piece is one value to Spark; whoever gets all pieces of a number has all of their words.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.dataset.manifest_file import CorpusCounts
from pipeline.text.tokens import Tokenized
from pipeline.text.word_index import Words

MAX_PARTIAL_COUNTS = 1 << 19
"""Distinct words that a counting task holds before it passes its counts on."""


class Totals:
    """The counts of a task so far: of words, and in ``seen``, by field of CorpusCounts, of everything else."""

    def __init__(self) -> None:
        self.seen = Counter({field.name: 0 for field in fields(CorpusCounts)})
        self.num_pending = 0
        self._words = [pa.schema([("values", pa.string()), ("counts", pa.int64())]).empty_table()]
        self._most_pending = 2 * MAX_PARTIAL_COUNTS

    def add(self, found: Tokenized) -> None:
        self.seen.update(
            lines=found.num_lines,
            nulls=found.num_nulls,
            invalid_utf8_lines=found.num_invalid_utf8,
            sequences=int((found.lengths >= 2).sum()),
            too_short=found.num_too_short,
            cut=found.num_cut,
            tokens=len(found.words),
            long_tokens=found.num_long_tokens,
        )
        self._add_words(pa.Table.from_struct_array(found.words.value_counts()))

    def add_piece(self, piece: pa.Buffer) -> None:
        """Adds the counts of another task, or a piece of them."""
        counts = pa.ipc.open_stream(piece).read_all()
        words = counts.filter(counts["is_word"])
        others = counts.filter(pc.invert(counts["is_word"])).to_pydict()
        self.seen.update(dict(zip(others["name"], others["count"], strict=True)))
        self._add_words(words.select(["name", "count"]).rename_columns(["values", "counts"]))

    def batch(self) -> pa.RecordBatch:
        """All counts, as rows (is_word, name, count)."""
        self._merge()
        words = self._words[0]
        is_word = pa.array([True] * len(words) + [False] * len(self.seen))
        names = pa.concat_arrays([*words["values"].chunks, pa.array(self.seen, pa.string())])
        counts = pa.concat_arrays([*words["counts"].chunks, pa.array(self.seen.values(), pa.int64())])
        return pa.RecordBatch.from_arrays([is_word, names, counts], ["is_word", "name", "count"])

    def pieces(self, num_pieces: int) -> pa.RecordBatch:
        """All counts, as rows (piece, counts). Equal names are in pieces of equal numbers, whichever task cuts."""
        batch = self.batch()
        piece_N = Words.of(batch["name"]).hashes % np.uint64(num_pieces)
        order_N = np.argsort(piece_N, kind="stable")
        batch = batch.take(pa.array(order_N))
        numbers, starts = np.unique(piece_N[order_N], return_index=True)
        stops = np.append(starts[1:], len(batch))
        counts = [_to_bytes(batch[start:stop]) for start, stop in zip(starts, stops, strict=True)]
        return pa.RecordBatch.from_arrays(
            [pa.array(numbers.astype(np.int32)), pa.array(counts, pa.binary())], ["piece", "counts"]
        )

    def _add_words(self, words: pa.Table) -> None:
        self._words.append(words)
        self.num_pending += len(words)
        if self.num_pending > self._most_pending:
            self._merge()
            self._most_pending = 2 * max(MAX_PARTIAL_COUNTS, self.num_pending)

    def _merge(self) -> None:
        words = pa.concat_tables(self._words).group_by("values", use_threads=False)
        self._words = [words.aggregate([("counts", "sum")]).rename_columns(["values", "counts"])]
        self.num_pending = len(self._words[0])


def _to_bytes(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return bytes(sink.getvalue())


def merged(batches: Iterator[pa.RecordBatch], min_count: int) -> pa.RecordBatch:
    """Rows (is_word, name, count) from rows (piece, counts). Leaves out words seen less than ``min_count`` times."""
    totals = Totals()
    for batch in batches:
        for piece in batch.column(1):
            totals.add_piece(piece.as_buffer())
    counts = totals.batch()
    return counts.filter(pc.or_(pc.invert(counts["is_word"]), pc.greater_equal(counts["count"], min_count)))
