"""The run's folder: claimed before training, filled at its end; every file appears whole or not at all."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save

from pipeline.errors import InputError, check_output
from pipeline.manifest import Manifest, ManifestError
from pipeline.storage import Location
from training.config import TrainConfig
from training.metrics import Report
from training.model import SkipGram

SUMMARY = "summary.json"
VECTORS = "vectors.safetensors"
VOCAB = "vocab.parquet"
NEW = ".new"
OWN_FILES = (SUMMARY, VECTORS, VOCAB, "config.json", "metrics.jsonl", "loss.png")


def check_free(output: Path, overwrite: bool) -> None:
    """Raises InputError when ``output`` holds a finished run that may not be replaced, or is not a run's folder."""
    check_output(output, (*OWN_FILES, NEW, *(f".{name}.*" for name in OWN_FILES)), "run")
    if (output / SUMMARY).exists() and not overwrite:
        raise InputError(f"--output {output}: holds a finished run; add --overwrite or name another folder")


def claim(config: TrainConfig, manifest: Manifest) -> Path:
    """The folder to write in, empty but for config.json and the vocabulary.

    It is the run's own, unless that holds a finished run: then one inside it, whose files ``finish`` puts in place.
    """
    output = config.output
    folder = output / NEW if (output / SUMMARY).exists() else output
    vocabulary = read_vocabulary(config, manifest)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        _write_json(folder / "config.json", {name: _plain(value) for name, value in asdict(config).items()})
        _write(folder / VOCAB, vocabulary)
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from None
    return folder


def read_vocabulary(config: TrainConfig, manifest: Manifest) -> bytes:
    """The dataset's vocabulary, a Parquet file. Raises ManifestError."""
    vocab = Location.of(config.data) / manifest.vocab_path
    try:
        return vocab.read_bytes()
    except OSError as error:
        raise ManifestError.unreadable(vocab, error) from None


def finish(
    folder: Path, config: TrainConfig, manifest: Manifest, model: SkipGram, report: Report, totals: dict[str, Any]
) -> None:
    """Writes vectors and plot, and summary.json last: a run with a summary is a finished one."""
    tables = {"center": model.center.weight, "context": model.context.weight}
    _write(folder / VECTORS, save({name: table.detach().float().cpu().contiguous() for name, table in tables.items()}))
    _write(folder / "loss.png", report.plot())
    summary = {
        **totals,
        "epochs": report.epochs,
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
    _write_json(folder / SUMMARY, summary)
    if folder != config.output:
        (config.output / SUMMARY).unlink()
        for name in reversed(OWN_FILES):
            (folder / name).replace(config.output / name)
        shutil.rmtree(folder)


def _write_json(path: Path, record: dict[str, Any]) -> None:
    _write(path, f"{json.dumps(record, indent=1)}\n".encode())


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write in, beside ``path``; it is there under that name when all is written, and else not at all."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as file:
            yield file
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _write(path: Path, content: bytes) -> None:
    with whole(path) as file:
        file.write(content)


def _commit() -> str | None:
    """The commit of this code, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
