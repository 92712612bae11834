"""Laws of sessions(): a sequence is a group's items in order of time, however events lie in files and partitions."""

import random
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from itertools import groupby, pairwise
from typing import Any

import pyarrow as pa
import pytest
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from pipeline.pipeline_config import Source
from pipeline.shared.errors import InputError
from pipeline.tables.data_frames import DataFrameCorpus
from pipeline.tables.sessions import joined, sessions

Event = tuple[Any, Any, Any]
"""Item, group and time; each may be None."""
BATCH_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
RNG = random.Random(0)
EVENTS: list[Event] = [(RNG.randrange(30), RNG.randrange(20), RNG.randrange(2000)) for _ in range(700)]
EVENTS += [(None, 3, 5), (1, None, 5), (2, None, None), (3, 4, None), (4, 4, 4), (40, 4, 4), (9, 4, 4), (9, 4, 4)]
GAP = timedelta(seconds=30)


def slowly(events: list[Event], max_gap: float | None) -> tuple[Counter[tuple[str | None, ...] | None], int]:
    """The sequences of events whose times are numbers, and the number of ties."""
    found: Counter[tuple[str | None, ...] | None] = Counter()
    ties = 0
    known = [event for event in events if event[1] is not None and event[2] is not None]
    found[None] = len(events) - len(known)
    for _, rows in groupby(sorted(known, key=lambda event: str(event[1])), key=lambda event: str(event[1])):
        # Spark sorts null before text
        ordered = sorted((time, item is not None, str(item)) for item, _, time in rows)
        sequence: list[str | None] = []
        for before, (time, is_there, text) in pairwise([(ordered[0][0], True, ""), *ordered]):
            if max_gap is not None and time - before[0] > max_gap:
                found[tuple(sequence)] += 1
                sequence = []
            elif sequence and time == before[0] and text != before[2] and is_there and before[1]:
                ties += 1
            sequence.append(text if is_there else None)
        found[tuple(sequence)] += 1
    return found, ties


def found_in(rows: DataFrame) -> tuple[Counter[tuple[str | None, ...] | None], int]:
    collected = rows.collect()
    sequences = Counter(None if row["items"] is None else tuple(row["items"]) for row in collected)
    return sequences, sum(row["ties"] for row in collected)


@pytest.fixture
def small_batches(spark: SparkSession) -> Iterator[None]:
    """Batches of seven rows, so that sequences end anywhere in them."""
    spark.conf.set(BATCH_ROWS, "7")
    yield
    spark.conf.unset(BATCH_ROWS)


@pytest.mark.usefixtures("small_batches")
@pytest.mark.parametrize(("max_gap", "partitions"), [(None, 1), (GAP, 3), (timedelta(seconds=1), 1)])
def test_events_are_sequences_however_they_lie(spark: SparkSession, max_gap: timedelta | None, partitions: int) -> None:
    frame = spark.createDataFrame(EVENTS, "item int, user bigint, ts bigint").repartition(partitions)
    expected = slowly(EVENTS, None if max_gap is None else max_gap.total_seconds())
    assert found_in(sessions(frame, "item", "user", "ts", max_gap)) == expected
    assert expected[1] > 0
    assert expected[0][None] == 3


START = datetime(2026, 3, 29, tzinfo=UTC)


@pytest.mark.parametrize("kind", ["timestamp", "timestamp_ntz", "date"])
def test_a_gap_is_as_long_for_every_kind_of_time(spark: SparkSession, kind: str) -> None:
    """Also across the night of 2026-03-29, in which many clocks are put forward."""
    seconds = 86_400 if kind == "date" else 1
    events = [(item, user, time * seconds) for item, user, time in EVENTS if time is not None]
    rows: list[Event] = []
    for item, user, time in events:
        when = START + timedelta(seconds=time)
        rows.append((item, user, when.date() if kind == "date" else when.replace(tzinfo=None)))
    text = spark.createDataFrame(rows, "item int, user bigint, ts " + ("date" if kind == "date" else "timestamp_ntz"))
    frame = text.withColumn("ts", F.col("ts").cast(kind))
    expected = slowly(events, 30 * seconds)
    assert found_in(sessions(frame, "item", "user", "ts", 30 * timedelta(seconds=seconds))) == expected


def test_a_gap_that_is_just_as_long_cuts_nothing() -> None:
    rows = [("a", "u", 0), ("b", "u", 30), ("c", "u", 61), ("d", "v", 62)]
    batch = pa.RecordBatch.from_pylist([dict(zip(("item", "group", "time"), row, strict=True)) for row in rows])
    for number in (1, 2, 4):  # batches
        size = len(rows) // number
        batches = iter([batch.slice(start, size) for start in range(0, len(rows), size)])
        found = [items for made in joined(batches, 30) for items in made["items"].to_pylist()]
        assert found == [["a", "b"], ["c"], ["d"]]


def test_times_at_both_ends_of_the_integers_are_far_apart() -> None:
    times = pa.array([-(2**63), 2**63 - 1], pa.int64())
    batch = pa.record_batch([pa.array(["a", "b"]), pa.array(["u", "u"]), times], ["item", "group", "time"])
    assert [made["items"].to_pylist() for made in joined(iter([batch]), 30)] == [[["a"]], [["b"]]]


