"""A study's folder, and the whole study in the order in which it happens.

STUDY/
  study.json                 the settings that it depends on
  sample/                    its sequences: train.parquet, validation.parquet, test.parquet
  datasets/ trials/          see trials.py
  study.db                   Optuna's
  best.yaml results.json study.html
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from pydantic import with_config
from pyspark.sql import SparkSession
from typing_extensions import TypedDict  # pydantic needs this one up to Python 3.11

from jobs.folder_lock import LOCK
from jobs.tuning.judges import judge_of
from jobs.tuning.results import BEST, RESULTS, compared, table, write_best
from jobs.tuning.study import STORAGE, check_any, judge_usual, opened_study, search
from jobs.tuning.study_page import PAGE, write_page
from jobs.tuning.study_sample import SAMPLE, Division, write_sample
from jobs.tuning.trials import ANEW, DATASETS, TRIALS, Bench
from jobs.tuning.tune_config import TuneConfig
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError, one_line, shown
from pipeline.shared.files import make_folder, remove, write_json
from pipeline.shared.records import STRICT, Count, RecordError, checked, read
from pipeline.shared.storage import Location
from pipeline.tables.sources import corpus_of
from pipeline.text.corpus import demo
from training.model.limits import num_cores

RECORD = "study.json"
NEW, DEMO = ".sample", "demo.txt"
OWN = (RECORD, PAGE, BEST, RESULTS, SAMPLE, DATASETS, TRIALS, f"{STORAGE}*", LOCK, DEMO, ".*")


@with_config(STRICT)
class StudyRecord(TypedDict):
    """study.json: what the study's results depend on, and the number of sequences of each part of its sample."""

    settings: dict[str, Any]
    sequences: dict[Literal["train", "validation", "test"], Count]


def study_in_folder(
    config: TuneConfig, session: Callable[[], SparkSession], lock: int | None, deadline: float, num_jobs: int
) -> None:
    """The whole study, in the order in which it happens."""
    judge = judge_of(config.judge, config.output / SAMPLE, config.seed)
    sequences = sample_of(config, session)
    print(f"{config.output}: " + ", ".join(f"{number:,} {part} sequences" for part, number in sequences.items()))
    bench = Bench(config.output, judge, session, lock, max(1, num_cores() // num_jobs))
    study = opened_study(judge, config.output)
    judge_usual(config, bench)
    search(config, bench, study, deadline, num_jobs)
    check_any(study)
    found = compared(config, bench, study)
    best = write_best(config, found[0])
    write_json(config.output / RESULTS, [asdict(each) for each in found])
    page = write_page(config, judge, study, found, sequences)
    print(table(found, judge), f"{best}: the settings of trial {study.best_trial.number}", sep="\n")
    print(page)


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
        for part in before["sequences"]:
            path = config.output / SAMPLE / f"{part}.parquet"
            if not path.is_file():
                raise InputError(f"{path}: not found, expected the study's sequences; bring it back, or {ANEW}")
        return dict(before["sequences"])
    corpus = demo(config.output / DEMO) if config.corpus.demo else corpus_of(config.corpus)
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
    tokens = {name: value for name, value in config.prepare.items() if name in ("tokenizer", "lowercase")}
    sequences = write_sample(session(), corpus, PipelineConfig(**tokens), division, config.output / NEW)
    (config.output / NEW).replace(folder)
    write_json(config.output / RECORD, {"settings": settings, "sequences": sequences})
    return sequences


def read_record(path: Path) -> dict[str, Any] | None:
    """study.json; None if there is none. Raises InputError if it is damaged."""
    try:
        return dict(checked(read(Location.of(path)), StudyRecord))
    except FileNotFoundError:
        return None
    except RecordError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); bring it back, or {ANEW}") from None
