"""Laws of the pipeline in Spark: pipeline.stages, sink, shards."""

import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import stat
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from test_parquet import encoded, random_examples
from test_parquet import expected as columns_of

from pipeline import stages
from pipeline.dataset import encode as parquet
from pipeline.dataset.manifest_file import FORMAT_VERSION, Manifest, ManifestError
from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import MAX_SEQUENCE_TOKENS, PipelineConfig
from pipeline.sampling.sample import Examples, Slice, Tables
from pipeline.shared.errors import InputError
from pipeline.shared.randomness import U64
from pipeline.shared.storage import Location
from pipeline.spark.shard_writer import ShardFile
from pipeline.spark.shared_arrays import put_arrays
from pipeline.spark.task import (
    SLICE_VALUES,
    TABLES,
    from_binary,
    is_held_out,
    slice_tokens,
    slices,
    to_binary,
    write_shards,
)
from pipeline.stages import default_num_shards, prepare
from pipeline.text import demo
from pipeline.text.corpus import Corpus, text
from pipeline.text.tokens import CHUNK_BYTES

TINY = [
    "",
    "one",
    "never seen words only",
    "the cat sat on the mat",
    "the dog sat on the cat",
    "the dog and the cat and the mat",
    "\tthe   caf\u00e9\u00a0and the \u4f60\u597d dog ",
    "caf\u00e9 \u4f60\u597d caf\u00e9 \u4f60\u597d",
    "<unk> the dog <unk>",
    "sat on",
    "the cat sat on the mat",
    "the cat sat on the mat",
    "dog",
    "the unseen cat",
    "mat mat mat mat",
    " ".join(["the dog sat on", "the mat and the cat ran to", "a caf\u00e9 in"] * 273)[: 3000 * 5],
    "a a a a a a a",
    "ran ran to in a in to ran",
    "x y z",
    "and so it ran",
]
CONFIG = PipelineConfig(window=2, negatives=3, min_count=2, sample=1e-1, num_shards=3)


def corpus_of(folder: Path, lines: list[str], num_files: int = 1) -> Corpus:
    folder.mkdir(parents=True)
    for number in range(num_files):
        content = "".join(f"{line}\n" for line in lines[number::num_files])
        (folder / f"part-{number}.txt").write_text(content, encoding="utf-8")
    return text(folder)


def rows_of(
    dataset: Path, manifest: Manifest, epoch: int = 0, split: str = "train"
) -> list[tuple[int, tuple[int, ...], int]]:
    """(center, real contexts and negatives, num_contexts) of every example."""
    rows = []
    for shard in manifest.select(epoch, split):
        table = pq.read_table(dataset / shard.path, columns=["center", "contexts_negatives", "num_contexts"])
        for center, row, n in zip(*(column.to_pylist() for column in table.columns), strict=True):
            rows.append((center, tuple(row[: n * (1 + manifest.config.negatives)]), n))
    return rows


def digests(manifest: Manifest) -> list[tuple[str, int, str]]:
    return [(shard.split, shard.epoch, shard.sha256) for shard in manifest.shards]


