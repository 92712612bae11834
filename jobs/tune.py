"""Searches the settings that give the best vectors of a corpus, and says what the usual ones would have given.

python jobs/tune.py --config examples/tune-shop.yaml --budget 20m

Exit codes: 0 done, or the budget is used up; 2 an error that you can fix; 130 Ctrl-C; 143 SIGTERM; 129 SIGHUP; 1 any
other error. After the last four, the same command goes on.
"""

import argparse
import logging
import os
import time
from datetime import timedelta
from functools import cache
from importlib.util import find_spec

from jobs.children import end_on_signals
from jobs.folder_lock import alone_in
from jobs.machine import refuse_connect
from jobs.session import build_session, run
from pipeline.pipeline_config import duration
from pipeline.shared.cli import Parser, check_output, count, path
from pipeline.shared.errors import InputError

BUDGET = "60m"


def parse() -> argparse.Namespace:
    parser = Parser(
        "jobs/tune.py",
        "Searches the settings that give the best vectors of a corpus.",
        "python jobs/tune.py --config examples/tune-shop.yaml --budget 20m",
    )
    parser.add_argument(
        "--config", type=path, required=True, metavar="FILE", help="the study, a YAML file: docs/tuning.md"
    )
    parser.add_argument("--budget", type=_time, default=BUDGET, metavar="TIME", help="no trial begins after: 20m or 8h")
    parser.add_argument("--jobs", type=count, default=1, help="training runs at once, which share the cores")
    parser.add_argument("--fraction", type=float, metavar="X", help="the share of sequences to read, 0 to 1")
    return parser.parse_args()


def check_optuna() -> None:
    """Raises InputError if Optuna is missing."""
    if find_spec("optuna") is None:
        raise InputError("Optuna is not installed; run make setup-retrain, or pip install 'shardvec[tune]'")


def _time(text: str) -> timedelta:
    if (found := duration(text)) is None:
        raise argparse.ArgumentTypeError(f"found {text}, expected a time such as 45s, 20m, 8h or 1d")
    return found


def main() -> None:
    arguments = parse()
    logging.getLogger("pipeline").setLevel(logging.WARNING)  # a study makes many datasets
    deadline = time.monotonic() + arguments.budget.total_seconds()
    end_on_signals()
    refuse_connect(os.environ)
    check_optuna()
    from jobs.tuning.study_folder import OWN, study_in_folder  # late, for --help, and for people without Optuna
    from jobs.tuning.tune_config import read_config

    config = read_config(arguments.config, arguments.fraction)
    check_output(config.output, OWN, "study", "output:")
    session = cache(lambda: build_session(f"shardvec: {config.name}"))
    with alone_in(config.output) as lock:
        try:
            study_in_folder(config, session, lock, deadline, arguments.jobs)
        finally:
            if session.cache_info().currsize:
                session().stop()


if __name__ == "__main__":
    run(main)
