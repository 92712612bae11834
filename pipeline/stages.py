"""prepare(): the whole pipeline, from a corpus to a dataset, in the order in which it happens.

    lines -> count -> Vocab, Tables -> encode -> one shuffle -> sample and write -> manifest

The bytes of every shard are a function of the corpus as a bag of token sequences, of the config, and of the versions of
numpy and pyarrow. Cores, executors, input files, splits, retries and batch sizes change nothing, because every draw
depends on (seed, epoch, purpose, key of the sequence, how many equal ones came before it, position) alone.
"""

import json
import logging
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.config import PipelineConfig
from pipeline.corpus import Corpus
from pipeline.errors import InputError
from pipeline.manifest import Counts, Manifest, ManifestError, ShardInfo
from pipeline.sampling import Tables
from pipeline.shards import ROW_GROUP_ROWS, versions
from pipeline.sink import RESULTS, TABLES, ShardSink, from_the_driver, to_binary
from pipeline.subsample import CERTAIN
from pipeline.tokens import tokenize
from pipeline.vocab import Vocab, encode

GENERATION_PREFIX = "gen-"
EXAMPLES_PER_SHARD = 1 << 20
MIN_SHARDS = 16

log = logging.getLogger(__name__)


def prepare(spark: SparkSession, corpus: Corpus, config: PipelineConfig, output: Path) -> Manifest:
    """Writes the dataset OUTPUT from ``corpus`` and returns its manifest.

    A dataset that is there stays valid until the new manifest takes its place, and an error before that leaves nothing
    behind; what a killed run leaves, the next one removes. Raises InputError when the corpus cannot give one example.
    """
    output = output.absolute()  # executors need not stand in our folder
    source_state = corpus.state()
    was_missing = not output.exists()
    generation = new_generation(output)
    try:
        lines = corpus.read(spark)

        log.info("counting words in %s", corpus.description)
        vocab, seen = count(lines, config)
        check_vocab(vocab, config)
        tables = Tables.build(vocab.counts_V, config)
        vocab.write(generation / "vocab.parquet")
        tables.write(generation / TABLES)

        num_shards = config.num_shards or default_num_shards(vocab, tables)
        log.info("vocabulary of %d; sampling into %d shards an epoch", len(vocab), num_shards)
        sequences = shuffle(encoded(lines, config, generation / "vocab.parquet"), num_shards)
        write(sequences, config, generation)

        manifest = collect(generation, config, source_state, vocab, seen)
        check_shared(manifest, output)
        manifest.save(output)
    except BaseException as error:
        if not is_current(output, generation):  # Ctrl-C may come just after the manifest
            shutil.rmtree(generation, ignore_errors=True)
        if was_missing:
            with suppress(OSError):
                output.rmdir()
        unreadable = re.search(r"FAILED_READ_FILE\S* .* reading file file:/*(/.*?)\.  SQLSTATE", str(error))
        if unreadable:
            raise InputError(
                f"--input {unquote(unreadable[1])}: damaged, it breaks off before its end; give a whole copy"
            ) from None
        refused = user_error(error)
        if refused is not None:
            raise refused from None
        raise
    remove_unlisted(output, manifest)
    remove_other_generations(output, generation)
    return manifest


def user_error(error: BaseException) -> InputError | None:
    """What the user can mend, out of the text in which Spark brings a worker's error to the driver."""
    text = str(error)
    found = re.search(r"^pipeline\.(?:errors\.Input|manifest\.Manifest)Error: (.*)$", text, re.MULTILINE)
    if found:
        return InputError(found[1])
    unseen = re.search(
        r"FAILED_READ_FILE\.FILE_NOT_EXIST\S* .*? reading file (?:file:/*(?=/))?(.*?)\. File does not", text
    )
    if unseen:
        return InputError(
            f"--input {unquote(unseen[1])}: a worker does not see it; the input must be on storage that all machines "
            f"share, and stay while it is read"
        )
    return None


def check_shared(manifest: Manifest, output: Path) -> None:
    """The driver sees what the workers wrote."""
    try:
        manifest.check_files(output)
    except ManifestError as error:
        where = str(error).partition(";")[0]
        raise InputError.unshared(output, f"the driver does not see what the workers wrote ({where})") from None


def is_current(output: Path, generation: Path) -> bool:
    """Whether the dataset's manifest points at this generation."""
    try:
        return Manifest.load(output).generation == generation.name
    except ManifestError:
        return False


def new_generation(output: Path) -> Path:
    """A folder of our own inside the dataset, so that nothing that readers believe in is touched."""
    generation = output / f"{GENERATION_PREFIX}{secrets.token_hex(6)}"
    try:
        generation.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from None
    return generation