@pytest.fixture(scope="module")
def tiny(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    folder = tmp_path_factory.mktemp("tiny")
    config = replace(CONFIG, epochs=2)
    return folder / "out", prepare(spark, corpus_of(folder / "in", TINY), config, folder / "out")


@pytest.mark.parametrize("epoch", [0, 1])
def test_the_pipeline_equals_the_oracle(tiny: tuple[Path, Manifest], epoch: int) -> None:
    dataset, manifest = tiny
    vocab = Vocab.read(dataset / manifest.vocab_path)
    pieces = oracles.sequences(TINY, 1000)
    assert list(zip(vocab.words.to_pylist(), vocab.counts_V.tolist(), strict=True)) == oracles.vocabulary(pieces, 2)

    tables = Tables.build(vocab.counts_V, manifest.config)
    expected = oracles.examples(
        TINY,
        min_count=2,
        window=2,
        negatives=3,
        epoch=epoch,
        keep=tables.keep_V.tolist(),
        tables=oracles.NoiseTables.of(tables.noise.ends_V.tolist(), tables.noise.slots_S.tolist()),
    )
    assert len(expected) > 1000
    assert sorted(rows_of(dataset, manifest, epoch)) == sorted(expected)


def test_a_dataset_has_the_files_of_its_manifest_and_no_others(tiny: tuple[Path, Manifest]) -> None:
    dataset, manifest = tiny
    files = [path.relative_to(dataset).as_posix() for path in dataset.rglob("*") if path.is_file()]
    assert sorted(files) == sorted(["manifest.json", manifest.vocab_path, *(shard.path for shard in manifest.shards)])


def test_counts_say_what_was_seen_and_made(tiny: tuple[Path, Manifest]) -> None:
    dataset, manifest = tiny
    pieces, counts = oracles.sequences(TINY, 1000), manifest.counts
    rows = rows_of(dataset, manifest, 0) + rows_of(dataset, manifest, 1)
    assert counts.lines == len(TINY)
    assert counts.tokens == sum(map(len, pieces))
    assert counts.unknown == oracles.vocabulary(pieces, 2)[0][1]
    assert counts.sequences == sum(len(piece) >= 2 for piece in pieces)
    assert counts.too_short == sum(len(piece) < 2 for piece in pieces) + TINY.count("")
    assert counts.examples == len(rows)
    assert counts.pairs == sum(n for _, _, n in rows)


def test_every_column_says_the_same_and_is_what_the_design_says(tiny: tuple[Path, Manifest]) -> None:
    dataset, manifest = tiny
    for shard in manifest.shards:
        table = pq.ParquetFile(dataset / shard.path, page_checksum_verification=True).read()
        assert table.schema.equals(parquet.SCHEMA)
        assert table.num_rows == shard.rows
        for row in table.to_pylist():
            real, n = row["num_contexts"] * 4, row["num_contexts"]
            padding = manifest.max_len - real
            assert row["mask"] == [1] * real + [0] * padding
            assert row["label"] == [1] * n + [0] * (manifest.max_len - n)
            assert row["contexts_negatives"][real:] == [0] * padding
            assert 0 not in row["contexts_negatives"][:real]
            assert row["center"] > 0


def test_spark_reads_a_shard(spark: SparkSession, tmp_path: Path) -> None:
    """Its own reader, beside pandas and DuckDB in test_parquet.py."""
    examples = random_examples(1000, 300, 5, 5)
    (tmp_path / "shard.parquet").write_bytes(encoded(examples, 5))
    rows = list(zip(*(values.tolist() for values in columns_of(examples, 5).values()), strict=True))
    frame = spark.read.parquet(str(tmp_path / "shard.parquet"))
    assert frame.dtypes == [
        ("center", "int"),
        ("contexts_negatives", "array<int>"),
        ("mask", "array<tinyint>"),
        ("label", "array<tinyint>"),
        ("num_contexts", "smallint"),
    ]
    assert [tuple(row) for row in frame.collect()] == rows
    assert frame.where("center = 7").count() == sum(row[0] == 7 for row in rows)


@pytest.fixture(scope="module")
def demo_lines() -> list[str]:
    return list(islice(demo.demo_lines(), 5000))


@pytest.fixture(scope="module")
def demo_digests(spark: SparkSession, demo_lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> object:
    folder = tmp_path_factory.mktemp("law")
    corpus = corpus_of(folder / "in", demo_lines)
    manifest = prepare(spark, corpus, PipelineConfig(min_count=5, holdout=0.05, epochs=2), folder / "out")
    assert manifest.counts.examples > 20_000
    assert len(manifest.select(0, "heldout")) > 1
    return digests(manifest)


@pytest.mark.parametrize(
    ("num_files", "batch"),
    [*(pytest.param(*case, marks=pytest.mark.long) for case in ((1, 64), (3, 10_000))), (7, 999)],
)
def test_files_line_order_and_batch_size_change_no_byte(
    spark: SparkSession, demo_lines: list[str], demo_digests: object, tmp_path: Path, num_files: int, batch: int
) -> None:
    shuffled = random.Random(num_files).sample(demo_lines, len(demo_lines))
    corpus = corpus_of(tmp_path / "in", shuffled, num_files)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", batch)
    spark.conf.set("spark.sql.files.maxPartitionBytes", 20_000 * num_files)
    try:
        manifest = prepare(spark, corpus, PipelineConfig(min_count=5, holdout=0.05, epochs=2), tmp_path / "out")
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
        spark.conf.unset("spark.sql.files.maxPartitionBytes")
    assert digests(manifest) == demo_digests


def test_heldout_sequences_are_not_trained_on_and_seeds_do_not_move_them(
    spark: SparkSession, demo_lines: list[str], tmp_path: Path
) -> None:
    """What is held out depends on the text alone. ``sample`` 0, so that every known word of a line is an example."""
    corpus = corpus_of(tmp_path / "in", demo_lines[:2000])
    centers = {}
    for seed, min_count in [(0, 5), (1, 5), (0, 8)]:
        config = PipelineConfig(min_count=min_count, sample=0, holdout=0.1, seed=seed, num_shards=2)
        dataset = tmp_path / f"{seed}-{min_count}"
        manifest = prepare(spark, corpus, config, dataset)
        words = Vocab.read(dataset / manifest.vocab_path).words.to_pylist()
        held = [words[center] for center, _, _ in rows_of(dataset, manifest, 0, "heldout")]
        train = rows_of(dataset, manifest, 0)
        assert 0.05 < len(held) / (len(held) + len(train)) < 0.15
        centers[seed, min_count] = sorted(held)
    whole = prepare(spark, corpus, replace(config, holdout=0.0), tmp_path / "whole")
    assert len(held) + len(train) == whole.counts.examples, "each line is either held out or trained on"
    assert centers[0, 5] == centers[1, 5]
    assert set(centers[0, 8]) <= set(centers[0, 5])


def test_holdout_takes_its_share() -> None:
    keys: U64 = np.arange(100_000, dtype=np.uint64)
    assert is_held_out(keys, 0).sum() == 0
    assert abs(is_held_out(keys, 0.1).mean() - 0.1) < 0.005
    assert not (is_held_out(keys, 0.1) & ~is_held_out(keys, 0.2)).any()


@pytest.mark.long
def test_row_groups_are_full_and_the_rest_comes_last(
    spark: SparkSession, demo_lines: list[str], tmp_path: Path
) -> None:
    corpus = corpus_of(tmp_path / "in", demo_lines)
    manifest = prepare(spark, corpus, PipelineConfig(min_count=5, sample=0, num_shards=2), tmp_path / "out")
    for shard in manifest.shards:
        metadata = pq.ParquetFile(tmp_path / "out" / shard.path).metadata
        sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        assert len(sizes) > 1
        assert sizes[:-1] == [manifest.row_group_rows] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= manifest.row_group_rows


def test_equal_sequences_are_numbered_across_batches() -> None:
    rows = [(1, [5, 6]), (1, [5, 6]), (1, [7, 8]), (2, [5, 6]), (2, [5, 6]), (2, [5, 6]), (3, [9, 9])]
    keys = np.array([key for key, _ in rows], dtype=np.int64)
    ids = np.array([i for _, sequence in rows for i in sequence], dtype=np.int32)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(keys), to_binary(ids, np.full(len(rows), 2, dtype=np.int64))], ["key", "ids"]
    )
    for size in range(1, 8):
        cut = [batch.slice(start, size) for start in range(0, len(rows), size)]
        found = list(slices(iter(cut), max_tokens=100))
        assert np.concatenate([piece.repeats for piece in found]).tolist() == [0, 1, 0, 0, 1, 2, 0]
        assert np.concatenate([piece.ids for piece in found]).tolist() == ids.tolist()


