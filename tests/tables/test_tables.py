"""Laws of tables as corpora: the rows that are alive at a version, and a state that asks the log."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table
from pyspark.sql import SparkSession

from pipeline import stages
from pipeline.dataset.manifest_file import Manifest
from pipeline.pipeline_config import PipelineConfig, Source
from pipeline.shared.errors import InputError
from pipeline.tables.data_frames import DataFrameCorpus
from pipeline.tables.sessions import sessions
from pipeline.tables.sources import corpus_of
from pipeline.text.corpus import Corpus

CONFIG = PipelineConfig(window=2, min_count=1, sample=0, num_shards=1)
SMALL = ("--window", "2", "--min-count", "1", "--sample", "0", "--num-shards", "1")
RNG = random.Random(0)
ROWS: list[dict[str, Any]] = [
    {"id": number, "items": RNG.choices("abcdefghij", k=5), "who": number % 3} for number in range(60)
]
SCHEMA = pa.schema([("id", pa.int64()), ("items", pa.list_(pa.string())), ("who", pa.int64())])
OLD = ROWS[:40]
NEW = [row if row["id"] != 7 else {**row, "items": ["new", "a", "new"]} for row in ROWS if row["id"] % 10 != 5]
"""After an append, an update and a delete."""


def source(**given: Any) -> Source:
    return Source(**given)


def arrow(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, SCHEMA)


def delta_table(place: Path) -> list[int]:
    """A table with a history; its versions with the rows OLD and NEW."""
    write_deltalake(place.as_uri(), arrow(OLD))
    write_deltalake(place.as_uri(), arrow(ROWS[40:]), mode="append")
    table = DeltaTable(place.as_uri())
    table.update(predicate="id = 7", updates={"items": "make_array('new', 'a', 'new')"})
    table.delete("id % 10 = 5")
    return [0, table.version()]


def iceberg_catalog(place: Path) -> SqlCatalog:
    place.mkdir()
    catalog = SqlCatalog("tests", uri=f"sqlite:///{place}/catalog.db", warehouse=f"file://{place}")
    catalog.create_namespace("db")
    return catalog


def iceberg_table(catalog: SqlCatalog) -> Table:
    table = catalog.create_table("db.t", SCHEMA)
    table.append(arrow(OLD))
    table.append(arrow(ROWS[40:]))
    table.overwrite(arrow([row for row in NEW if row["id"] == 7]), "id = 7")
    table.delete("id IN (5, 15, 25, 35, 45, 55)")
    return table


def iceberg_versions(place: Path) -> list[int]:
    """As ``delta_table``: Iceberg's metadata have absolute paths, so the place is a link."""
    made = iceberg_table(iceberg_catalog(place.parent / "warehouse"))
    place.symlink_to(place.parent / "warehouse" / "db" / "t")
    return [snapshot.snapshot_id for snapshot in (made.snapshots()[0], made.snapshots()[-1])]


MAKERS: dict[str, Callable[[Path], list[int]]] = {"delta": delta_table, "iceberg": iceberg_versions}


@pytest.fixture(scope="module", params=MAKERS)
def table(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, list[int]]:
    """A format, a table with a history that no test changes, and its versions with OLD and with NEW."""
    place = tmp_path_factory.mktemp(request.param) / "a b #é"
    return request.param, place, MAKERS[request.param](place)


def values(spark: SparkSession, corpus: Corpus) -> list[Any]:
    return sorted(row[0] for row in corpus.read(spark).collect())


def items(rows: list[dict[str, Any]]) -> list[list[str]]:
    return sorted(row["items"] for row in rows)


# Versions


