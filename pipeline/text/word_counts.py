"""Counts of words, lines and so on within a task. Spark adds up the tasks."""

import pyarrow as pa

from pipeline.text.tokens import Tokenized

MAX_PARTIAL_COUNTS = 1 << 19
"""Distinct words that a counting task holds before it passes its counts on."""

SEEN = {
    "lines": "num_lines",
    "nulls": "num_nulls",
    "invalid_utf8_lines": "num_invalid_utf8",
    "too_short": "num_too_short",
    "long_tokens": "num_long_tokens",
}
"""Counts of the manifest, and the attribute of Tokenized that each one sums."""


class Totals:
    """The counts of a task so far: of words, as (values, counts) arrays, and in ``seen`` of everything else."""

    def __init__(self) -> None:
        self.seen = dict.fromkeys([*SEEN, "sequences", "tokens"], 0)
        self.num_pending = 0
        self._words: list[pa.StructArray] = []

    def add(self, found: Tokenized) -> None:
        for name, attribute in SEEN.items():
            self.seen[name] += getattr(found, attribute)
        self.seen["sequences"] += int((found.lengths >= 2).sum())
        self.seen["tokens"] += len(found.words)
        self._words.append(found.words.value_counts())
        self.num_pending += len(self._words[-1])
        if self.num_pending > 2 * MAX_PARTIAL_COUNTS:
            self._merge()

    def batch(self) -> pa.RecordBatch:
        """All counts, as rows (is_word, name, count)."""
        self._merge()
        words = self._words[0]
        is_word = pa.array([True] * len(words) + [False] * len(self.seen))
        names = pa.concat_arrays([words.field(0), pa.array(self.seen, pa.string())])
        counts = pa.concat_arrays([words.field(1), pa.array(self.seen.values(), pa.int64())])
        return pa.RecordBatch.from_arrays([is_word, names, counts], ["is_word", "name", "count"])

    def _merge(self) -> None:
        names = pa.chunked_array([words.field(0) for words in self._words], pa.string())
        counts = pa.chunked_array([words.field(1) for words in self._words], pa.int64())
        table = pa.table({"name": names, "count": counts})
        sums = table.group_by("name", use_threads=False).aggregate([("count", "sum")])
        columns = [sums[name].combine_chunks() for name in ("name", "count_sum")]
        self._words = [pa.StructArray.from_arrays(columns, ["values", "counts"])]
        self.num_pending = sums.num_rows
