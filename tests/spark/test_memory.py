"""Laws of a rank's memory: no more from epoch to epoch, and bounded by what it holds. In real processes, on Linux."""

import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT
from tiny import write_dataset, write_tiny_dataset

from pipeline.dataset.manifest_file import Manifest
from pipeline.pipeline_config import PipelineConfig

MB = 1 << 20
DIM, LANES = 100, 16
FIXED = 270 * MB
"""What a rank has besides, however large the dataset is: libraries at work; on rank 0, TensorBoard and the vocabulary's
check take 65 MB of it."""
SLACK = 32 * MB
"""How much one look may find more than another: row groups come and go, and a lane may hold two."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.fixture(scope="module")
def data(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of so many sequences of 8 words. 43,000 are as large as Penn Treebank: 340,000 examples of 7,000 words."""
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=request.param, num_words=7_000, num_shards=16, window=5, negatives=5)
    return folder


def memory(pid: int, what: str) -> int:
    """VmRSS, what a process has in memory now, or VmHWM, the most that it ever had, in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{what}:"))


def imports() -> int:
    """What the imports take, with machine code loaded."""
    said = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    return int(said.stdout) << 10


IMPORTS = """
from pathlib import Path
import training.train
print(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:")))
"""


def ranks_of(run: "subprocess.Popen[str]", nproc: int) -> list[int]:
    """The processes that train."""
    if nproc == 1:
        return [run.pid]
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    return [int(pid) for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def measured(data: Path, output: Path, nproc: int, epochs: int, *flags: str) -> tuple[list[list[int]], list[int]]:
    """At the end of every epoch but the last, what each rank has in memory; and the most that each ever had."""
    settings: dict[str, Any] = {"data": data, "output": output, "nproc": nproc, "epochs": epochs, "threads": 1}
    settings |= {"device": "cpu", "dim": DIM, "lanes": LANES, "checkpoint-every": 20}
    words = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, str(ROOT / "training" / "train.py"), *words, *flags]
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    metrics = output / "metrics.jsonl"
    now: list[list[int]] = []
    most = [0] * nproc
    try:
        while run.poll() is None:
            time.sleep(0.01)
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            ended = sum('"kind": "epoch"' in line for line in lines)
            if ended > len(now) and ended < epochs:
                pids = ranks_of(run, nproc)
                now.append([memory(pid, "VmRSS") for pid in pids])
                most = [memory(pid, "VmHWM") for pid in pids]
    finally:
        run.kill()
    assert run.returncode == 0, run.communicate()[1]
    assert len(now) >= epochs - 2, "one look an epoch; the last may come too late"
    return now, most


@pytest.mark.parametrize(
    ("data", "nproc", "epochs", "flags", "copies"),
    [
        (10_000, 1, 8, "--global-batch 4096", 4),
        pytest.param(43_000, 1, 10, "--global-batch 4096", 4, marks=pytest.mark.long),
        pytest.param(43_000, 2, 10, "--global-batch 4096", 4, marks=pytest.mark.long),
        pytest.param(43_000, 2, 10, "--sync-every 4 --global-batch 8192", 2, marks=pytest.mark.long),
    ],
    ids=["adam, small", "adam", "adam on two ranks", "sgd in place on two ranks"],
    indirect=["data"],
)
def test_a_ranks_memory_is_bounded_and_the_same_in_every_epoch(
    data: Path, tmp_path: Path, nproc: int, epochs: int, flags: str, copies: int
) -> None:
    """With checkpoints. ``copies`` of the tables: SGD's and its gradients; Adam has two moments besides."""
    now, most = measured(data, tmp_path / "run", nproc, epochs, *flags.split())
    manifest = Manifest.load(data)
    tables = 2 * manifest.vocab_size * DIM * 4
    row_group = manifest.row_group_rows * (4 + 4 * manifest.max_len + 2)
    assert max(most) < imports() + copies * tables + 2 * LANES // nproc * row_group + FIXED
    for rank in zip(*now, strict=True):
        assert max(rank[epochs // 2 :]) - max(rank[1 : epochs // 2]) < SLACK


@pytest.mark.long
def test_no_rank_holds_a_whole_table(tmp_path: Path) -> None:
    """Four ranks share tables of 1.3 GB by columns, also when they begin with those of another run, and go on."""
    num_words, dim, ranks = 250_000, 640, 4
    words, lengths = [f"w{number}" for number in range(num_words)], np.full(num_words // 8, 8, np.int64)
    write_dataset(tmp_path / "data", words, lengths, PipelineConfig(min_count=1, sample=0.0, num_shards=4))
    first, second = ["--output", tmp_path / "first"], ["--output", tmp_path / "second"]
    for more in (
        [*first, "--epochs", 1],
        [*second, "--epochs", 1, "--init-from", tmp_path / "first"],
        [*second, "--epochs", 2, "--resume"],
    ):
        flags = ["--data", tmp_path / "data", "--nproc", ranks, "--dim", dim, "--threads", 1, "--device", "cpu", *more]
        flags += ["--sync-every", 4, "--optimizer", "rowwise_adagrad", "--sharding", "columns", "--no-tensorboard"]
        most = most_of_its_own([sys.executable, str(ROOT / "training" / "train.py"), *map(str, flags)], ranks)
        table = num_words * dim * 4
        assert max(most) < imports() + 2 * table / ranks + table / 2


def most_of_its_own(command: list[str], ranks: int) -> list[int]:
    """The most memory that each rank shares with no other process and no file, looked at all the time, in bytes."""
    run = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    most = dict[int, int]()
    try:
        while run.poll() is None:
            time.sleep(0.01)
            with suppress(OSError, StopIteration):  # a rank has ended
                for pid in ranks_of(run, ranks):
                    most[pid] = max(most.get(pid, 0), memory(pid, "RssAnon"))
    finally:
        run.kill()
    assert run.returncode == 0, run.communicate()[1]
    assert len(most) == ranks
    return list(most.values())