def test_a_table_gives_the_dataset_of_its_live_rows(
    job: Command, spark: SparkSession, tmp_path: Path, table: tuple[str, Path, list[int]]
) -> None:
    format, place, _ = table
    flags = ["--input", place, "--format", format, "--column", "items", "--output", tmp_path / "out", *SMALL]
    ended = job(*flags)
    assert (ended.code, ended.stderr) == (0, "")
    pq.write_table(arrow(NEW), tmp_path / "x.parquet")
    plain = corpus_of(source(input=str(tmp_path / "x.parquet"), format="parquet", column="items"))
    expected = stages.prepare(spark, plain, CONFIG, tmp_path / "plain")
    assert Manifest.load(tmp_path / "out").dataset_id == expected.dataset_id
    assert "already there" in job(*flags).stdout


def test_an_older_version_gives_the_older_rows(spark: SparkSession, table: tuple[str, Path, list[int]]) -> None:
    format, place, (old, new) = table
    for version, rows in ((old, OLD), (new, NEW), (None, NEW)):
        made = corpus_of(source(input=str(place), format=format, column="items", as_of=version))
        assert values(spark, made) == items(rows)
        assert made.state(lambda: spark)[0]["rows"] == len(rows)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--column", "items", "--as-of", "99"], ["--as-of 99: ", "expected"]),
        (["--column", "words"], ["--column words: not in the", "it has id, items, who"]),
        (["--column", "items", "--group-by", "user", "--order-by", "id"], ["--group-by user: not in the", "id, items"]),
        (["--column", "id"], ["--column id: is bigint in", "expected string, array<string>"]),
    ],
)
def test_a_version_or_a_column_that_is_not_there_is_one_line(
    job: Command, tmp_path: Path, table: tuple[str, Path, list[int]], flags: list[str], words: list[str]
) -> None:
    format, place, _ = table
    job("--input", place, "--format", format, "--output", tmp_path / "out", *flags).assert_refused(*words)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("format", MAKERS)
def test_a_folder_that_is_no_table_is_one_line(job: Command, tmp_path: Path, format: str) -> None:
    pq.write_table(arrow(OLD), tmp_path / "x.parquet")
    flags = ["--format", format, "--column", "items", "--output", tmp_path / "out"]
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "x.parquet"):
        job("--input", place, *flags).assert_refused(f"--input {place}: ", f"{format.capitalize()} table")
    job("--input", tmp_path, tmp_path, *flags).assert_refused("--input: found 2")


@pytest.mark.parametrize(("format", "library"), [("delta", "deltalake"), ("iceberg", "pyiceberg.table")])
def test_a_format_without_its_library_names_the_extra(
    job: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, library: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, library, None)
    flags = ["--input", tmp_path, "--format", format, "--column", "items", "--output", tmp_path / "out"]
    job(*flags).assert_refused(f"pip install 'shardvec[{format}]'")


def state(place: Path, format: str, as_of: int | None = None) -> Any:
    """Neither table needs Spark to say it."""
    return corpus_of(source(input=str(place), format=format, column="items", as_of=as_of)).state(pytest.fail)


def test_a_delta_tables_state_changes_with_its_rows_and_not_with_its_files(spark: SparkSession, tmp_path: Path) -> None:
    delta_table(tmp_path / "t")
    for row in ROWS[5:7]:
        write_deltalake(str(tmp_path / "t"), arrow([row]), mode="append")
    before, table = state(tmp_path / "t", "delta"), DeltaTable(str(tmp_path / "t"))
    assert table.optimize.compact()["numFilesRemoved"] > 1
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert len(list((tmp_path / "t").glob("*.parquet"))) == 1
    assert state(tmp_path / "t", "delta") == before
    made = corpus_of(source(input=str(tmp_path / "t"), format="delta", column="items"))
    assert values(spark, made) == items([*NEW, *ROWS[5:7]])
    with pytest.raises(InputError, match=r"--as-of 0: 1 of the version's 1 files are gone .*vacuum"):
        state(tmp_path / "t", "delta", as_of=0)
    write_deltalake(str(tmp_path / "t"), arrow(ROWS[:1]), mode="append")
    after = state(tmp_path / "t", "delta")
    assert after != before
    assert (after[0]["rows"], after[0]["table"]) == (before[0]["rows"] + 1, before[0]["table"])


