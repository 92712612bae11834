"""The installed commands whose modules do more, as scripts, than call ``main()``; pyproject.toml lists all commands.

Imports are late: shardvec-train runs where Spark is not installed, and sets a variable before torch is imported.
"""

import os
import sys
from importlib import import_module


def prepare() -> None:
    _run_job("prepare")


def prepare_demo() -> None:
    _run_job("prepare_demo")


def prepare_ptb() -> None:
    _run_job("prepare_ptb")


def retrain() -> None:
    _run_job("retrain")


def train() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as training/train.py does, and for its reason
    import_module("training.train").main()


def _run_job(name: str) -> None:
    """Runs ``main`` of a module of jobs/ as its script does.

    Spark's Python workers run this Python, unless ``PYSPARK_PYTHON`` names another: Spark's own choice is the first
    ``python3`` on the PATH, which need not be the one that the command was installed into.
    """
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    import_module("jobs.session").run(import_module(f"jobs.{name}").main)
