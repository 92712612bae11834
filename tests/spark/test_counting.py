"""Laws of counting, and of what the driver hands to the tasks: a large vocabulary fills neither Java nor any worker."""

import random
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pyarrow as pa
import pytest
from py4j.protocol import Py4JJavaError
from pyspark.sql import SparkSession

from pipeline import stages
from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Tables
from pipeline.shared.errors import InputError
from pipeline.shared.storage import Location
from pipeline.spark import counting, task
from pipeline.spark.shared_arrays import get_arrays, put_arrays
from pipeline.stages import prepare
from pipeline.text import word_counts
from pipeline.text.corpus import text
from pipeline.text.tokens import tokenized
from pipeline.text.word_counts import Totals, merged
from pipeline.text.word_index import WordIndex, Words

CONFIG = PipelineConfig(min_count=1, window=2, num_shards=2)
MB = 1 << 20


@pytest.fixture
def small_results(spark: SparkSession) -> Iterator[None]:
    """The driver may receive 256 KiB of an action."""
    conf: Any = spark.sparkContext._jsc.sc().conf()
    before = conf.get("spark.driver.maxResultSize", "1g")
    conf.set("spark.driver.maxResultSize", "256k")
    yield
    conf.set("spark.driver.maxResultSize", before)


@pytest.mark.long
@pytest.mark.parametrize("max_vocab", [None, 35_000])
def test_the_driver_receives_no_vocabulary_from_spark(
    spark: SparkSession, small_results: None, tmp_path: Path, max_vocab: int | None
) -> None:
    words = [f"{word:x}" for word in np.random.default_rng(0).integers(1 << 40, 1 << 48, 40_000)]  # hard to compress
    assert len({*words}) == 40_000
    with pytest.raises(Py4JJavaError, match=r"bigger than spark\.driver\.maxResultSize"):
        spark.createDataFrame(pa.table({"word": words})).repartition(2).collect()
    lines = [" ".join(words[start : start + 10]) for start in range(0, 40_000, 10)]
    (tmp_path / "in.txt").write_text("".join(f"{line}\n" for line in [*lines, *lines[:1000]]))
    manifest = prepare(spark, text(tmp_path / "in.txt"), replace(CONFIG, max_vocab=max_vocab), tmp_path / "out")
    vocab = Vocab.read(tmp_path / "out" / manifest.vocab_path)
    expected = oracles.vocabulary([line.split() for line in [*lines, *lines[:1000]]], 1, max_vocab)
    assert list(zip(vocab.words.to_pylist(), vocab.counts_V.tolist(), strict=True)) == expected


@pytest.mark.parametrize("num_pieces", [1, 2, 200])
def test_counts_are_the_same_in_any_number_of_tasks_and_pieces(
    monkeypatch: pytest.MonkeyPatch, num_pieces: int
) -> None:
    """Words named like the other counts are no other counts."""
    monkeypatch.setattr(word_counts, "MAX_PARTIAL_COUNTS", 16)
    chance = random.Random(num_pieces)
    lines = [" ".join(chance.choices(["lines", "tokens", *"abcdefghijklmnopqrstuvwxyz"], k=5)) for _ in range(200)]
    tasks = []
    for start in range(0, 200, 40):
        totals = Totals()
        for found in tokenized(pa.array(lines[start : start + 40]), CONFIG):
            totals.add(found)
        tasks.append(totals.pieces(num_pieces))
    words: Counter[str] = Counter()
    others: Counter[str] = Counter()
    for number in range(num_pieces):
        mine = (batch.filter(pa.array(np.equal(batch["piece"], number))) for batch in tasks)
        for row in merged(mine, min_count=30).to_pylist():
            (words if row["is_word"] else others)[row["name"]] += row["count"]
            assert not row["is_word"] or words[row["name"]] == row["count"], "in one piece"
    counted = Counter(word for line in lines for word in line.split())
    assert words == {word: count for word, count in counted.items() if count >= 30}
    assert (others["lines"], others["tokens"], others["too_short"]) == (200, 1000, 0)


def test_a_driver_that_does_not_see_the_workers_counts_names_output_and_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"^--output {tmp_path}: the driver does not see .*counts-00007.arrow"):
        counting.read_words(["counts-00007.arrow"], Location.of(tmp_path) / "gen-0")


@pytest.mark.parametrize("place", ["{}", "memory://arrays{}"])
def test_arrays_are_read_as_they_were_written(tmp_path: Path, place: str) -> None:
    folder = Location.of(place.format(tmp_path))
    arrays: dict[str, npt.NDArray[Any]] = {
        "a": np.arange(7, dtype=np.uint64),
        "b": np.zeros(0, np.int32),
        "c": np.arange(3, dtype=np.uint8),
    }
    put_arrays(folder, "some", arrays)
    again = get_arrays(folder, "some", "cba")
    assert [*again] == ["c", "b", "a"]
    for key, array in arrays.items():
        assert (type(again[key]), again[key].dtype, again[key].tolist()) == (np.ndarray, array.dtype, array.tolist())


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_has_no_vocabulary_of_its_own(tmp_path: Path) -> None:
    """It maps the files, which the workers of a machine share: its own (anonymous) memory does not grow with them."""
    num_words = 500_000
    words = pa.array([f"word{number}" for number in range(num_words)])
    for name, size in (("small", 100), ("large", num_words)):
        generation = Location.of(tmp_path / name)
        generation.make_folder()
        tables = Tables.build(np.full(size, 5), CONFIG)
        put_arrays(generation, stages.INDEX, WordIndex(words[:size]).arrays())
        put_arrays(generation, task.TABLES, tables.arrays())
    used = []
    asked = Words.of(words[-1000:])
    for name in ("small", "large"):  # the first compiles
        before = own_memory()
        index, read = stages._word_index(str(tmp_path / name)), task._tables(str(tmp_path / name))
        found = index.ids(asked)
        assert int(read.keep_V.sum() + read.noise.slots_S.sum() + read.noise.ends_V.sum()) > 0
        used.append(own_memory() - before)
    assert found.tolist() == [*range(num_words - 1000, num_words)]
    assert sum(array.nbytes for array in (*tables.arrays().values(), *index.arrays().values())) > 24 * MB
    assert used[1] < 2 * MB


def own_memory() -> int:
    """What this process shares with no other, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))
