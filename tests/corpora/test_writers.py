"""Corpora that other libraries wrote, each by its own usual call: all are the same sequences."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from corpora.kinds import Input
from corpora.test_corpora import sequences
from pyspark.sql import SparkSession

from pipeline.shared.errors import InputError
from pipeline.text.corpus import corpus

pytestmark = pytest.mark.long

WORDS = [["the", "cat"], ["na\u00efve", "\u4f60\u597d", "\U0001f600"], ["a", "b", "c", "d"]]
LINES = [" ".join(words) for words in WORDS]
NUMBERS = [[1, 2], [3, 2**40, 5], [2**63 - 1, 0]]
LARGE = [[1, 2], [2**64 - 1, 0]]
COLUMNS: dict[str, list[Any]] = {"words": WORDS, "lines": LINES, "numbers": NUMBERS}
EXPECTED = {
    name: sorted(v if isinstance(v, str) else " ".join(map(str, v)) for v in values) for name, values in COLUMNS.items()
}
Writer = Callable[[SparkSession, Path], object]

# The libraries are imported late: together they take seconds, also where no test of this file is run.


def pandas_frame() -> Any:
    import pandas as pd

    return pd.DataFrame({**COLUMNS, "when": pd.Timestamp("2026-01-01"), "kind": pd.Categorical(["a", "b", "a"])})


def polars_frame(**others: Any) -> Any:
    import polars as pl

    return pl.DataFrame({**COLUMNS, **others})


def polars_categories(folder: Path) -> None:
    import polars as pl

    words = pl.col("words").cast(pl.List(pl.Categorical))
    polars_frame().with_columns(words).write_parquet(folder / "x.parquet")


def with_duckdb(query: str) -> Writer:
    def write(_: SparkSession, folder: Path) -> None:
        import duckdb

        with duckdb.connect() as database:
            database.register("frame", pa.table({**COLUMNS, "when": pa.array([1, 2, 3], pa.timestamp("ns"))}))
            database.execute(query.format(folder=folder))

    return write


def hugging_face() -> Any:
    import datasets

    return datasets.Dataset.from_dict(COLUMNS)


def spark_frame(spark: SparkSession) -> Any:
    rows = list(zip(WORDS, LINES, NUMBERS, strict=True))
    return spark.createDataFrame(rows, "words array<string>, lines string, numbers array<bigint>").repartition(2)


TIMES = [datetime(2026, 1, 1)] * 3
SPANS = [timedelta(hours=1)] * 3
PARQUET: dict[str, Writer] = {
    "pandas": lambda _, folder: pandas_frame().to_parquet(folder / "x.parquet"),
    "pandas, an index, gzip": lambda _, folder: (
        pandas_frame().set_index("when").to_parquet(folder / "x.parquet", compression="gzip")
    ),
    "polars": lambda _, folder: polars_frame(when=TIMES, span=SPANS).write_parquet(folder / "x.parquet"),
    "polars, lz4": lambda _, folder: polars_frame().write_parquet(folder / "x.parquet", compression="lz4"),
    "polars, categories": lambda _, folder: polars_categories(folder),
    "DuckDB": with_duckdb("copy frame to '{folder}/x.parquet' (format parquet)"),
    "DuckDB, zstd, version 2": with_duckdb(
        "copy frame to '{folder}/x.parquet' (format parquet, compression zstd, parquet_version v2)"
    ),
    "DuckDB, one row a group, lz4": with_duckdb(
        "copy frame to '{folder}/x.parquet' (format parquet, compression lz4_raw, row_group_size 1)"
    ),
    "Spark": lambda spark, folder: spark_frame(spark).write.mode("overwrite").parquet(str(folder)),
    "datasets": lambda _, folder: hugging_face().to_parquet(folder / "x.parquet"),
}
JSON: dict[str, Writer] = {
    "pandas": lambda _, folder: pandas_frame().to_json(folder / "x.json", orient="records", lines=True),
    "pandas, gzip, unescaped": lambda _, folder: pandas_frame().to_json(
        folder / "x.json.gz", orient="records", lines=True, force_ascii=False
    ),
    "polars": lambda _, folder: polars_frame(when=TIMES).write_ndjson(folder / "x.json"),
    "DuckDB": with_duckdb("copy frame to '{folder}/x.json' (format json)"),
    "Spark": lambda spark, folder: spark_frame(spark).write.mode("overwrite").json(str(folder), compression="bzip2"),
    "datasets": lambda _, folder: hugging_face().to_json(folder / "x.json"),
}
WRITERS = {
    f"{format}, {name}": (format, write)
    for format, them in (("parquet", PARQUET), ("json", JSON))
    for name, write in them.items()
}


@pytest.mark.parametrize("name", WRITERS)
def test_what_others_write_is_read(spark: SparkSession, tmp_path: Path, name: str) -> None:
    format, write = WRITERS[name]
    write(spark, tmp_path)
    for column, expected in EXPECTED.items():
        made = corpus([str(tmp_path)], format, column)
        rows = made.read(spark)
        found = made.values(rows)(rows.toArrow()["value"].combine_chunks())
        assert sequences([found], Input({}))[0] == expected


def large_ids_of_polars(path: Path) -> None:
    import polars as pl

    pl.DataFrame({"items": LARGE}, schema={"items": pl.List(pl.UInt64)}).write_parquet(path)


@pytest.mark.parametrize("kind", ["polars", "ubigint", "decimal(38, 0)"])
def test_large_ids_keep_all_their_digits(spark: SparkSession, tmp_path: Path, kind: str) -> None:
    if kind == "polars":
        large_ids_of_polars(tmp_path / "x")
    else:
        rows = " union all ".join(f"select {ids}::{kind}[] as items" for ids in LARGE)
        with_duckdb(f"copy ({rows}) to '{{folder}}/x' (format parquet)")(spark, tmp_path)
    found = corpus([str(tmp_path / "x")], "parquet", "items").read(spark).toArrow()["value"]
    assert sorted(found.to_pylist()) == sorted([str(number) for number in ids] for ids in LARGE)


def test_text_that_spark_wrote_is_read(spark: SparkSession, tmp_path: Path) -> None:
    spark_frame(spark).select("lines").write.text(str(tmp_path / "out"), compression="gzip")
    for given in ("out", "out/*"):
        rows = corpus([str(tmp_path / given)]).read(spark)
        assert sorted(rows.toArrow()["value"].to_pylist()) == EXPECTED["lines"]


def test_what_is_no_table_of_files_is_refused_by_name(tmp_path: Path) -> None:
    hugging_face().save_to_disk(tmp_path / "arrow")
    pandas_frame().to_json(tmp_path / "array.json", orient="records")
    pandas_frame().to_csv(tmp_path / "x.csv")
    for path, format, found in (
        ("arrow/*.arrow", "parquet", "an Arrow stream"),
        ("array.json", "json", "a JSON array"),
        ("x.csv", "parquet", "no Parquet"),
    ):
        with pytest.raises(InputError, match=found):
            corpus([str(tmp_path / path)], format, "words")