def test_an_iceberg_tables_state_changes_with_its_rows_and_not_with_its_files(tmp_path: Path) -> None:
    table = iceberg_table(iceberg_catalog(tmp_path / "w"))
    place = tmp_path / "w" / "db" / "t"
    before = state(place, "iceberg")
    with table.transaction() as changed:
        changed.set_properties({"owner": "us"})
    assert state(place, "iceberg") == before
    file = next((place / "metadata").glob("00006-*.metadata.json"), None) or max((place / "metadata").glob("0*.json"))
    metadata = json.loads(file.read_text())
    newest = metadata["snapshots"][-1]
    compacted = {**newest, "snapshot-id": 1, "parent-snapshot-id": newest["snapshot-id"]}
    compacted |= {"summary": {**newest["summary"], "operation": "replace"}}
    metadata |= {"snapshots": [*metadata["snapshots"], compacted], "current-snapshot-id": 1, "refs": {}}
    (place / "metadata" / "00099-x.metadata.json").write_text(json.dumps(metadata))
    assert state(place, "iceberg") == before
    metadata |= {"snapshots": [*metadata["snapshots"][:-2], compacted]}  # its parent is expired
    (place / "metadata" / "00100-x.metadata.json").write_text(json.dumps(metadata))
    assert state(place, "iceberg") == before
    table.append(arrow(ROWS[:1]))
    assert state(Path(str(table.metadata_location)), "iceberg")[0]["rows"] == before[0]["rows"] + 1


# Columns that files have by other names, or not at all


def test_a_column_that_delta_files_lack_is_null_there(spark: SparkSession, tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), arrow(OLD).drop_columns(["items"]))
    write_deltalake(str(tmp_path / "t"), arrow(ROWS[40:]), mode="append", schema_mode="merge")
    made = corpus_of(source(input=str(tmp_path / "t"), format="delta", column="items"))
    found = [row[0] for row in made.read(spark).collect()]
    assert found.count(None) == len(OLD)
    assert sorted(filter(None, found)) == items(ROWS[40:])


def test_a_renamed_iceberg_column_is_read_by_its_number(spark: SparkSession, tmp_path: Path) -> None:
    """A new column of the old name is another one: files from before have nothing for it."""
    table = iceberg_table(iceberg_catalog(tmp_path / "w"))
    with table.update_schema() as change:
        change.rename_column("items", "words")
    with table.update_schema() as change:
        change.add_column("items", table.schema().find_field("words").field_type)
    place = str(tmp_path / "w" / "db" / "t")
    assert values(spark, corpus_of(source(input=place, format="iceberg", column="words"))) == items(NEW)
    nothing = corpus_of(source(input=place, format="iceberg", column="items")).read(spark).collect()
    assert {row[0] for row in nothing} == {None}


def refused(place: Path, format: str, *words: str) -> None:
    with pytest.raises(InputError) as line:
        corpus_of(source(input=str(place), format=format, column="items"))
    assert [word for word in words if word not in str(line.value)] == [], line.value


def commit(place: Path, *actions: dict[str, Any]) -> None:
    version = len(list((place / "_delta_log").glob("*.json")))
    lines = "".join(f"{json.dumps(action)}\n" for action in actions)
    (place / "_delta_log" / f"{version:020}.json").write_text(lines)


def protocol(feature: str) -> dict[str, Any]:
    return {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": [feature], "writerFeatures": [feature]}


def test_what_the_delta_files_alone_do_not_say_is_refused_by_name(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), arrow(OLD))
    first = [json.loads(line) for line in next((tmp_path / "t" / "_delta_log").glob("*.json")).open()]
    add = next(action["add"] for action in first if "add" in action)
    commit(tmp_path / "t", {"protocol": protocol("deletionVectors")})
    assert state(tmp_path / "t", "delta")[0]["rows"] == len(OLD)  # allowed, and none is there
    vector = {"storageType": "i", "pathOrInlineDv": "wi5b=000010000siXQKl0rr91000f55c8Xg0@@D72lkbi5=-{L"}
    removed = {"path": add["path"], "dataChange": True, "deletionTimestamp": 1}
    deleting = {**add, "deletionVector": {**vector, "sizeInBytes": 40, "cardinality": 6}}
    commit(tmp_path / "t", {"remove": removed}, {"add": deleting})
    refused(tmp_path / "t", "delta", "found deletion vectors", "expected none", "REORG TABLE")
    commit(tmp_path / "t", {"protocol": protocol("wonders")})
    refused(tmp_path / "t", "delta", "wonders")


