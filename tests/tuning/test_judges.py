"""Judges: the numbers of queries, and what they have in common with the commands that evaluate."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.tuning.judges import HeldoutJudge, NextItemJudge, PairsJudge, estimate
from jobs.tuning.study_sample import ITEMS
from jobs.tuning.tune_config import JudgeSettings
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.draws import sequence_keys
from pipeline.shared.errors import InputError
from pipeline.shared.randomness import U64
from pipeline.spark.task import is_held_out
from pipeline.stages import prepare
from pipeline.tables.shop import shop_events, shop_sessions
from pipeline.text.corpus import text
from pipeline.text.word_index import Words
from training import train
from training.vectors.run_files import read_summary


@pytest.fixture(scope="module")
def sessions() -> list[list[str]]:
    return shop_sessions(shop_events(200, 5_000))


@pytest.fixture(scope="module")
def trained(
    spark: SparkSession, tmp_path_factory: pytest.TempPathFactory, sessions: list[list[str]]
) -> tuple[Path, Path]:
    """A run and its dataset, with the sequences held out as the test's, in a folder called sample beside them."""
    folder = tmp_path_factory.mktemp("judged")
    (folder / "corpus.txt").write_text("".join(f"{' '.join(session)}\n" for session in sessions))
    config = PipelineConfig(preset="items", window=3, min_count=3, holdout=0.2, num_shards=2)
    prepare(spark, text(folder / "corpus.txt"), config, folder / "data")
    with pytest.MonkeyPatch.context() as patch:
        arguments = [
            "--data",
            folder / "data",
            "--output",
            folder / "run",
            "--epochs",
            3,
            "--dim",
            16,
            "--no-tensorboard",
        ]
        patch.setattr("sys.argv", ["train.py", "--no-tensorboard", *map(str, arguments)])
        train.main()
    (folder / "sample").mkdir()
    held = [session for session in sessions if is_held_out(key_of(session), config.holdout)[0]]
    for part, lists in (("test", held), ("validation", held[:50]), ("train", sessions)):
        pq.write_table(pa.table({ITEMS: pa.array(lists, pa.list_(pa.string()))}), folder / "sample" / f"{part}.parquet")
    return folder / "run", folder / "data"


def key_of(session: list[str]) -> U64:
    hashes = Words.of(pa.array(session)).hashes
    return sequence_keys(hashes, np.array([len(session)]))


def test_the_held_out_loss_of_the_test_is_that_of_the_same_sequences_while_training(trained: tuple[Path, Path]) -> None:
    """But for copies of a sequence, which prepare samples differently, and this judge alike."""
    run, data = trained
    judge = HeldoutJudge(run.parent / "sample")
    rows = judge.tested(run, data)
    expected = read_summary(run)["heldout"]["last"]["loss"]
    assert judge.chosen_by(run, data) == expected
    assert judge.value(rows) == pytest.approx(expected, abs=2e-4)


def test_unknown_items_are_misses(trained: tuple[Path, Path]) -> None:
    run, data = trained
    for metric in ("hit_rate", "ndcg", "mrr"):
        judge = NextItemJudge(JudgeSettings(metric=metric), run.parent / "sample")
        rows = judge.tested(run, data)
        assert rows.shape[1] == 3
        assert judge.value(rows) == rows[:, ("hit_rate", "ndcg", "mrr").index(metric)].mean()
        assert set(judge.others(rows)) == {"HR@10", "NDCG@10", "MRR"} - {judge.name.split()[0]}
    lists = pq.read_table(run.parent / "sample" / "test.parquet")[ITEMS].to_pylist()
    known = {*pq.read_table(run / "vocab.parquet")["word"].to_pylist()}
    assert len(rows) == sum(len(items) > 1 for items in lists)
    missed = [items[-1] not in known for items in lists if len(items) > 1]
    assert any(missed)
    assert not rows[missed].any()
    assert judge.value(judge.tested(run, data, "popularity")) < judge.value(rows)


def test_pairs_choose_and_test_by_different_halves(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = trained
    words = pq.read_table(run / "vocab.parquet")["word"].to_pylist()[1:81]
    lines = [f"{first}\t{second}\t{number % 7}\n" for number, (first, second) in enumerate(pairwise(words))]
    (tmp_path / "pairs.txt").write_text("".join([*lines, "unknown\twords\t3\n"]))
    judges = [PairsJudge((tmp_path / "pairs.txt",), seed) for seed in (0, 1)]
    rows = judges[0].tested(run, data)
    assert 25 < len(rows) < 55
    assert judges[0].value(rows) != judges[0].chosen_by(run, data)
    assert len(rows) != len(judges[1].tested(run, data)) or (rows != judges[1].tested(run, data)).any()
    half = np.concatenate([rows, [[1.0, 0.0, 0.0]] * len(rows)])
    assert judges[0].value(half) == pytest.approx(
        judges[0].value(rows[rows[:, 2] > 0]) * (rows[:, 2].sum() / len(half))
    )


def test_pairs_that_say_nothing_are_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run, data = trained
    few, unknown = tmp_path / "few.txt", tmp_path / "unknown.txt"
    few.write_text("a\tb\t1\n" * 3)
    with pytest.raises(InputError, match=r"judge.pairs: found . to choose by and . for the test, expected 10 or more"):
        PairsJudge((few,), 0)
    unknown.write_text("no\tsuch\t1\n" * 40)
    with pytest.raises(InputError, match=r"found fewer than two of \d+ pairs with known words"):
        PairsJudge((unknown,), 0).chosen_by(run, data)


def test_an_interval_holds_the_value_and_equal_runs_differ_by_nothing() -> None:
    judge = NextItemJudge(JudgeSettings(), Path())
    rows = np.random.default_rng(0).random((400, 3))
    found = estimate(judge, rows)
    assert found.low < found.value == judge.value(rows) < found.high
    assert found.high - found.low == pytest.approx(4 * rows[:, 1].std() / 20, rel=0.15)
    same = estimate(judge, rows, rows)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    better = estimate(judge, rows + 0.01, rows)
    assert better.low == pytest.approx(0.01)
    assert replace(better, low=0).high == pytest.approx(0.01)
