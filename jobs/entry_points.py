"""Installed commands that need more than their module's ``main()``; pyproject.toml lists all commands.

Imports are late: shardvec-train works without Spark, and sets a variable before torch is imported.
"""

import os
import sys
from functools import partial
from importlib import import_module


def train() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see training/train.py, also for the next line
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    import_module("training.train").main()


def _run_job(name: str) -> None:
    """Runs ``main`` of a module of jobs/ as its script does.

    Spark's Python workers use this Python, unless ``PYSPARK_PYTHON`` is set. By default they would use the first
    ``python3`` on the PATH, which may be one without this package.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    import_module("jobs.session").run(import_module(f"jobs.{name}").main)


prepare = partial(_run_job, "prepare")
prepare_demo = partial(_run_job, "prepare_demo")
prepare_ptb = partial(_run_job, "prepare_ptb")
retrain = partial(_run_job, "retrain")
tune = partial(_run_job, "tune")