def test_users_of_any_type_and_items_of_text_are_grouped(spark: SparkSession) -> None:
    rows = [("a b", "u v", date(2026, 1, 1), 2), ("", "u v", date(2026, 1, 2), 1), ("c", "", date(2026, 1, 1), 3)]
    frame = spark.createDataFrame(rows, "item string, `us.er` string, day date, ts smallint")
    assert found_in(sessions(frame, "item", "us.er", "ts"))[0] == Counter([("", "a b"), ("c",)])
    assert found_in(sessions(frame, "item", "day", "ts"))[0] == Counter([("a b", "c"), ("",)])


@pytest.mark.parametrize(
    ("item", "group", "time", "words"),
    [
        ("items", "user", "ts", "--column items: not in the DataFrame; it has item, user, ts, price, tags"),
        ("item", "usr", "ts", "--group-by usr: not in"),
        ("item", "user", "t", "--order-by t: not in"),
        ("tags", "user", "ts", "--column tags: is array<string> in the DataFrame, expected a string or an integer"),
        ("item", "price", "ts", "--group-by price: is double"),
        ("item", "user", "item", "--order-by item: is string in the DataFrame, expected a timestamp"),
    ],
)
def test_a_column_that_cannot_be_is_one_line(spark: SparkSession, item: str, group: str, time: str, words: str) -> None:
    frame = spark.sql("SELECT 'a' item, 1 user, 2 ts, 1.5D price, array('x') tags")
    with pytest.raises(InputError) as refused:
        sessions(frame, item, group, time)
    assert words in str(refused.value)


# DataFrameCorpus


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ("words", "--column words: not in clicks; it has id, items, a.b"),
        ("id", "--column id: is int in clicks, expected string, array<string> or an array of integers"),
        ("a.b", "--column a.b: is array<array<int>> in clicks"),
    ],
)
def test_a_data_frame_without_such_sequences_is_refused(spark: SparkSession, column: str, words: str) -> None:
    frame = spark.sql("SELECT 1 id, array(1) items, array(array(1)) `a.b`")
    with pytest.raises(InputError) as refused:
        DataFrameCorpus(frame, column, "clicks").read(spark)
    assert words in str(refused.value)


def test_two_columns_of_one_name_are_refused_and_names_are_exact(spark: SparkSession) -> None:
    frame = spark.sql("SELECT 'a' x, 'b' X")
    assert DataFrameCorpus(frame, "X").read(spark).collect() == [("b",)]
    with pytest.raises(InputError, match=r"--column x: a DataFrame has 2 columns of this name; rename one"):
        DataFrameCorpus(spark.sql("SELECT 'a' x, 'b' x"), "x").read(spark)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("array(1S, NULL, 3S)", ["1", None, "3"]),
        ("array(18446744073709551615, 2)", ["18446744073709551615", "2"]),
        ("array(X'61', X'62')", ["a", "b"]),
        ("array()", []),
        ("X'6120'", "a "),
        ("NULL", None),
    ],
)
def test_a_column_of_any_sequences_is_read_as_its_words(spark: SparkSession, kind: str, expected: Any) -> None:
    assert DataFrameCorpus(spark.sql(f"SELECT {kind} x"), "x").read(spark).collect() == [(expected,)]


def test_the_state_of_a_data_frame_says_its_name_and_nothing_of_its_rows(spark: SparkSession) -> None:
    made = DataFrameCorpus(spark.range(3), "id", "clicks")
    assert made.state(lambda: spark) == ({"data_frame": "clicks", "column": "id"},)


# Settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "--table: found neither it nor --input, expected one of the two"),
        ({"input": "x", "table": "t", "column": "c"}, "--table: found it with --input, expected one of the two"),
        ({"table": "t"}, "--column: found None, for --table t expected the name of a column"),
        ({"table": "t", "column": "c", "format": "delta"}, "--format: found delta with --table"),
        ({"input": "x", "where": "a > 1"}, "--where: found it without --table"),
        ({"input": "x", "format": "parquet", "column": "c", "as_of": 1}, "--as-of: found it without --format delta"),
        ({"input": "x", "format": "delta"}, "--column: found None, for --format delta"),
        ({"input": "x", "group_by": "u", "order_by": "t"}, "--group-by: found it with --format text"),
        ({"table": "t", "column": "c", "group_by": "u"}, "--group-by: found it without --order-by"),
        ({"table": "t", "column": "c", "order_by": "u"}, "--order-by: found it without --group-by"),
        ({"table": "t", "column": "c", "max_gap": "30m"}, "--max-gap: found 30m, expected --group-by"),
        (
            {"table": "t", "column": "c", "group_by": "u", "order_by": "t", "max_gap": "30 minutes"},
            "--max-gap: found 30 minutes, expected a time such as 45s, 30m, 12h or 1d",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as refused:
        Source(**given)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("text", "seconds"), [("45s", 45), ("30m", 1800), ("12h", 43_200), ("1d", 86_400), ("0s", None), ("1w", None)]
)
def test_a_gap_has_a_unit(text: str, seconds: int | None) -> None:
    made: dict[str, Any] = {"table": "t", "column": "c", "group_by": "u", "order_by": "t", "max_gap": text}
    if seconds is None:
        with pytest.raises(InputError, match="--max-gap"):
            Source(**made)
    else:
        assert Source(**made).gap == timedelta(seconds=seconds)
