"""Laws of prepare with a session of Spark Connect: the same datasets, from DataFrames and from files on this disk."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT
from pyspark.sql import SparkSession

from pipeline import stages
from pipeline.pipeline_config import PipelineConfig
from pipeline.tables.data_frames import DataFrameCorpus
from pipeline.tables.sessions import sessions
from pipeline.text.corpus import Corpus, corpus

CONFIG = PipelineConfig(window=2, min_count=1, sample=0, num_shards=2)
EVENTS = [(f"item {number % 7}", number % 11, number * 997 % 5000) for number in range(300)]
REMOTE = """
import sys
from pathlib import Path
from pyspark.sql import SparkSession
from test_connect import prepared_ids

spark = SparkSession.builder.remote("local[2]").getOrCreate()
assert type(spark).__module__.startswith("pyspark.sql.connect")
Path(sys.argv[1], "ids.json").write_text(prepared_ids(spark, Path(sys.argv[1]), "connect"))
spark.stop()
"""


def prepared_ids(spark: SparkSession, folder: Path, name: str) -> str:
    """JSON: the ids of datasets of files, of a DataFrame, and of its sequences."""
    frame = spark.createDataFrame(EVENTS, "item string, user bigint, ts bigint")
    views = sessions(frame, "item", "user", "ts", timedelta(minutes=30))
    corpora: tuple[Corpus, ...] = (
        corpus([str(folder / "x.txt")]),
        corpus([str(folder / "x.parquet")], "parquet", "items"),
        DataFrameCorpus(frame.selectExpr("concat_ws(' ', item, 'and', user) AS line"), "line"),
        DataFrameCorpus(views, "items"),
    )
    made = [
        stages.prepare(spark, each, CONFIG, folder / f"{name}-{number}").dataset_id
        for number, each in enumerate(corpora)
    ]
    return json.dumps(made)


@pytest.mark.long
def test_spark_connect_makes_the_same_datasets(spark: SparkSession, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("".join(f"{item} of {user}\n" for item, user, _ in EVENTS))
    pq.write_table(pa.table({"items": [[item, str(user), "x"] for item, user, _ in EVENTS]}), tmp_path / "x.parquet")
    ours = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)])
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path)],
        env={**ours, "PYTHONPATH": path, "PYSPARK_PYTHON": sys.executable},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "ids.json").read_text()) == json.loads(prepared_ids(spark, tmp_path, "classic"))
