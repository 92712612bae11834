"""One trial: a dataset, a training run, and what the judge says of it. Trials with equal datasets share one.

STUDY/
  datasets/DIGEST/         a dataset for each sampling that was tried
  trials/NAME/
    trial.json             written last: the settings, the number by which trials are compared, seconds
    train.log              what the training run printed
    test.npy               the numbers of the test's queries, (Q, M); and POPULARITY.npy ... of baselines
    run/                   until the run was judged
"""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import with_config
from pyspark.sql import SparkSession
from typing_extensions import TypedDict  # pydantic needs this one up to Python 3.11

from jobs.children import ROOT, check_ending, ended, flags, started
from jobs.tuning.judges import Judge, Rows
from jobs.tuning.study_sample import ITEMS, SAMPLE, TRAINED
from pipeline.dataset.manifest_file import FILE_NAME
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.files import make_folder, remove, write_json
from pipeline.shared.records import STRICT, RecordError, Seconds, checked, digest, read
from pipeline.shared.storage import Location
from pipeline.stages import prepare as prepare_dataset
from pipeline.text.corpus import Corpus, corpus
from training.vectors.run_files import METRICS, parsed_metrics

TRIALS, DATASETS, RECORD, LOG, RUN = "trials", "datasets", "trial.json", "train.log", "run"
TESTED = "test"
POLL_S = 0.1


ANEW = "begin anew in another folder"
"""What helps if a file of the study is damaged."""


@with_config(STRICT)
class TrialRecord(TypedDict):
    """trial.json: the settings of a trial that are no defaults, and the number by which it is compared."""

    prepare: dict[str, Any]
    train: dict[str, Any]
    value: float
    seconds: Seconds


class TrialFailed(Exception):
    """These settings give no vectors, or none that can be judged; the message says why."""


@dataclass(frozen=True)
class Bench:
    """What all trials of a study share."""

    folder: Path
    judge: Judge
    session: Callable[[], SparkSession]
    lock: int | None
    threads: int
    """Of each training run, unless its settings say otherwise."""

    def record(self, name: str) -> dict[str, Any] | None:
        """What a trial gave; None if it is not finished. Raises InputError if that is damaged."""
        path = self.folder / TRIALS / name / RECORD
        try:
            return dict(checked(read(Location.of(path)), TrialRecord))
        except FileNotFoundError:
            return None
        except RecordError as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}); bring it back, or {ANEW}") from None

    def rows(self, name: str, what: str = TESTED) -> Rows:
        """The numbers of the test's queries. Raises InputError if they are missing or damaged."""
        path = self.folder / TRIALS / name / f"{what}.npy"
        try:
            found: Rows = np.load(path)
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{path}: cannot be read ({one_line(error)}); bring it back, or {ANEW}") from None
        return found

    def begun(self, name: str, prepare: Mapping[str, Any], train: Mapping[str, Any]) -> "Trial":
        """Makes the dataset, unless it is there, and starts training. Raises TrialFailed."""
        began = time.monotonic()
        folder = self.folder / TRIALS / name
        if folder.exists():
            remove(folder)
        make_folder(folder)
        sample = corpus([str(self.folder / SAMPLE / f"{TRAINED}.parquet")], "parquet", ITEMS)
        try:
            dataset = self._dataset(sample, PipelineConfig(**prepare))
        except InputError as error:
            raise TrialFailed(f"prepare: {error}") from None
        command = [sys.executable, str(ROOT / "training" / "train.py"), "--data", str(dataset)]
        command += ["--output", str(folder / RUN), *flags({"threads": self.threads, **train})]
        with (folder / LOG).open("wb") as log:
            child = started([*command, "--no-tensorboard"], log, self.lock)
        return Trial(self, name, dict(prepare), dict(train), dataset, child, began)

    def _dataset(self, sample: Corpus, config: PipelineConfig) -> Path:
        dataset = self.folder / DATASETS / digest(config.identity)[:16]
        if not (dataset / FILE_NAME).exists():
            prepare_dataset(self.session(), sample, config, dataset)
        return dataset


@dataclass(frozen=True)
class Trial:
    """A training run of this process. It must end by ``judged`` or ``stopped``."""

    bench: Bench
    name: str
    prepare: dict[str, Any]
    train: dict[str, Any]
    dataset: Path
    child: subprocess.Popen[bytes]
    began: float

    @property
    def folder(self) -> Path:
        return self.bench.folder / TRIALS / self.name

    @property
    def is_training(self) -> bool:
        return self.child.poll() is None

    def heldout_losses(self) -> list[float]:
        """Those that the run has measured so far."""
        try:
            content = (self.folder / RUN / METRICS).read_bytes()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        return [line["loss"] for line in parsed_metrics(whole)["heldout"]]

    def stopped(self) -> None:
        """Ends training, and removes what it wrote."""
        ended(self.child)
        remove(self.folder / RUN)

    def judged(self, with_baselines: bool = False) -> float:
        """Waits for the end of training; judges, keeps what the test gives, and removes the run. Raises TrialFailed."""
        while self.is_training:
            check_ending()
            time.sleep(POLL_S)
        if self.child.returncode:
            raise TrialFailed(f"train: {self._error()}")
        run, judge = self.folder / RUN, self.bench.judge
        try:
            value = judge.chosen_by(run, self.dataset)
            np.save(self.folder / f"{TESTED}.npy", judge.tested(run, self.dataset))
            for name in judge.baselines if with_baselines else ():
                np.save(self.folder / f"{name}.npy", judge.tested(run, self.dataset, name))
        except InputError as error:
            raise TrialFailed(f"judge: {error}") from None
        finally:
            remove(run)
        record = {"prepare": self.prepare, "train": self.train, "value": value}
        write_json(self.folder / RECORD, {**record, "seconds": round(time.monotonic() - self.began, 3)})
        return value

    def _error(self) -> str:
        lines = (self.folder / LOG).read_text(errors="replace").splitlines()
        errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
        return (
            errors[-1] if errors else f"ended with {self.child.returncode}; what it printed is in {self.folder / LOG}"
        )
