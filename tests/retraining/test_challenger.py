"""A run that its patience ended is published with its best vectors, any other run with its last ones."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ranks import train_here
from tiny import write_held_out

from jobs.retraining.challenger import make_challenger
from training.vectors import Tables


@pytest.mark.usefixtures("no_pages")
@pytest.mark.parametrize(("patience", "published"), [(["--patience=1"], "best"), ([], "")])
def test_what_a_run_publishes(tmp_path: Path, patience: list[str], published: str) -> None:
    write_held_out(tmp_path / "data")
    flags = "--dim=8", "--lr=0.2", "--epochs=8", "--global-batch=256", "--threads=1", "--device=cpu"
    run = tmp_path / "run"
    ended = train_here("--nproc", 1, "--data", tmp_path / "data", "--output", run, *flags, *patience, logs=tmp_path)
    assert ended.code == 0, ended.stderr
    cycle: Any = SimpleNamespace(run=run, challenger=tmp_path / "new", dataset=tmp_path / "data", run_id="1")
    make_challenger(cycle, None, holds_out=True)
    found, expected, last = (Tables.load(folder) for folder in (tmp_path / "new", run / published, run))
    assert np.array_equal(found.center_VD, expected.center_VD)
    assert np.array_equal(found.context_VD, expected.context_VD)
    assert np.array_equal(found.center_VD, last.center_VD) == (published == "")
