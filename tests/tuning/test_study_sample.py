"""How a study divides sequences: by what they are, not by where they are."""

from itertools import chain, combinations
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from jobs.tuning.study_sample import ITEMS, PARTS, Division, write_sample
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError
from pipeline.tables.shop import shop_events, shop_sessions
from pipeline.text.corpus import text

Sequence = tuple[str, ...]


@pytest.fixture(scope="module")
def sessions() -> list[Sequence]:
    return [tuple(session) for session in shop_sessions(shop_events(300, 6_000))]


def divided(
    spark: SparkSession, folder: Path, sequences: list[Sequence], config: PipelineConfig, division: Division
) -> dict[str, list[Sequence]]:
    """What is in each file."""
    folder.mkdir()
    (folder / "corpus.txt").write_text("".join(f"{' '.join(sequence)}\n" for sequence in sequences))
    (folder / "sample").mkdir()
    counts = write_sample(spark, text(folder / "corpus.txt"), config, division, folder / "sample")
    found = {part: pq.read_table(folder / "sample" / f"{part}.parquet")[ITEMS].to_pylist() for part in PARTS}
    assert counts == {part: len(lists) for part, lists in found.items()}
    return {part: [tuple(items) for items in lists] for part, lists in found.items()}


def test_every_sequence_is_in_one_part_and_judged_ones_train_without_their_last_items(
    spark: SparkSession, tmp_path: Path, sessions: list[Sequence]
) -> None:
    config = PipelineConfig()
    both = sessions + sessions[:100]  # copies are in the part of the original
    whole = divided(spark, tmp_path / "a", both, config, Division(1.0, 0.2, 0.1, predicts_last=False, seed=0))
    assert sorted(chain.from_iterable(whole.values())) == sorted(both)
    parts = [{*sequences} for sequences in whole.values()]
    assert all(first.isdisjoint(second) for first, second in combinations(parts, 2))
    assert len(whole["validation"]) == pytest.approx(0.2 * len(both), rel=0.25)
    assert len(whole["test"]) == pytest.approx(0.1 * len(both), rel=0.35)

    reversed_too = divided(
        spark, tmp_path / "b", both[::-1], config, Division(1.0, 0.2, 0.1, predicts_last=True, seed=0)
    )
    assert (reversed_too["validation"], reversed_too["test"]) == (whole["validation"], whole["test"])
    histories = [sequence[:-1] for part in ("validation", "test") for sequence in whole[part]]
    assert sorted(reversed_too["train"]) == sorted(whole["train"] + histories)


def test_a_smaller_fraction_is_a_part_of_a_larger_one_and_another_seed_another_sample(
    spark: SparkSession, tmp_path: Path, sessions: list[Sequence]
) -> None:
    config = PipelineConfig()
    small, large, other = (
        divided(spark, tmp_path / name, sessions, config, Division(fraction, 0.2, 0.2, predicts_last=False, seed=seed))
        for name, fraction, seed in (("a", 0.3, 0), ("b", 0.6, 0), ("c", 0.3, 1))
    )
    for part in PARTS:
        assert {*small[part]} < {*large[part]}
        assert {*small[part]} != {*other[part]}
    assert sum(map(len, small.values())) == pytest.approx(0.3 * len(sessions), rel=0.2)


def test_text_becomes_tokens_as_in_prepare_and_nothing_to_judge_by_is_refused(
    spark: SparkSession, tmp_path: Path
) -> None:
    words = PipelineConfig(tokenizer="words", lowercase=True)
    found = divided(
        spark,
        tmp_path / "a",
        [("The", "CHIP,"), ("a", "b")] * 3,
        words,
        Division(1.0, 0.0, 0.0, predicts_last=False, seed=0),
    )
    assert sorted({*found["train"]}) == [("a", "b"), ("the", "chip")]
    with pytest.raises(InputError, match=r"judge.share: found no sequence for the (validation|test) part of a sample"):
        divided(spark, tmp_path / "b", [("a", "b")], words, Division(1.0, 0.01, 0.01, predicts_last=True, seed=0))
