"""The run's folder: claimed before training, filled at its end; every file appears whole or not at all.

V words, D dimensions.
"""

import json
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save

from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.shared.cli import check_output
from pipeline.shared.errors import InputError
from pipeline.shared.files import Held, atomic_write, locked
from pipeline.shared.storage import Location
from training.model.skip_gram import SkipGram
from training.runs.checkpoint import FOLDER, newest
from training.runs.tensorboard import write_projector
from training.train_config import TrainConfig
from training.vectors.run_files import BOARD, REPORT, SUMMARY, VECTORS, VOCAB

NEW = ".new"
LOCK = ".train.lock"
OWN_FILES = (SUMMARY, VECTORS, VOCAB, "config.json", "metrics.jsonl", "loss.png", REPORT)


def check_free(config: TrainConfig) -> None:
    """Raises InputError when the run may not write to its folder: it is no run's, or holds a run that is to stay."""
    output = config.output
    names = (*OWN_FILES, NEW, FOLDER, BOARD, LOCK)
    check_output(output, (*names, *(f".{name}.*" for name in OWN_FILES)), "run")
    if config.overwrite or config.resume is not None:
        return
    if is_finished(output):
        raise InputError(f"--output {output}: holds a finished run; add --overwrite or name another folder")
    if done := newest(current(output)):
        raise InputError(
            f"--output {output}: holds a run that was interrupted, with a checkpoint of step {done}; "
            f"add --resume to go on, or --overwrite to begin anew"
        )


def current(output: Path) -> Path:
    """The folder of the run that is going on in ``output``: that itself, or, to replace a finished one, one inside."""
    return output / NEW if (output / NEW / FOLDER).exists() else output


@contextmanager
def owned(output: Path) -> Iterator[None]:
    """Keeps other runs out of ``output``. Raises InputError when one is there."""
    with ExitStack() as stack:
        try:
            with _writing(output):
                output.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(output / LOCK))
        except Held:
            raise InputError(f"--output {output}: another run is writing there; wait for its end, or stop it") from None
        if (output / NEW / SUMMARY).exists():
            _replace(output)  # a run was stopped in the middle of it
        yield


def claim(config: TrainConfig, manifest: Manifest, goes_on: bool) -> Path:
    """The folder to write in, with config.json and the vocabulary, and nothing else unless the run goes on.

    It is the run's own, unless that holds a finished run: then one inside it, whose files ``finish`` puts in place.
    """
    output = config.output
    fresh = output / NEW if is_finished(output) else output
    folder = current(output) if goes_on else fresh
    vocabulary = read_vocabulary(config, manifest)
    with _writing(output):
        if not goes_on:
            shutil.rmtree(output / NEW, ignore_errors=True)
            folder.mkdir(exist_ok=True)
            for name in OWN_FILES:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / FOLDER, ignore_errors=True)
            shutil.rmtree(folder / BOARD, ignore_errors=True)
        settings = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
        _write_json(folder / "config.json", settings)
        _write(folder / VOCAB, vocabulary)
    return folder


def read_vocabulary(config: TrainConfig, manifest: Manifest) -> bytes:
    """The dataset's vocabulary, a Parquet file. Raises ManifestError."""
    vocab = Location.of(config.data) / manifest.vocab_path
    try:
        return vocab.read_bytes()
    except OSError as error:
        raise ManifestError.unreadable(vocab, error) from None


def write_vectors(folder: Path, config: TrainConfig, model: SkipGram) -> npt.NDArray[np.float32]:
    """Writes both tables; returns the center's, of shape (V, D)."""
    weights = {"center": model.center.weight, "context": model.context.weight}
    tables = {name: weight.detach().float().cpu().contiguous() for name, weight in weights.items()}
    with _writing(config.output):
        _write(folder / VECTORS, save(tables))
    return tables["center"].numpy()


def summary_of(manifest: Manifest, epochs: list[dict[str, Any]], totals: dict[str, Any]) -> dict[str, Any]:
    """What summary.json says of a run with these lines of ``epochs``."""
    return {
        **totals,
        "epochs": epochs,
        "dataset_id": manifest.dataset_id,
        "vocab_size": manifest.vocab_size,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
        },
        "commit": _commit(),
    }


def write_pages(
    folder: Path,
    config: TrainConfig,
    manifest: Manifest,
    center_VD: npt.NDArray[np.float32],
    summary: dict[str, Any],
) -> None:
    """Writes what people look at: loss.png, report.html and TensorBoard's projector."""
    from training.runs import report_data, report_plots
    from training.runs import report_page as report  # half a second, and only rank 0 draws

    with _writing(config.output):
        vocabulary = pq.read_table(folder / VOCAB)
        words, counts_V = vocabulary["word"].to_pylist(), vocabulary["count"].to_numpy()
        name = config.output.absolute().name
        run = report_data.Run.at_end(folder, name, summary, words, counts_V, center_VD, manifest)
        _write(folder / "loss.png", report_plots.loss_png(run.steps, run.epochs, config.log_every))
        report.write_report(run, folder)
        if config.tensorboard:
            write_projector(folder, words, counts_V, center_VD)


def finish(folder: Path, config: TrainConfig, summary: dict[str, Any]) -> None:
    """Writes summary.json, last of all: a run with a summary is a finished one. It may now replace an older run."""
    with _writing(config.output):
        _write_json(folder / SUMMARY, summary)
        if folder != config.output:
            _replace(config.output)


def is_finished(output: Path) -> bool:
    """Whether there is a run that reached its end, even if it was stopped while it replaced another."""
    return (output / SUMMARY).exists() or (output / NEW / SUMMARY).exists()


def _replace(output: Path) -> None:
    """Puts the finished run inside ``output`` in the place of the old one; done twice, it does what was left to do."""
    if (output / SUMMARY).exists():
        shutil.rmtree(output / BOARD, ignore_errors=True)  # the new run may have none
        (output / SUMMARY).unlink()
    new = output / NEW
    for name in (FOLDER, BOARD):
        if (new / name).exists():
            shutil.rmtree(output / name, ignore_errors=True)
            (new / name).replace(output / name)
    for name in reversed(OWN_FILES):
        if (new / name).exists():
            (new / name).replace(output / name)
    shutil.rmtree(new)


@contextmanager
def _writing(output: Path) -> Iterator[None]:
    """Turns the OSError of a write into one line for the user."""
    try:
        yield
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from None


def _write_json(path: Path, record: dict[str, Any]) -> None:
    _write(path, f"{json.dumps(record, indent=1)}\n".encode())


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as file:
        file.write(content)


def _commit() -> str | None:
    """The commit of this code, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