@pytest.mark.parametrize(
    ("max_tokens", "expected"),
    [
        (10, [[3, 3, 3], [3], [10], [2], [9, 1]]),
        (4, [[3], [3], [3], [3], [10], [2], [9], [1]]),
        (100, [[3, 3, 3, 3, 10, 2, 9, 1]]),
    ],
)
def test_slices_hold_whole_sequences_and_not_too_many_tokens(max_tokens: int, expected: list[list[int]]) -> None:
    lengths = np.array([3, 3, 3, 3, 10, 2, 9, 1])
    ids = np.arange(lengths.sum(), dtype=np.int32)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(np.arange(8, dtype=np.int64)), to_binary(ids, lengths)], ["key", "ids"]
    )
    found: list[Slice] = list(slices(iter([batch]), max_tokens))
    assert [piece.lengths.tolist() for piece in found] == expected
    assert np.concatenate([piece.ids for piece in found]).tolist() == ids.tolist()


@pytest.mark.parametrize(("window", "negatives"), [(1, 1), (5, 5), (20, 20), (1000, 15)])
def test_the_rows_of_a_slice_are_bounded(window: int, negatives: int) -> None:
    config = PipelineConfig(window=window, negatives=negatives)
    assert 1 <= slice_tokens(config) <= MAX_SEQUENCE_TOKENS
    assert slice_tokens(config) * config.max_len <= SLICE_VALUES


