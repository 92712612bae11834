"""prepare(): the whole pipeline, from a corpus to a dataset, in the order in which it happens.

    corpus -> count words -> number words, build tables -> encode -> shuffle -> sample and write -> manifest

The bytes of every shard are a function of the corpus (its sequences in any order), of the config, and of the versions
of numpy and pyarrow. Cores, executors, input files, splits, retries and batch sizes change nothing, because every draw
depends only on (seed, epoch, purpose, key of the sequence, number of equal sequences before it, position).
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.dataset.manifest_file import VOCAB, CorpusCounts, Counts, Manifest, ManifestError, ShardInfo
from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Tables
from pipeline.shared.errors import InputError
from pipeline.shared.storage import Location
from pipeline.spark.counting import count_words
from pipeline.spark.forecast import expected_examples, forecast
from pipeline.spark.generation import current_generation, new_generation, publish, writing
from pipeline.spark.shard_writer import ROW_GROUP_ROWS, versions
from pipeline.spark.shared_arrays import get_arrays, put_arrays
from pipeline.spark.sink import RESULTS, ShardSink
from pipeline.spark.spark_errors import input_errors
from pipeline.spark.task import TABLES, from_the_driver, to_binary
from pipeline.text.corpus import Corpus, State, Values, exact_names
from pipeline.text.remote_files import is_connect
from pipeline.text.tokens import tokenized
from pipeline.text.word_index import WordIndex, encode

INDEX = "index"
EXAMPLES_PER_SHARD = 1 << 20
MIN_SHARDS = 16

log = logging.getLogger(__name__)


def prepare(spark: SparkSession, corpus: Corpus, config: PipelineConfig, output: str | Path | Location) -> Manifest:
    """Writes the dataset OUTPUT from ``corpus`` and returns its manifest.

    An existing dataset stays valid until the new manifest replaces the old one. A run that fails removes its files; the
    next run removes what a killed run left behind. Raises InputError for errors that the user can fix.
    """
    output = Location.of(output).absolute()  # executors may have another working directory
    names = exact_names(spark) if corpus.has_exact_names else nullcontext()
    with new_generation(output) as generation, input_errors(corpus.description), names:
        before = current_generation(output)
        source_state, identities = corpus.state(lambda: spark), corpus.identities()
        rows = corpus.read(spark)
        values = corpus.values(rows)

        sizes = [int(entry["bytes"]) for entry in source_state if "bytes" in entry]
        files = f"in {len(sizes)} file(s) of {sum(sizes) / 1e6:.1f} MB"
        log.info("counting words %s", files if sizes else f"of {corpus.description}")
        with log_duration("counting"):
            vocab, seen = count_words(rows, values, config, generation)
        for remark in corpus.remarks():
            log.info("%s", remark)
        check_vocab(vocab, config, seen)
        tables = Tables.build(vocab.counts_V, config)
        with writing(output), log_duration("writing the vocabulary and its tables"):
            vocab.write(generation / VOCAB)
            put_arrays(generation, INDEX, WordIndex(vocab.words).arrays())
            put_arrays(generation, TABLES, tables.arrays())

        num_shards = config.num_shards or default_num_shards(vocab, tables)
        log.info("vocabulary of %s; sampling into %d shards an epoch", f"{len(vocab):,}", num_shards)
        log.info("%s", forecast(vocab, tables, config, num_cores(spark)))
        sequences = shuffle(encode_words(rows, values, config, generation), num_shards)
        with log_duration("shuffling, sampling and writing"):
            sample_and_write(sequences, config, generation)

        manifest = manifest_of(generation, config, source_state, vocab, seen)
        after = (*corpus.state(lambda: spark), *corpus.identities())
        check_unchanged((*source_state, *identities), after, corpus.description)
        check_shared(manifest, output)
        publish(manifest, output, before)
        remove_unlisted(output, manifest)
        return manifest


@contextmanager
def log_duration(stage: str) -> Iterator[None]:
    """Logs at DEBUG how long the block took."""
    started = time.perf_counter()
    yield
    log.debug("%s took %.1f s", stage, time.perf_counter() - started)


def check_vocab(vocab: Vocab, config: PipelineConfig, seen: CorpusCounts) -> None:
    """Raises InputError if no example or no negative could be drawn. Called before anything is written."""
    num_tokens, num_words = int(vocab.counts_V.sum()), len(vocab) - 1
    if num_tokens == 0:
        found = f"found {seen.lines:,} lines or rows, {seen.nulls:,} of their values null"
        raise InputError(f"the corpus holds no tokens ({found}); expected text, one sentence a line, or items")
    if num_words == 0:
        raise InputError(
            f"no word reaches --min-count {config.min_count} in {num_tokens} tokens; lower it or give a larger corpus"
        )
    if num_words <= config.max_contexts:
        raise InputError(
            f"the vocabulary has {num_words} words, expected more than {config.max_contexts}, the most contexts of a "
            f"row, which could leave no word for its negatives; take a smaller --window or --min-count"
        )


def default_num_shards(vocab: Vocab, tables: Tables) -> int:
    """One shard for every 2^20 expected examples, at least 16. Depends on the corpus, not on the number of cores."""
    return max(MIN_SHARDS, int(-(-expected_examples(vocab, tables) // EXAMPLES_PER_SHARD)))


def num_cores(spark: SparkSession) -> int:
    """The number of tasks that Spark runs at once."""
    if not is_connect(spark):
        return int(spark.sparkContext.defaultParallelism)
    return spark.range(1_000_000).select(F.spark_partition_id()).distinct().count()


def encode_words(rows: DataFrame, values: Values, config: PipelineConfig, generation: Location) -> DataFrame:
    """Rows (key bigint, ids binary): every sequence with two or more known words, as int32 ids."""
    folder = str(generation)

    def to_ids(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        index = _word_index(folder)
        for batch in batches:
            for found in tokenized(values(batch.column(0)), config):
                sequences = encode(found.words, found.lengths, index)
                keys = pa.array(sequences.keys.view(np.int64))
                yield pa.RecordBatch.from_arrays([keys, to_binary(sequences.ids, sequences.lengths)], ["key", "ids"])

    return rows.mapInArrow(to_ids, "key bigint, ids binary")


@lru_cache(maxsize=1)
def _word_index(generation: str) -> WordIndex:
    """Opened once in each Python worker. The name of a generation is unique."""
    with from_the_driver(Location.of(generation)) as folder:
        return WordIndex.of_arrays(get_arrays(folder, INDEX, WordIndex.ARRAYS))


def shuffle(sequences: DataFrame, num_shards: int) -> DataFrame:
    """The one shuffle: partitions by key, sorts by (key, ids). The key is a hash: a random order, always the same."""
    return sequences.repartition(num_shards, "key").sortWithinPartitions("key", "ids")


def sample_and_write(sequences: DataFrame, config: PipelineConfig, generation: Location) -> None:
    """Samples every partition and writes its shards. Returns when Spark has committed all tasks."""
    sequences.sparkSession.dataSource.register(ShardSink)
    writer = sequences.write.format(ShardSink.name()).mode("append")
    writer.options(path=str(generation), config=json.dumps(asdict(config))).save()


def manifest_of(
    generation: Location,
    config: PipelineConfig,
    source_state: State,
    vocab: Vocab,
    seen: CorpusCounts,
) -> Manifest:
    """The manifest of a generation, from the results of the committed tasks. Raises InputError if it has no example."""
    results = json.loads((generation / RESULTS).read_bytes())
    shards = sorted(
        (ShardInfo(**shard) for result in results for shard in result["shards"]),
        key=lambda shard: (shard.split != "train", shard.epoch, shard.path),
    )
    if not any(shard.split == "train" for shard in shards):
        raise InputError(
            "no line gave an example: none has two known words that subsampling keeps; "
            "--sample 0 keeps every word, --min-count 1 knows every word"
        )
    for result in results:
        if result["versions"] != versions():
            raise ManifestError(
                f"executor on {result['host']}: has {spelled(result['versions'])}, expected the driver's "
                f"{spelled(versions())}; install the same on all machines"
            )
    counts = Counts(
        **asdict(seen),
        unknown=int(vocab.counts_V[0]),
        subsampled=sum(result["subsampled"] for result in results),
        examples=sum(shard.rows for shard in shards),
        pairs=sum(result["pairs"] for result in results),
    )
    return Manifest(
        generation=generation.path.rpartition("/")[2],
        config=config,
        source_state=source_state,
        counts=counts,
        vocab_size=len(vocab),
        vocab_digest=vocab.digest(),
        max_len=config.max_len,
        row_group_rows=ROW_GROUP_ROWS,
        versions=versions(),
        shards=tuple(shards),
    )


def spelled(versions: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def check_unchanged(before: State, after: State, description: str) -> None:
    """Raises InputError if the corpus changed while it was read, in two passes that then disagree."""
    if changed := [entry for entry in (*before, *after) if (entry in before) != (entry in after)]:
        raise InputError(
            f"--input {changed[0].get('path', description)}: changed while it was read, expected one corpus for both "
            f"passes; run again when nothing writes to it"
        )


def check_shared(manifest: Manifest, output: Location) -> None:
    """Raises InputError if the driver does not see the files that the workers wrote."""
    try:
        manifest.check_files(output)
    except ManifestError as error:
        where = str(error).partition(";")[0]
        raise InputError.unshared(output, f"the driver does not see what the workers wrote ({where})") from None


def remove_unlisted(output: Location, manifest: Manifest) -> None:
    """Removes what nobody reads any more: what driver and tasks left for each other, and files of other attempts."""
    generation = output / manifest.generation
    listed = {(output / name).path for name in (manifest.vocab_path, *(shard.path for shard in manifest.shards))}
    with suppress(OSError):  # the dataset is complete by now
        for entry in generation.files():
            if entry.path not in listed:
                generation.filesystem.delete_file(entry.path)
