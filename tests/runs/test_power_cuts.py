"""Training after a power cut: the same command goes on by itself, and what is marked as finished is whole."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Ended, Stop
from launch import numbers
from power_cuts import Image, recorded, restore, survived
from ranks import train_here
from tiny import write_tiny_dataset

from pipeline.shared.files import write
from training.run import Run
from training.runs import recorder
from training.runs.checkpoint import Writer, newest, read
from training.runs.report_data import FinishedRun
from training.vectors.run_files import BOARD, REPORT, VECTORS, VOCAB, is_finished
from training.vectors.word_vectors import Vectors

ANY = pytest.mark.parametrize("count", [3, pytest.param(None, marks=pytest.mark.long, id="all")])
"""How many images are tried."""


@pytest.fixture(autouse=True)
def blank_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages are files like the trainer's, but blank: drawing takes most of a tiny run's time."""

    def write_pages(folder: Path, run: Run, center_VD: object, summary: object) -> None:
        for name in ("loss.png", REPORT):
            write(folder / name, name.encode())

    monkeypatch.setattr(recorder, "write_pages", write_pages)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_tiny_dataset(folder, num_sequences=200, num_words=30, num_shards=2)
    return folder


Train = Callable[..., Ended]


@pytest.fixture
def train(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """Runs the trainer, with checkpoints every few steps."""
    logs = tmp_path_factory.mktemp("logs")
    settings = {"data": data, "epochs": 2, "global-batch": 256, "threads": 1, "device": "cpu", "dim": 4, "log-every": 1}
    settings |= {"checkpoint-every": 3, "keep": 2}
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]

    def run(output: Path, *more: str) -> Ended:
        return train_here(*flags, "--output", output, "--deterministic", *more, logs=logs)

    return run


def whole(run: Path, expected: Path) -> bool:
    """Whether all readers read the run, and find what the ``expected`` one has."""
    FinishedRun.load(run)
    Vectors.load(run)
    both = [
        [(folder / name).read_bytes() for name in (VECTORS, VOCAB, "loss.png", REPORT)] for folder in (run, expected)
    ]
    return both[0] == both[1] and numbers(run) == numbers(expected)


@pytest.fixture
def undisturbed(train: Train, tmp_path: Path) -> Path:
    run = tmp_path / "undisturbed"
    assert train(run).code == 0
    return run


def test_a_checkpoint_that_is_written_and_a_run_that_has_ended_outlive_a_power_cut(
    train: Train, undisturbed: Path, machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments: list[tuple[int, Image]] = []
    with recorded(machine) as recording:
        wait = Writer.wait

        def noted_wait(writer: Writer) -> None:
            wait(writer)
            if (step := newest(writer.folder.parent)) is not None:
                moments.extend((step, image) for image in recording.now().values())

        monkeypatch.setattr(Writer, "wait", noted_wait)
        assert train(machine / "runs" / "run").code == 0
    for number, (step, image) in enumerate(moments):
        read(restore(image, tmp_path / str(number)) / "runs" / "run", step)
    for crash, image in recording.now().items():
        run = restore(image, tmp_path / crash) / "runs" / "run"
        assert whole(run, undisturbed), crash
        assert all(file.stat().st_size for file in (run / BOARD).iterdir()), crash


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    folder = tmp_path / "machine"
    folder.mkdir()
    return folder


@ANY
def test_resume_auto_goes_on_after_a_power_cut(
    train: Train, undisturbed: Path, machine: Path, count: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    with recorded(machine) as recording:
        assert train(machine / "run", "--resume", "auto").code == 0

    def survives(restored: Path) -> str | None:
        run = restored / "run"
        if is_finished(run):
            if not whole(run, undisturbed):
                return "is marked as finished, but is not whole"
            train(run).assert_refused("holds a finished run")
        ended = train(run, "--resume", "auto")
        return ended.stderr if ended.code else None if whole(run, undisturbed) else "ends with other vectors"

    report = survived(recording, survives, machine.parent, count)
    with capsys.disabled():
        print(f"\ntrain --resume auto: {report}")


@ANY
@pytest.mark.parametrize("before", ["finished", "interrupted", "interrupted over a finished one"])
def test_overwrite_goes_on_after_a_power_cut(
    train: Train,
    undisturbed: Path,
    machine: Path,
    before: str,
    count: int | None,
    stop_after: Stop,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By --overwrite again, or by --resume auto where the new run has begun. The finished run has another seed."""
    run = machine / "run"
    old = undisturbed
    if "finished" in before:
        assert train(run, "--seed", "1").code == 0
        old = Path(shutil.copytree(run, machine.parent / "old"))
    if "interrupted" in before:
        stop_after(8)
        assert train(run, "--overwrite").code == 143
    with recorded(machine) as recording:
        assert train(run, "--overwrite").code == 0

    def survives(restored: Path) -> str | None:
        run = restored / "run"
        if is_finished(run) and not (whole(run, old) or whole(run, undisturbed)):
            return "is marked as finished, but is neither the old run nor the new one"
        resumed = Path(shutil.copytree(restored, f"{restored}-resumed"), "run")
        ended = train(resumed, "--resume", "auto")
        if "finished" in before and "trained with other settings; say --seed 1" in ended.stderr:
            assert whole(resumed, old)
        elif ended.code or not whole(resumed, undisturbed):
            return f"--resume auto: {ended}"
        ended = train(run, "--overwrite")
        return ended.stderr if ended.code else None if whole(run, undisturbed) else "ends with other vectors"

    report = survived(recording, survives, machine.parent, count)
    with capsys.disabled():
        print(f"\ntrain --overwrite of a run that was {before}: {report}")
