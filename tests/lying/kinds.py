"""Kinds of files to lie about: honest ones, made once by the project's own code, lies about copies, and who reads them.

Each kind's ``lie`` fills a folder and returns the command that reads it, with what may come of it.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lies
import pytest
import retrain_tools
from lying.datasets import CacheLies, CheckpointLies, DatasetLies
from lying.retraining import ConfigLies, FakeRegistry, FakeTools, WorkspaceLies
from lying.vectors import EvaluationLies, HeldoutLies, QuestionLies, RunLies, Word2vecLies

import jobs.retraining.registry
from training.reading import remote
from training.runs import recorder, run_folder


@contextmanager
def quick() -> Iterator[None]:
    """Without what takes time and has nothing to do with lies: pages, syncs, commits and networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "write_pages", lambda *_: None)
        patch.setattr(run_folder, "_commit", lambda: None)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(remote, "FIRST_PAUSE_S", 0.001)
        retrain_tools.install(FakeTools(), patch.setattr)
        patch.setattr(jobs.retraining.registry, "Registry", FakeRegistry)
        yield


KINDS: dict[str, Callable[[Path], Any]] = {
    "dataset": DatasetLies,
    "checkpoint": CheckpointLies,
    "run": RunLies,
    "word2vec": Word2vecLies,
    "questions": QuestionLies,
    "evaluation": EvaluationLies,
    "heldout": HeldoutLies,
    "config": ConfigLies,
    "workspace": WorkspaceLies,
    "cache": CacheLies,
}
assert KINDS.keys() == lies.WEIGHTS.keys()
