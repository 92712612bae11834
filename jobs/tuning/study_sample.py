"""The sequences of a study: a sample of the corpus by a hash of each sequence, divided into those to train on, those
that choose between trials, and those of the final test.

STUDY/sample/
  train.parquet        items: also the judged sequences without their last items, if the last item is predicted
  validation.parquet   key, items: whole sequences
  test.parquet         key, items

Equal sequences are in the same part, so none is judged that was trained on. But a longer judged sequence may begin with
it, as another corpus' would, and trains without its own last item.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from pipeline.pipeline_config import MAX_SEQUENCE_TOKENS, PipelineConfig
from pipeline.shared.draws import sequence_keys
from pipeline.shared.errors import InputError
from pipeline.shared.files import remove
from pipeline.shared.randomness import U64, Purpose, fold, stream
from pipeline.spark.spark_errors import input_errors
from pipeline.text.corpus import Corpus, Values, exact_names
from pipeline.text.tokens import tokenized
from pipeline.text.word_index import Words

SAMPLE, TRAINED, VALIDATION, TEST = "sample", "train", "validation", "test"
PARTS = TRAINED, VALIDATION, TEST
ITEMS = "items"

MOST_JUDGED = 10_000
"""Sequences of a part that judges, the first by key. Enough for an interval of 0.01 of a hit rate."""

ROW_GROUP_ROWS = 1 << 16
"""Spark divides a file by row groups."""


@dataclass(frozen=True)
class Division:
    """How sequences are divided."""

    fraction: float
    """The share of the corpus' sequences that the sample has."""
    validation: float
    """The share of the sample's sequences that choose between trials."""
    test: float
    predicts_last: bool
    """Whether judged sequences train without their last items, rather than not at all."""
    seed: int

    def is_chosen(self, keys: U64) -> npt.NDArray[np.bool_]:
        return _uniform(self.seed, 0, keys) < self.fraction

    def part(self, keys: U64) -> npt.NDArray[np.int8]:
        """Numbers of PARTS."""
        place = _uniform(self.seed, 1, keys)
        return np.where(place < self.validation, 1, np.where(place < self.validation + self.test, 2, 0)).astype(np.int8)


def _uniform(seed: int, use: int, keys: U64) -> npt.NDArray[np.float64]:
    return np.ldexp((fold(stream(seed, Purpose.STUDY, use), keys) >> np.uint64(11)).astype(np.float64), -53)


def write_sample(
    spark: SparkSession, corpus: Corpus, config: PipelineConfig, division: Division, folder: Path
) -> dict[str, int]:
    """Writes the three files into ``folder``; returns the number of sequences of each part.

    Text becomes tokens as in prepare with ``config``. Raises InputError for a corpus that cannot be read, and for a
    sample without a sequence to train on or to judge by.
    """
    names = exact_names(spark) if corpus.has_exact_names else nullcontext()
    with input_errors(corpus.description), names:
        rows = corpus.read(spark)
        whole = PipelineConfig(
            tokenizer=config.tokenizer, lowercase=config.lowercase, max_sentence_length=MAX_SEQUENCE_TOKENS
        )
        divided = partial(_divided, values=corpus.values(rows), config=whole, division=division)
        found = rows.mapInArrow(divided, "part byte, key bigint, items array<string>")
        found.write.partitionBy("part").parquet(str(folder / "parts"))
    counts = {}
    for number, name in enumerate(PARTS):
        place = folder / "parts" / f"part={number}"
        of_part = pads.dataset(sorted(place.glob("*.parquet")), schema=_SCHEMA)
        counts[name] = _write_train(of_part, folder) if name == TRAINED else _write_judged(of_part, name, folder)
        share = (1.0, division.validation, division.test)[number]
        if share and not counts[name]:
            raise InputError(
                f"judge.share: found no sequence for the {name} part of a sample of {sum(counts.values()):,}, expected "
                f"some; raise it or the fraction"
            )
    remove(folder / "parts")
    return counts


_SCHEMA = pa.schema([("key", pa.int64()), (ITEMS, pa.list_(pa.string()))])


def _divided(
    batches: Iterator[pa.RecordBatch], values: Values, config: PipelineConfig, division: Division
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for found in tokenized(values(batch.column(0)), config):
            if not found.lengths.size:
                continue
            dictionary = found.words.dictionary_encode()
            hashes = Words.of(dictionary.dictionary).hashes[dictionary.indices.to_numpy()]
            keys = sequence_keys(hashes, found.lengths)
            offsets = pa.array(np.concatenate([[0], np.cumsum(found.lengths)]), pa.int32())
            rows = pa.record_batch(
                {
                    "part": division.part(keys),
                    "key": keys.view(np.int64),
                    ITEMS: pa.ListArray.from_arrays(offsets, found.words),
                }
            ).filter(pa.array(division.is_chosen(keys)))
            yield rows
            if division.predicts_last:
                yield _histories(rows)


def _histories(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The judged sequences without their last items, to train on."""
    judged = rows.filter(pc.and_(pc.greater(rows["part"], 0), pc.greater(pc.list_value_length(rows[ITEMS]), 1)))
    lists = judged[ITEMS].to_pylist()
    items = pa.array([items[:-1] for items in lists], pa.list_(pa.string()))
    return pa.record_batch({"part": np.zeros(len(lists), np.int8), "key": judged["key"], ITEMS: items})


def _write_train(part: pads.Dataset, folder: Path) -> int:
    with pq.ParquetWriter(folder / f"{TRAINED}.parquet", pa.schema([_SCHEMA.field(ITEMS)])) as writer:
        for batch in part.to_batches(columns=[ITEMS]):
            writer.write_batch(batch, row_group_size=ROW_GROUP_ROWS)
    return int(part.count_rows())


def _write_judged(part: pads.Dataset, name: str, folder: Path) -> int:
    """Sorted, so that the choice of the first ones is that of the same sequences however Spark divided them."""
    table = part.to_table()
    rows = sorted(zip(table["key"].to_pylist(), table[ITEMS].to_pylist(), strict=True))[:MOST_JUDGED]
    keys, lists = zip(*rows, strict=True) if rows else ((), ())
    pq.write_table(pa.table({"key": keys, ITEMS: lists}, schema=_SCHEMA), folder / f"{name}.parquet")
    return len(rows)
