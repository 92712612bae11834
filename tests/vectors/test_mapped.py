"""Laws of mapped tables: they are the file's, they outlive it, and nothing that reads them copies a whole one."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from safetensors.numpy import save, save_file
from tiny import edit, random_model, write_held_out, write_tables

from pipeline.shared.errors import InputError
from training.judging.heldout import Heldout
from training.vectors import Tables, Vectors
from training.vectors.run_files import map_tables
from training.vectors.run_files import write_tables as write_safetensors

NUM_WORDS, DIM = 40_000, 256
TABLE = NUM_WORDS * DIM * 4
ROOM = TABLE * 3 // 4
"""For words, chunks and what is as long as the vocabulary; a copy of a table does not fit."""


# What a view is


def test_tables_are_views_of_the_file_that_nobody_can_write_to(tmp_path: Path) -> None:
    model = random_model(50, 7, 0)
    write_tables(tmp_path / "run", model)
    tables, vectors = Tables.load(tmp_path / "run"), Vectors.load(tmp_path / "run")
    for found_VD, expected_VD in (
        (vectors.center_VD, model.center_VD),
        (tables.center_VD, model.center_VD),
        (tables.context_VD, model.context_VD),
    ):
        assert found_VD.dtype == np.float32
        assert np.array_equal(found_VD, expected_VD)
        with pytest.raises(ValueError, match="read-only"):
            found_VD[1] = 0


def test_vectors_stay_when_their_file_is_replaced_or_removed(tmp_path: Path) -> None:
    model, other = random_model(50, 7, 0), random_model(50, 7, 1)
    write_tables(tmp_path / "run", model)
    write_tables(tmp_path / "other", other)
    before = Vectors.load(tmp_path / "run")
    (tmp_path / "other" / "vectors.safetensors").replace(tmp_path / "run" / "vectors.safetensors")
    after = Vectors.load(tmp_path / "run")
    (tmp_path / "run" / "vectors.safetensors").unlink()
    assert np.array_equal(before.center_VD, model.center_VD)
    assert np.array_equal(after.center_VD, other.center_VD)


@pytest.mark.parametrize("num_words", [1, 2, 9])
def test_tables_in_blocks_are_written_as_safetensors_writes_them(tmp_path: Path, num_words: int) -> None:
    model = random_model(num_words, 5, 0)
    whole = {"context": model.context_VD, "center": model.center_VD}
    blocks = {name: [table_VD[:4], table_VD[4:]] for name, table_VD in whole.items()}
    written = io.BytesIO()
    write_safetensors(written, model.center_VD.shape, blocks)
    assert written.getvalue() == save(whole)
    (tmp_path / "file").write_bytes(written.getvalue())
    context_VD, center_VD = map_tables(tmp_path / "file", "context", "center")
    assert np.array_equal(context_VD, model.context_VD)
    assert np.array_equal(center_VD, model.center_VD)


def with_header(content: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param(lambda old: old[:-4], "do not fill", id="cut"),
        pytest.param(lambda old: old + bytes(4), "do not fill", id="more"),
        pytest.param(lambda old: b"", "empty", id="empty"),
        pytest.param(lambda old: (1 << 20).to_bytes(8, "little") + old[8:], "found a header of 1,048,576", id="length"),
        pytest.param(
            lambda old: with_header(old, lambda header: header["center"].update(data_offsets=[140, 280])),
            "do not fill",
            id="two tables in one place",
        ),
        pytest.param(
            lambda old: with_header(old, lambda header: header["center"].update(shape=[4, 7])),
            "found 140 bytes of center",
            id="another shape",
        ),
        pytest.param(
            lambda old: with_header(old, lambda header: header["center"].update(shape=[35])),
            r"center of shape \[35\] and F32",
            id="no table",
        ),
        pytest.param(
            lambda old: with_header(old, lambda header: header["center"].update(shape=[-5, -7])), "-5", id="below 0"
        ),
        pytest.param(
            lambda old: with_header(old, lambda header: header["center"].update(dtype="I32")), "and I32", id="dtype"
        ),
        pytest.param(
            lambda old: with_header(old, lambda header: header.update(x=header.pop("center"))), "no table", id="name"
        ),
    ],
)
def test_a_header_that_does_not_fit_its_file_is_refused(
    tmp_path: Path, change: Callable[[bytes], bytes], words: str
) -> None:
    write_tables(tmp_path / "run", random_model(5, 7, 0))
    edit(tmp_path / "run" / "vectors.safetensors", change)
    with pytest.raises(InputError, match=words):
        Tables.load(tmp_path / "run")


def test_other_tensors_and_metadata_are_left_alone(tmp_path: Path) -> None:
    model = random_model(5, 7, 0)
    write_tables(tmp_path / "run", model)
    tensors: dict[str, Any] = {
        "center": model.center_VD,
        "more": np.arange(3, dtype=np.int16),
        "none": np.zeros((0, 2), np.float32),
    }
    save_file(tensors, tmp_path / "run" / "vectors.safetensors", metadata={"from": "elsewhere"})
    assert np.array_equal(Vectors.load(tmp_path / "run").center_VD, model.center_VD)


# Memory


EPOCH = {
    **{"kind": "epoch", "epoch": 0, "step": 9, "loss": 0.5, "mean_loss": 0.5, "examples": 9, "seconds": 1.0},
    **{"tokens_per_s": 9.0, "wait_share": 0.0},
}
SUMMARY = {
    **{name: value for name, value in EPOCH.items() if name not in ("kind", "epoch", "step")},
    **{"steps": 9, "world_size": 1, "threads": 1, "kernel": "numba", "device": "cpu", "epochs": [EPOCH]},
    **{"dataset_id": "gone", "versions": {}, "commit": None},
}
PAIRS = "".join(f"w{number} w{number + 1} {number}\n" for number in range(1, 40))
ANALOGIES = ": all\n" + "".join(f"w{number} w{number + 1} w{number + 2} w{number + 3}\n" for number in range(1, 40))


def write_models(folder: Path, num_words: int, dim: int) -> None:
    """All that the commands read: a champion, a challenger as a finished run, a dataset, pairs and analogies."""
    folder.mkdir()
    for seed, name in enumerate(("champion", "run")):
        write_tables(folder / name, random_model(num_words, dim, seed))
        summary = json.dumps(SUMMARY | {"vocab_size": num_words})
        (folder / name / "summary.json").write_text(summary)
    (folder / "run" / "config.json").write_text(json.dumps({"data": "gone", "log_every": 50}))
    (folder / "run" / "metrics.jsonl").write_text(json.dumps(EPOCH) + "\n")
    (folder / "pairs").write_text(PAIRS)
    (folder / "analogies").write_text(ANALOGIES)
    write_held_out(folder / "data")
    Heldout.of_dataset(folder / "data").write(folder / "champion")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders "small" and "large"."""
    folder = tmp_path_factory.mktemp("models")
    write_models(folder / "small", 200, DIM)
    write_models(folder / "large", NUM_WORDS, DIM)
    return folder


