"""Searches the settings that give the best vectors of a corpus, and says what the usual ones would have given.

python jobs/tune.py --config examples/tune-shop.yaml --budget 20m

Exit codes: 0 done, or the budget is used up; 2 an error that you can fix; 130 Ctrl-C; 143 SIGTERM; 1 any other error.
After the last three, the same command goes on.
"""

import argparse
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from pyspark.sql import SparkSession

from jobs.folder_lock import LOCK, alone_in
from jobs.machine import refuse_connect
from jobs.session import build_session, run
from jobs.tuning.judges import judge_of
from jobs.tuning.results import BEST, RESULTS, compared, table, write_best
from jobs.tuning.study import STORAGE, check_any, judge_usual, opened_study, search
from jobs.tuning.study_sample import SAMPLE, Division, write_sample
from jobs.tuning.trials import DATASETS, TRIALS, Bench
from jobs.tuning.tune_config import TuneConfig, read_config
from pipeline.pipeline_config import PipelineConfig, duration
from pipeline.shared.cli import Parser, check_output, count, path
from pipeline.shared.errors import InputError, shown
from pipeline.shared.files import make_folder, remove, write_json
from pipeline.shared.records import RecordError, read
from pipeline.shared.storage import Location
from pipeline.tables.sources import corpus_of
from pipeline.text.corpus import demo
from training.model.limits import num_cores

BUDGET = "60m"
RECORD, PAGE = "study.json", "study.html"
NEW, DEMO = ".sample", "demo.txt"
OWN = (RECORD, PAGE, BEST, RESULTS, SAMPLE, DATASETS, TRIALS, f"{STORAGE}*", LOCK, DEMO, ".*")


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


def _time(text: str) -> timedelta:
    if (found := duration(text)) is None:
        raise argparse.ArgumentTypeError(f"found {text}, expected a time such as 45s, 20m, 8h or 1d")
    return found


def main() -> None:
    arguments = parse()
    logging.getLogger("pipeline").setLevel(logging.WARNING)  # a study makes many datasets
    deadline = time.monotonic() + arguments.budget.total_seconds()
    signal.signal(signal.SIGTERM, _end)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, _end)
    refuse_connect(os.environ)
    config = read_config(arguments.config, arguments.fraction)
    check_output(config.output, OWN, "study", "output:")
    session = cache(lambda: build_session(f"shardvec: {config.name}"))
    with alone_in(config.output) as lock:
        try:
            study_in_folder(config, session, lock, deadline, arguments.jobs)
        finally:
            if session.cache_info().currsize:
                session().stop()


def _end(number: int, _: object) -> NoReturn:
    """Ends this process as a signal would have it, but first its training runs."""
    sys.exit(128 + number)


def study_in_folder(
    config: TuneConfig, session: Callable[[], SparkSession], lock: int | None, deadline: float, num_jobs: int
) -> None:
    """The whole study, in the order in which it happens."""
    sequences = sample_of(config, session)
    print(f"{config.output}: " + ", ".join(f"{number:,} {part} sequences" for part, number in sequences.items()))
    judge = judge_of(config.judge, config.output / SAMPLE, config.seed)
    bench = Bench(config.output, judge, session, lock, max(1, num_cores() // num_jobs))
    study = opened_study(config, judge, config.output)
    judge_usual(config, bench)
    search(config, bench, study, deadline, num_jobs)
    check_any(study)
    found = compared(config, bench, study)
    best = write_best(config, found[0])
    write_json(config.output / RESULTS, [asdict(each) for each in found])
    print(table(found, judge), f"{best}: the settings of trial {study.best_trial.number}", sep="\n")
    print(config.output / PAGE)


def sample_of(config: TuneConfig, session: Callable[[], SparkSession]) -> dict[str, int]:
    """The number of sequences of each part of the sample, which is written unless it is there.

    Raises InputError if the folder holds another study.
    """
    settings = json.loads(json.dumps(config.numbers, default=str))
    before = read_record(config.output / RECORD)
    if before:
        if differing := [name for name in settings if settings[name] != before["settings"].get(name)]:
            name = differing[0]
            raise InputError(
                f"output: {config.output} holds a study with {name} {shown(before['settings'].get(name))}, found "
                f"{shown(settings[name])}; name a new folder"
            )
        return dict(before["sequences"])
    folder = config.output / SAMPLE
    for leftover in (folder, config.output / NEW):
        remove(leftover)
    make_folder(config.output / NEW)
    division = Division(
        config.fraction,
        validation=config.judge.share if config.judge.by == "next_item" else 0.0,
        test=config.judge.share if config.judge.by != "pairs" else 0.0,
        predicts_last=config.judge.by == "next_item",
        seed=config.seed,
    )
    corpus = demo(config.output / DEMO) if config.corpus.demo else corpus_of(config.corpus)
    tokens = {name: value for name, value in config.prepare.items() if name in ("tokenizer", "lowercase")}
    sequences = write_sample(session(), corpus, PipelineConfig(**tokens), division, config.output / NEW)
    (config.output / NEW).replace(folder)
    write_json(config.output / RECORD, {"settings": settings, "sequences": sequences})
    return sequences


def read_record(path: Path) -> dict[str, Any] | None:
    """study.json; None if there is none. Raises InputError if it is damaged."""
    try:
        return dict(read(Location.of(path)))
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise InputError(f"{path}: cannot be read ({error}); bring it back, or remove the folder") from None


if __name__ == "__main__":
    run(main)