def test_delta_columns_with_other_names_in_the_files_are_refused(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), arrow(OLD).select(["items"]))
    first = [json.loads(line) for line in next((tmp_path / "t" / "_delta_log").glob("*.json")).open()]
    meta = next(action["metaData"] for action in first if "metaData" in action)
    schema = json.loads(meta["schemaString"])
    schema["fields"][0]["metadata"] = {"delta.columnMapping.id": 1, "delta.columnMapping.physicalName": "col-1"}
    mapped = {**meta, "schemaString": json.dumps(schema), "configuration": {"delta.columnMapping.mode": "name"}}
    commit(tmp_path / "t", {"protocol": protocol("columnMapping")}, {"metaData": mapped})
    refused(tmp_path / "t", "delta", "found column mapping", "--table")


def test_a_delta_column_that_partitions_is_refused(tmp_path: Path) -> None:
    write_deltalake(str(tmp_path / "t"), pa.table({"items": ["a b", "c d"], "id": [1, 2]}), partition_by=["items"])
    refused(tmp_path / "t", "delta", "--column items: partitions the Delta table", "in no file")


def test_iceberg_deletes_and_two_newest_metadata_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iceberg_table(iceberg_catalog(tmp_path / "w"))
    place = tmp_path / "w" / "db" / "t"
    from pyiceberg.table import DataScan

    plan_files = DataScan.plan_files

    def with_deletes(scan: Any) -> Any:
        tasks = list(plan_files(scan))
        tasks[0].delete_files = {tasks[0].file}
        return tasks

    with monkeypatch.context() as patch:
        patch.setattr(DataScan, "plan_files", with_deletes)
        refused(place, "iceberg", "found delete files", "expected none", "--table")
    newest = max((place / "metadata").glob("0*.json"))
    newest.with_name(f"{newest.name[:5]}-other.metadata.json").write_text(newest.read_text())
    refused(place, "iceberg", "expected one newest metadata file", "catalog")


# Spark's catalog


@pytest.fixture
def in_catalog(spark: SparkSession, tmp_path: Path) -> str:
    """A table whose files have names of other cases than the catalog, as Hive's have."""
    pq.write_table(arrow(NEW).rename_columns(["Id", "Items", "who"]), tmp_path / "x.parquet")
    spark.sql(f"CREATE TABLE shop_tests (id BIGINT, items ARRAY<STRING>) USING parquet LOCATION '{tmp_path}'")
    return "shop_tests"


@pytest.fixture(autouse=True)
def no_table_stays(spark: SparkSession) -> Any:
    yield
    spark.sql("DROP TABLE IF EXISTS shop_tests")


def test_a_table_of_the_catalog_gives_the_dataset_of_its_rows(
    job: Command, spark: SparkSession, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, in_catalog: str
) -> None:
    out = tmp_path_factory.mktemp("out")
    flags = ["--table", in_catalog, "--column", "items", "--output", out / "d", *SMALL]
    assert job(*flags, "--where", "ID < 30").code == 0
    rows = [row for row in NEW if row["id"] < 30]
    frame = spark.createDataFrame([(row["items"],) for row in rows], "x array<string>")
    expected = stages.prepare(spark, DataFrameCorpus(frame, "x"), CONFIG, out / "plain")
    assert Manifest.load(out / "d").dataset_id == expected.dataset_id
    assert "already there" in job(*flags, "--where", "ID < 30").stdout
    pq.write_table(arrow(OLD).rename_columns(["Id", "Items", "who"]), tmp_path / "y.parquet")
    spark.catalog.refreshTable(in_catalog)
    job(*flags, "--where", "ID < 30").assert_refused("another or a changed corpus", "--overwrite")
    job(*flags, "--where", "ID <").assert_refused("--where ID <: ", "expected a condition in SQL on id, items")
    job(*flags, "--where", "price > 1").assert_refused("--where price > 1: ", "id, items")
    flags[flags.index("items")] = "id"
    job(*flags, "--overwrite").assert_refused("--column id: is bigint in the table shop_tests", "expected")


