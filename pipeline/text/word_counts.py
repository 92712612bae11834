"""Counts of words, lines and so on within a task. Spark adds up the tasks."""

from collections import Counter
from dataclasses import fields

import pyarrow as pa

from pipeline.dataset.manifest_file import CorpusCounts
from pipeline.text.tokens import Tokenized

MAX_PARTIAL_COUNTS = 1 << 19
"""Distinct words that a counting task holds before it passes its counts on."""


class Totals:
    """The counts of a task so far: of words, and in ``seen``, by field of CorpusCounts, of everything else."""

    def __init__(self) -> None:
        self.seen = Counter({field.name: 0 for field in fields(CorpusCounts)})
        self.num_pending = 0
        self._words = [pa.schema([("values", pa.string()), ("counts", pa.int64())]).empty_table()]

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
        self._words.append(pa.Table.from_struct_array(found.words.value_counts()))
        self.num_pending += len(self._words[-1])
        if self.num_pending > 2 * MAX_PARTIAL_COUNTS:
            self._merge()

    def batch(self) -> pa.RecordBatch:
        """All counts, as rows (is_word, name, count)."""
        self._merge()
        words = self._words[0]
        is_word = pa.array([True] * len(words) + [False] * len(self.seen))
        names = pa.concat_arrays([*words["values"].chunks, pa.array(self.seen, pa.string())])
        counts = pa.concat_arrays([*words["counts"].chunks, pa.array(self.seen.values(), pa.int64())])
        return pa.RecordBatch.from_arrays([is_word, names, counts], ["is_word", "name", "count"])

    def _merge(self) -> None:
        words = pa.concat_tables(self._words).group_by("values", use_threads=False)
        self._words = [words.aggregate([("counts", "sum")]).rename_columns(["values", "counts"])]
        self.num_pending = len(self._words[0])