def count(lines: DataFrame, config: PipelineConfig) -> tuple[Vocab, dict[str, int]]:
    """The vocabulary, and how many lines, tokens and so on were seen. Partial counts here, sums in the JVM."""
    max_length = config.max_sentence_length

    def partial_counts(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            found = tokenize(batch.column(0), max_length)
            words = found.words.value_counts()
            seen = {
                "lines": found.num_lines,
                "invalid_utf8_lines": found.num_invalid_utf8,
                "sequences": int((found.lengths >= 2).sum()),
                "too_short": found.num_too_short,
                "tokens": len(found.words),
            }
            is_word = pa.array([True] * len(words) + [False] * len(seen))
            names = pa.concat_arrays([words.field(0), pa.array(seen)])
            counts = pa.concat_arrays([words.field(1), pa.array(seen.values(), pa.int64())])
            yield pa.RecordBatch.from_arrays([is_word, names, counts], ["is_word", "name", "count"])

    totals = (
        lines.mapInArrow(partial_counts, "is_word boolean, name string, count bigint")
        .groupBy("is_word", "name")
        .agg(F.sum("count").alias("count"))
        .where(~F.col("is_word") | (F.col("count") >= config.min_count))
        .toArrow()
    )
    words = totals.filter(totals["is_word"]).combine_chunks()
    others = totals.filter(pc.invert(totals["is_word"])).to_pydict()
    seen = dict(zip(others["name"], others["count"], strict=True))
    vocab = Vocab.from_counts(words["name"], words["count"], seen.get("tokens", 0), config.max_vocab)
    return vocab, seen


def check_vocab(vocab: Vocab, config: PipelineConfig) -> None:
    """A corpus from which no example, or no negative, could be drawn is refused before anything is written."""
    num_tokens, num_words = int(vocab.counts_V.sum()), len(vocab) - 1
    if num_tokens == 0:
        raise InputError("the corpus holds no tokens; expected text, one sentence a line")
    if num_words == 0:
        raise InputError(
            f"no word reaches --min-count {config.min_count} in {num_tokens} tokens; lower it or give a larger corpus"
        )
    if num_words <= 2 * config.window:
        raise InputError(
            f"the vocabulary has {num_words} words, expected more than 2 * window = {2 * config.window}, or a row's "
            f"contexts could leave no word for its negatives; lower --window or --min-count"
        )


def default_num_shards(vocab: Vocab, tables: Tables) -> int:
    """From the vocabulary alone: a shard for each 2^20 examples expected, at least 16."""
    expected = float((vocab.counts_V * (tables.keep_V / CERTAIN)).sum())
    return max(MIN_SHARDS, int(-(-expected // EXAMPLES_PER_SHARD)))


def encoded(lines: DataFrame, config: PipelineConfig, vocab_path: Path) -> DataFrame:
    """(key bigint, ids binary): every sequence with at least two known words, as int32 ids."""
    max_length = config.max_sentence_length

    def to_ids(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        words = _vocab(vocab_path).words
        for batch in batches:
            found = tokenize(batch.column(0), max_length)
            sequences = encode(found.words, found.lengths, words)
            keys = pa.array(sequences.keys.view(np.int64))
            yield pa.RecordBatch.from_arrays([keys, to_binary(sequences.ids, sequences.lengths)], ["key", "ids"])

    return lines.mapInArrow(to_ids, "key bigint, ids binary")


@lru_cache(maxsize=1)
def _vocab(path: Path) -> Vocab:
    """Read once a Python worker: a generation's folder has a name of its own."""
    with from_the_driver(path):
        return Vocab.read(path)


def shuffle(sequences: DataFrame, num_shards: int) -> DataFrame:
    """The one shuffle: partition by key, sort by (key, ids). Hash order is random order, and the same every time."""
    return sequences.repartition(num_shards, "key").sortWithinPartitions("key", "ids")


def write(sequences: DataFrame, config: PipelineConfig, generation: Path) -> None:
    """Samples and writes every partition as its shards; returns when Spark has committed all of them."""
    sequences.sparkSession.dataSource.register(ShardSink)
    writer = sequences.write.format(ShardSink.name()).mode("append")
    writer.options(path=str(generation), config=json.dumps(asdict(config))).save()


def collect(
    generation: Path,
    config: PipelineConfig,
    source_state: tuple[dict[str, str | int], ...],
    vocab: Vocab,
    seen: dict[str, int],
) -> Manifest:
    """The manifest of a generation, from the results of the tasks that Spark committed."""
    results = json.loads((generation / RESULTS).read_text())
    shards = sorted(
        (ShardInfo(**shard) for result in results for shard in result["shards"]),
        key=lambda shard: (shard.split != "train", shard.epoch, shard.path),
    )
    if not any(shard.split == "train" for shard in shards):
        raise InputError("no line gave an example: none has two known words that subsampling keeps")
    for result in results:
        if result["versions"] != versions():
            raise ManifestError(
                f"executor on {result['host']}: has {spelled(result['versions'])}, expected the driver's "
                f"{spelled(versions())}; install the same on all machines"
            )
    counts = Counts(
        **seen,
        unknown=int(vocab.counts_V[0]),
        subsampled=sum(result["subsampled"] for result in results),
        examples=sum(shard.rows for shard in shards),
        pairs=sum(result["pairs"] for result in results),
    )
    for leftover in (TABLES, RESULTS):
        (generation / leftover).unlink()
    return Manifest(
        generation=generation.name,
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


def remove_unlisted(output: Path, manifest: Manifest) -> None:
    """What attempts that lost or were killed left in the generation; nobody reads it, but it takes room."""
    listed = {output / manifest.vocab_path, *(output / shard.path for shard in manifest.shards)}
    for path in (output / manifest.generation).rglob("*"):
        if path not in listed and path.is_file():
            path.unlink(missing_ok=True)


def remove_other_generations(output: Path, current: Path) -> None:
    """What the manifest no longer points at, and what killed runs left."""
    for folder in output.glob(f"{GENERATION_PREFIX}*"):
        if folder != current:
            shutil.rmtree(folder, ignore_errors=True)
