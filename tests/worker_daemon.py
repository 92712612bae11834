"""What starts Spark's Python workers here: it loads once what each of them would load."""

from numba.core.registry import cpu_target
from pyspark.daemon import manager

import pipeline.spark.task
import pipeline.stages  # noqa: F401

cpu_target.typing_context.refresh()
cpu_target.target_context.refresh()

if __name__ == "__main__":
    manager()
