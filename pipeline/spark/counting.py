"""Counts the words of a corpus. Tasks count, merge and write what they found; the driver reads their files.

So the vocabulary never passes through the driver's Java, and ``spark.driver.maxResultSize`` does not limit it. Java
holds words only to sort those of ``max_vocab``.
"""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc
from pyspark import TaskContext
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from pipeline.dataset.manifest_file import CorpusCounts
from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.storage import Location
from pipeline.spark.generation import writing
from pipeline.spark.task import from_the_driver
from pipeline.text.corpus import Values
from pipeline.text.tokens import tokenized
from pipeline.text.word_counts import MAX_PARTIAL_COUNTS, Totals, merged

PIECES = "piece int, counts binary"
COUNTS = "is_word boolean, name string, count bigint"
WRITTEN = "is_file boolean, name string, count bigint"
WORDS = pa.schema([("name", pa.string()), ("count", pa.int64())])


def count_words(
    rows: DataFrame, values: Values, config: PipelineConfig, generation: Location
) -> tuple[Vocab, CorpusCounts]:
    """The vocabulary and the counts of the corpus. Leaves files in ``generation``."""
    num_pieces = int(str(rows.sparkSession.conf.get("spark.sql.shuffle.partitions")))

    def count(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for totals in partial_counts(batches, values, config):
            yield totals.pieces(num_pieces)

    def merge(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        yield merged(batches, config.min_count)

    def write(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        return written(batches, generation)

    pieces = rows.mapInArrow(count, PIECES).repartition("piece")
    if config.max_vocab is None:
        results = pieces.mapInArrow(lambda batches: write(merge(batches)), WRITTEN)
    else:  # Spark drops the rarest words, and the driver reads fewer; a literal <unk> may be among them, hence the 1
        num_rows = config.max_vocab + 1 + len(Totals().seen)
        most_frequent = pieces.mapInArrow(merge, COUNTS).orderBy("is_word", F.desc("count"), "name").limit(num_rows)
        results = most_frequent.mapInArrow(write, WRITTEN)
    seen, files = Totals().seen, []
    for row in results.collect():  # a few for each task
        if row["is_file"]:
            files.append(row["name"])
        else:
            seen[row["name"]] += row["count"]
    words = read_words(files, generation)
    vocab = Vocab.from_counts(words["name"], words["count"], seen["tokens"], config.max_vocab)
    return vocab, CorpusCounts(**seen)


def partial_counts(batches: Iterator[pa.RecordBatch], values: Values, config: PipelineConfig) -> Iterator[Totals]:
    """The counts of a partition of the corpus, some at a time."""
    totals = Totals()
    for batch in batches:
        for found in tokenized(values(batch.column(0)), config):
            totals.add(found)
        if totals.num_pending > MAX_PARTIAL_COUNTS:
            yield totals
            totals = Totals()
    yield totals


def written(batches: Iterator[pa.RecordBatch], generation: Location) -> Iterator[pa.RecordBatch]:
    """Writes the words of rows (is_word, name, count) to a file. Yields a row for it, and the rows that are no words.

    Idempotent: every attempt of a task writes the same words, in whichever order.
    """
    context = TaskContext.get()
    assert context is not None, "Spark calls this inside a task"
    name = f"counts-{context.partitionId():05d}.arrow"
    columns = ["is_file", "name", "count"]
    rest = [pa.record_batch([pa.array([True]), pa.array([name]), pa.array([0])], columns)]
    with (
        writing(generation),
        from_the_driver(generation),
        (generation / name).atomic_write() as file,
        pa.ipc.new_file(file, WORDS) as writer,
    ):
        for batch in batches:
            words, others = batch.filter(batch["is_word"]), batch.filter(pc.invert(batch["is_word"]))
            writer.write_batch(pa.record_batch([words["name"], words["count"]], schema=WORDS))
            rest.append(pa.record_batch(others.columns, columns))
    yield from rest


def read_words(names: list[str], generation: Location) -> pa.Table:
    """(name, count) of the words in these files. Raises InputError if the driver does not see them."""
    tables = [WORDS.empty_table()]
    for name in names:
        try:
            with (generation / name).open() as opened:
                tables.append(pa.ipc.open_file(opened).read_all())
        except FileNotFoundError as error:
            output = str(generation).rpartition("/")[0]
            raise InputError.unshared(
                output, f"the driver does not see what the workers wrote ({one_line(error)})"
            ) from None
    return pa.concat_tables(tables)