def test_binary_sequences_read_back_from_a_slice() -> None:
    ids, lengths = np.arange(9, dtype=np.int32), np.array([2, 3, 4])
    found_ids, found_lengths = from_binary(to_binary(ids, lengths).slice(1, 2))
    assert (found_ids.tolist(), found_lengths.tolist()) == ([2, 3, 4, 5, 6, 7, 8], [3, 4])


def test_num_shards_follow_from_the_vocabulary() -> None:
    config = PipelineConfig(sample=0)
    few, many = np.array([0, *[1000] * 99]), np.array([0, *[10**6] * 99])
    assert default_num_shards(Vocab(None, few), Tables.build(few, config)) == 16
    assert default_num_shards(Vocab(None, many), Tables.build(many, config)) == -(-99 * 10**6 // 2**20)


def test_a_gzipped_corpus_and_odd_file_names_read_the_same(
    spark: SparkSession, tiny: tuple[Path, Manifest], tmp_path: Path
) -> None:
    folder = tmp_path / "a [b]*? {c,d} %20"
    folder.mkdir()
    content = "".join(f"{line}\n" for line in TINY).encode()
    (folder / "x [1] y?.txt.gz").write_bytes(gzip.compress(content))
    manifest = prepare(spark, text(folder), replace(CONFIG, epochs=2), tmp_path / "out")
    assert digests(manifest) == digests(tiny[1])


@pytest.mark.parametrize("copies", [1, pytest.param(10, marks=pytest.mark.long)])
def test_one_line_in_a_file_that_cannot_be_split_is_the_dataset_of_its_pieces(
    spark: SparkSession, demo_lines: list[str], tmp_path: Path, copies: int
) -> None:
    """With ten copies a line of several stretches; two that are none beside it."""
    words = [word for line in demo_lines for word in line.split()] * copies
    assert (len(" ".join(words)) > 2 * CHUNK_BYTES) == (copies == 10)
    pieces = [" ".join(words[start : start + 1000]) for start in range(0, len(words), 1000)]
    config = PipelineConfig(min_count=5, num_shards=4)
    expected = prepare(spark, corpus_of(tmp_path / "pieces", ["a b c", *pieces, "d e"]), config, tmp_path / "1")
    (tmp_path / "line.gz").write_bytes(gzip.compress(f"a b c\n{' '.join(words)}\nd e\n".encode()))
    manifest = prepare(spark, text(tmp_path / "line.gz"), config, tmp_path / "2")
    assert manifest.dataset_id == expected.dataset_id
    assert manifest.counts.lines == 3
    assert len(manifest.shards) == 4


def test_a_run_that_fails_leaves_the_old_dataset_and_nothing_else(
    spark: SparkSession, tiny: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    shutil.copytree(tiny[0], output)
    before = sorted(path.relative_to(output) for path in output.rglob("*"))
    corpus = corpus_of(tmp_path / "in", TINY)
    with pytest.raises(InputError, match="no word reaches --min-count 9999"):
        prepare(spark, corpus, replace(CONFIG, min_count=9999), output)

    def fail(*_: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(stages, "manifest_of", fail)  # the shards are written by then
    with pytest.raises(RuntimeError, match="fire"):
        prepare(spark, corpus, CONFIG, output)
    assert sorted(path.relative_to(output) for path in output.rglob("*")) == before
    assert Manifest.load(output) == tiny[1]


# Attempts: test_cluster.py kills and overtakes real executors


def test_workers_killed_in_mid_shuffle_and_in_mid_write_change_no_byte(
    spark: SparkSession, tiny: tuple[Path, Manifest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Spark tries their tasks again; the winning attempt has another number than in an undisturbed run."""
    shuffle = stages.shuffle

    def killed(rows: DataFrame, marker: Path) -> DataFrame:
        def once(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                yield batch
                if not marker.exists():
                    marker.touch()
                    os.kill(os.getpid(), signal.SIGKILL)

        return rows.mapInArrow(once, rows.schema)

    def shuffle_and_kill(rows: DataFrame, num_shards: int) -> DataFrame:
        return killed(shuffle(killed(rows, tmp_path / "in shuffle"), num_shards), tmp_path / "in write")

    monkeypatch.setattr(stages, "shuffle", shuffle_and_kill)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", 2)
    try:
        manifest = prepare(spark, corpus_of(tmp_path / "in", TINY), replace(CONFIG, epochs=2), tmp_path / "out")
    finally:
        spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
    assert {"in shuffle", "in write"} <= {path.name for path in tmp_path.iterdir()}
    assert digests(manifest) == digests(tiny[1])
    assert files_of(tmp_path / "out") == files_of(tiny[0], manifest.generation)


def files_of(dataset: Path, generation: str | None = None) -> list[str]:
    """Their names, those of another dataset under the name of this one's generation."""
    own = Manifest.load(dataset).generation
    names = (path.relative_to(dataset).as_posix() for path in dataset.rglob("*"))
    return sorted(name.replace(own, generation or own) for name in names)


@pytest.fixture
def task(tmp_path: Path) -> tuple[Location, PipelineConfig, list[Slice]]:
    """What a task is given: the generation with its tables, the config, its sequences."""
    config, chance = PipelineConfig(window=2, negatives=2, sample=0.1, epochs=2), np.random.default_rng(0)
    generation = Location.of(tmp_path / "gen-0123456789ab")
    generation.make_folder()
    tables = Tables.build(np.array([0, *range(60, 0, -1)]), config)
    put_arrays(generation, TABLES, tables.arrays())
    lengths = np.full(50, 8)
    pieces = [
        Slice(chance.integers(1, 61, 400).astype(np.int32), lengths, keys.astype(np.uint64), np.zeros(50, np.int64))
        for keys in np.arange(150).reshape(3, 50)
    ]
    return generation, config, pieces


def test_an_attempt_that_is_overtaken_writes_the_same_bytes_and_leaves_no_file(
    task: tuple[Location, PipelineConfig, list[Slice]],
) -> None:
    generation, config, pieces = task
    found = []

    def overtaken() -> Iterator[Slice]:
        yield pieces[0]
        found.append(write_shards(generation, config, 0, iter(pieces)))
        yield from pieces[1:]

    found.append(write_shards(generation, config, 0, overtaken()))
    assert found[0] == found[1]
    written = [entry.path for entry in generation.files() if not entry.base_name.startswith(TABLES)]
    assert sorted(written) == sorted((generation / f"train/epoch={e}/shard-00000.parquet").path for e in range(2))


def test_attempts_of_one_task_at_the_same_time_share_no_temporary_file(
    task: tuple[Location, PipelineConfig, list[Slice]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one process here; on a cluster two machines may have processes of the same number."""
    generation, config, pieces = task
    monkeypatch.setattr("pipeline.spark.shard_writer.ROW_GROUP_ROWS", 8)
    found = []

    def overtaken() -> Iterator[Slice]:
        yield pieces[0]
        assert len(unfinished := list(generation.local.rglob(".shard-*"))) == 2, unfinished  # type: ignore[union-attr]
        found.append(write_shards(generation, config, 0, iter(pieces)))
        yield from pieces[1:]

    found.append(write_shards(generation, config, 0, overtaken()))
    assert found[0] == found[1]
    for shard in found[0]["shards"]:
        content = (generation.local.parent / shard["path"]).read_bytes()  # type: ignore[union-attr]
        assert (len(content), hashlib.sha256(content).hexdigest()) == (shard["bytes"], shard["sha256"])


def test_a_shard_is_on_the_disk_before_it_has_its_name_and_its_name_before_the_task_ends(
    task: tuple[Location, PipelineConfig, list[Slice]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a machine that loses power after the manifest is written has all that it lists."""
    generation, config, pieces = task
    synced: dict[int, int] = {}  # inode: size
    replace, renamed = Path.replace, []

    def fsync(file: int) -> None:
        state = os.fstat(file)
        synced[state.st_ino] = state.st_size

    def noted(self: Path, to: Path) -> Path:
        assert synced[self.stat().st_ino] == self.stat().st_size
        synced.pop(to.parent.stat().st_ino, None)
        renamed.append(to)
        return replace(self, to)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", noted)
    write_shards(generation, config, 0, iter(pieces))
    assert [path.name for path in renamed] == ["shard-00000.parquet"] * 2
    folders = {folder for path in renamed for folder in (path.parent, path.parents[1], path.parents[2])}
    assert {folder.name for folder in folders} == {"epoch=0", "epoch=1", "train", "gen-0123456789ab"}
    assert [folder for folder in folders if folder.stat().st_ino not in synced] == []


@pytest.mark.parametrize("num_written", [0, 1])
def test_an_attempt_that_finds_the_disk_full_is_one_line_and_leaves_no_half_file(
    task: tuple[Location, PipelineConfig, list[Slice]], monkeypatch: pytest.MonkeyPatch, num_written: int
) -> None:
    """Spark carries the line to the driver, see test_cluster.py; test_prepare_any.py fills a real disk."""
    generation, config, pieces = task
    whole: list[int] = []

    def fsync(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            return
        if len(whole) == num_written:
            raise OSError(28, "No space left on device")
        whole.append(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"^--output .*cannot be written \(No space left on device\)"):
        write_shards(generation, config, 0, iter(pieces))
    names = [entry.base_name for entry in generation.files() if not entry.base_name.startswith(TABLES)]
    assert names == ["shard-00000.parquet"] * num_written


def test_a_task_left_over_does_not_make_a_removed_generation_again(tmp_path: Path) -> None:
    with ShardFile(Location.of(tmp_path) / "gen-0123456789ab", "train", 0, 0, CONFIG) as file:
        file.append(Examples(np.ones(1, np.int32), np.ones((1, 16), np.int32), np.ones(1, np.int16), 0))
        with pytest.raises(FileNotFoundError):
            file.finish()
    assert list(tmp_path.iterdir()) == []


def test_the_dataset_id_does_not_depend_on_the_folder(tiny: tuple[Path, Manifest], tmp_path: Path) -> None:
    shutil.copytree(tiny[0], tmp_path / "elsewhere")
    assert Manifest.load(tmp_path / "elsewhere").dataset_id == tiny[1].dataset_id
    assert replace(tiny[1], generation="gen-other").dataset_id == tiny[1].dataset_id
    other = replace(tiny[1], config=replace(tiny[1].config, seed=1))
    assert other.dataset_id != tiny[1].dataset_id


NEWER = FORMAT_VERSION + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"format_version": NEWER},
            f"found format version {NEWER}, expected {FORMAT_VERSION}; use the shardvec that wrote it",
        ),
        ({"format_version": None}, "found format version None"),
        ({"vocab_digest": "0" * 64}, "dataset_id does not fit"),
        ({"config": {"window": 0}}, "not a valid manifest"),
    ],
)
def test_a_manifest_that_cannot_be_right_is_refused(
    tiny: tuple[Path, Manifest], tmp_path: Path, change: dict[str, object], message: str
) -> None:
    record = json.loads((tiny[0] / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**record, **change}))
    with pytest.raises(ManifestError, match=message):
        Manifest.load(tmp_path)