LOOK_UP = """
from training.vectors import Tables, Vectors

def work(models):
    Tables.load(models / "run")
    vectors = Vectors.load(models / "run")
    vectors.most_similar("w1"), vectors.analogy("w1", "w2", "w3"), vectors.similarity("w1", "w2"), vectors.vector("w1")
"""
EVALUATE = """
from training.vectors import Vectors
from training.judging.evaluation import analogies, word_pairs

def work(models):
    word_pairs(Vectors.load(models / "run"), models / "pairs")
    analogies(Vectors.load(models / "run"), models / "analogies")
"""
EXPORT = """
from training.vectors.export_formats import FORMATS, export

def work(models):
    for form in FORMATS:
        export(models / "run", form, models / "exported" / form)
"""
REPORT = """
from training.runs.report_data import FinishedRun
from training.runs.report_page import write_report
from training.runs.tensorboard import write_projector

def work(models):
    run = FinishedRun.load(models / "run")
    write_report(run, models / "run")
    write_projector(models / "run", run.words, run.counts_V, run.center_VD)
"""
RETRAIN = """
from types import SimpleNamespace
from jobs.retraining import challenger, judge
from jobs.retraining.gates import Gates

challenger.OF_THE_RUN = ()
judge.RESTRICT_VOCAB = 1000  # scores copy the vectors of so many words, which are few beside 10 million

def work(models):
    cycle = SimpleNamespace(run=models / "run", challenger=models / "new", dataset=models / "data", run_id="")
    challenger.make_challenger(cycle, models / "champion", True)
    gates = Gates(pairs=(models / "pairs",), analogies=models / "analogies", frequent_words=50)
    print(judge.judge(gates, models / "new", models / "champion", models / "data"))
"""
IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path

import numpy as np
from pipeline.shared import records
from training.vectors import cosine

square = np.ones((999, 999), np.float32)
square @ square @ square[0]  # the buffers of BLAS
cosine.CHUNK_VALUES = 1 << 16
records.read.__defaults__ = (1 << 20,)  # instead of 256 MB, which pyarrow asks for and never touches
work(Path(sys.argv[1]) / "small")  # threads, pools and buffers are there now
status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
limit = (int(status["VmData"].split()[0]) << 10) + int(sys.argv[2])
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
work(Path(sys.argv[1]) / "large")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts what is mapped to be written on Linux only")
@pytest.mark.parametrize(
    "work",
    [
        pytest.param(LOOK_UP, id="look up"),
        pytest.param(EVALUATE, id="evaluate", marks=pytest.mark.long),
        pytest.param(EXPORT, id="export", marks=pytest.mark.long),
        pytest.param(REPORT, id="report"),
        pytest.param(RETRAIN, id="retrain", marks=pytest.mark.long),
    ],
)
def test_what_reads_vectors_has_no_room_for_a_copy_of_a_table(models: Path, work: str) -> None:
    """Private memory is limited to less than a table more than the same work takes with a table of 200 words."""
    single = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", work + IN_LITTLE_MEMORY, models, str(ROOM)],
        cwd=ROOT,
        env={**os.environ, **single, "ARROW_DEFAULT_MEMORY_POOL": "system"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