def test_a_table_that_is_not_in_the_catalog_is_one_line(job: Command, spark: SparkSession, tmp_path: Path) -> None:
    flags = ["--column", "items", "--output", tmp_path / "out"]
    job("--table", "shop.nowhere", *flags).assert_refused("--table shop.nowhere: ", "expected a table or view")
    job("--table", "shop nowhere", *flags).assert_refused("--table shop nowhere: ", "expected a table or view")
    spark.range(3).createOrReplaceTempView("numbers_of_tests")
    job("--table", "numbers_of_tests", *flags).assert_refused("names no files and no snapshot", "DataFrameCorpus")
    assert not (tmp_path / "out").exists()


# Events


GAPS_MIN = (0, 25, 50, 115, 140)
"""When a user clicks: one gap is longer than 30 minutes."""
CLICKS: list[dict[str, Any]] = [
    {"item": item, "user": row["id"], "ts": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)}
    for row in NEW
    for item, minutes in zip(row["items"], GAPS_MIN, strict=False)
]
CLICK = pa.schema([("item", pa.string()), ("user", pa.int64()), ("ts", pa.timestamp("us", "UTC"))])
BY_USER: dict[str, Any] = {"column": "item", "group_by": "user", "order_by": "ts", "max_gap": "30m"}


@pytest.fixture(scope="module")
def clicks() -> pa.Table:
    return pa.Table.from_pylist(random.Random(1).sample(CLICKS, len(CLICKS)), CLICK)


def as_parquet(place: Path, clicks: pa.Table) -> Source:
    """Files with other types of the same users."""
    place.mkdir()
    for number, kind in enumerate((pa.int64(), pa.int16(), pa.string())):
        part = clicks.take(list(range(number, len(clicks), 3)))
        pq.write_table(part.set_column(1, "user", part["user"].cast(kind)), place / f"{number}.parquet")
    return source(input=str(place), format="parquet", **BY_USER)


def as_delta(place: Path, clicks: pa.Table) -> Source:
    write_deltalake(str(place), clicks.slice(0, 100))
    write_deltalake(str(place), clicks.slice(100), mode="append")
    return source(input=str(place), format="delta", **BY_USER)


def as_iceberg(place: Path, clicks: pa.Table) -> Source:
    table = iceberg_catalog(place).create_table("db.t", CLICK)
    table.append(clicks)
    return source(input=str(place / "db" / "t"), format="iceberg", **BY_USER)


def as_catalog(place: Path, clicks: pa.Table) -> Source:
    place.mkdir()
    pq.write_table(clicks, place / "x.parquet")
    SparkSession.active().sql(f"CREATE TABLE shop_tests USING parquet LOCATION '{place}'")
    return source(table="shop_tests", **BY_USER)


