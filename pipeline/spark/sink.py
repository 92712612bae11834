"""The Spark sink: a Python data source with an Arrow writer, so Spark's own protocol decides which attempt counts.

task.py does the work and is imported inside the task: Spark also imports this file in processes that only plan or
commit, which would otherwise spend time on importing numba and pandas.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark.sql.datasource import DataSource, DataSourceArrowWriter, WriterCommitMessage
from pyspark.sql.types import StructType

if TYPE_CHECKING:
    import pyarrow as pa

RESULTS = "results.json"


@dataclass(frozen=True)
class TaskResult(WriterCommitMessage):
    """The result of one task, which Spark sends to the driver."""

    found: dict[str, Any]


class ShardSink(DataSource):
    """``df.write.format("shardvec")``: samples the sequences of each partition and writes them as its shards.

    Takes rows (key int64, ids binary), each partition sorted by both; partition i becomes shard i of every epoch.
    Options: ``path``, the generation's folder; ``config``, a PipelineConfig as JSON.
    """

    @classmethod
    def name(cls) -> str:
        return "shardvec"

    def writer(self, schema: StructType, overwrite: bool) -> DataSourceArrowWriter:
        return _Writer(self.options["path"], self.options["config"])


class _Writer(DataSourceArrowWriter):
    def __init__(self, generation: str, config: str):
        self.generation, self.config = generation, config

    def write(self, iterator: "Iterator[pa.RecordBatch]") -> TaskResult:
        from pyspark import TaskContext

        from pipeline.pipeline_config import PipelineConfig
        from pipeline.shared.storage import Location
        from pipeline.spark.task import slice_tokens, slices, write_shards

        context = TaskContext.get()
        assert context is not None, "Spark calls this inside a task"
        config = PipelineConfig(**json.loads(self.config))
        pieces = slices(iterator, slice_tokens(config))
        return TaskResult(write_shards(Location.of(self.generation), config, context.partitionId(), pieces))

    def commit(self, messages: list[WriterCommitMessage | None]) -> None:
        """Writes the results of the successful attempts to a file, from which ``prepare`` makes the manifest."""
        from pipeline.shared.storage import Location

        results = [message.found for message in messages if isinstance(message, TaskResult)]
        (Location.of(self.generation) / RESULTS).put(json.dumps(results).encode())

    def abort(self, messages: list[WriterCommitMessage | None]) -> None:
        """Does nothing: ``prepare`` removes the whole generation if writing fails."""