@pytest.fixture(scope="module")
def expected(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """The dataset of the sequences, without events."""
    sequences = [part for row in NEW for part in (row["items"][:3], row["items"][3:]) if part]
    frame = spark.createDataFrame([(part,) for part in sequences], "x array<string>")
    return stages.prepare(spark, DataFrameCorpus(frame, "x"), CONFIG, tmp_path_factory.mktemp("expected") / "out")


@pytest.mark.parametrize(
    "write",
    [as_parquet, *(pytest.param(write, marks=pytest.mark.long) for write in (as_delta, as_iceberg, as_catalog))],
)
def test_events_of_any_table_give_the_dataset_of_their_sequences(
    spark: SparkSession,
    tmp_path: Path,
    clicks: pa.Table,
    expected: Manifest,
    caplog: pytest.LogCaptureFixture,
    write: Callable[[Path, pa.Table], Source],
) -> None:
    made = corpus_of(write(tmp_path / "in", clicks))
    caplog.set_level("INFO", logger="pipeline")
    manifest = stages.prepare(spark, made, CONFIG, tmp_path / "out")
    assert manifest.dataset_id == expected.dataset_id
    assert f"{expected.counts.lines} sequences of equal user, in order of ts" in caplog.text
    assert {"item": "item", "group_by": "user", "order_by": "ts", "max_gap_s": 1800} in manifest.source_state


@pytest.mark.long
def test_events_of_a_data_frame_give_it_too_and_those_without_a_user_are_counted(
    spark: SparkSession, tmp_path: Path, clicks: pa.Table, expected: Manifest
) -> None:
    frame = spark.createDataFrame(clicks).unionAll(spark.sql("SELECT 'x', NULL, now() FROM range(7)"))
    made = sessions(frame, "item", "user", "ts", timedelta(minutes=30))
    manifest = stages.prepare(spark, DataFrameCorpus(made, "items", "clicks"), CONFIG, tmp_path / "out")
    assert manifest.vocab_digest == expected.vocab_digest
    assert [shard.sha256 for shard in manifest.shards] == [shard.sha256 for shard in expected.shards]
    assert manifest.counts.nulls == 7


def test_equal_times_are_told(spark: SparkSession, tmp_path: Path) -> None:
    rows = [(word, user, 5) for user in range(9) for word in ("b", "a", "a", "c")]
    pq.write_table(pa.table(dict(zip(("item", "user", "ts"), zip(*rows, strict=True), strict=True))), tmp_path / "x")
    made = corpus_of(source(input=str(tmp_path / "x"), format="parquet", **{**BY_USER, "max_gap": "1s"}))
    assert values(spark, made) == [["a", "a", "b", "c"]] * 9
    assert made.remarks() == [
        "9 sequences of equal user, in order of ts",
        "ts is a number, read as seconds: --max-gap is 0:00:01",
        "18 events have the ts of the event before them; the items' text decides their order",
    ]


@pytest.mark.parametrize(
    ("column", "values", "words"),
    [
        ("item", pa.array([1.5, 2.5]), "--column item: is double in"),
        ("item", pa.array([["a"], ["b"]]), "--column item: is array<string> in"),
        ("user", pa.array([1.5, 2.5]), "--group-by user: is double in"),
        ("ts", pa.array(["1", "2"]), "--order-by ts: is string in"),
        ("ts", pa.array([1, 2], pa.timestamp("ns")), "--order-by ts: is a timestamp in nanoseconds"),
        ("ts", None, "--order-by ts: not in"),
    ],
)
def test_events_of_other_types_are_refused_before_spark_reads_them(
    tmp_path: Path, clicks: pa.Table, column: str, values: Any, words: str
) -> None:
    place, two = clicks.schema.get_field_index(column), clicks.slice(0, 2)
    damaged = two.drop_columns([column]) if values is None else two.set_column(place, column, values)
    pq.write_table(damaged, tmp_path / "x")
    with pytest.raises(InputError) as line:
        corpus_of(source(input=str(tmp_path / "x"), format="parquet", **BY_USER))
    assert words in str(line.value)


def test_times_of_two_kinds_are_refused(spark: SparkSession, tmp_path: Path, clicks: pa.Table) -> None:
    pq.write_table(clicks, tmp_path / "x")
    pq.write_table(clicks.set_column(2, "ts", clicks["ts"].cast(pa.int64())), tmp_path / "y")
    made = corpus_of(source(input=[str(tmp_path / "x"), str(tmp_path / "y")], format="parquet", **BY_USER))
    with pytest.raises(InputError, match=r"--order-by ts: is timestamp in .*x and bigint in .*y, expected one type"):
        made.read(spark)
