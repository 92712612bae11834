"""The run's folder: claimed before training, filled at its end; every file appears whole or not at all."""

import json
import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save

from pipeline.manifest import InputError, Manifest
from training.config import TrainConfig
from training.metrics import Report
from training.model import SkipGram

SUMMARY = "summary.json"
VECTORS = "vectors.safetensors"
VOCAB = "vocab.parquet"
OWN_FILES = (SUMMARY, VECTORS, VOCAB, "config.json", "metrics.jsonl", "loss.png")


def check_free(output: Path, overwrite: bool) -> None:
    """Raises InputError when ``output`` holds a finished run that may not be replaced, or is not a run's folder."""
    if output.is_file():
        raise InputError(f"--output {output}: is a file, expected a folder, new or of an earlier run")
    if (output / SUMMARY).exists() and not overwrite:
        raise InputError(f"--output {output}: holds a finished run; add --overwrite or name another folder")
    if output.is_dir() and any(output.iterdir()) and not any((output / name).exists() for name in OWN_FILES):
        raise InputError(f"--output {output}: holds files that are no run's; name a new folder")


def claim(output: Path, config: TrainConfig) -> None:
    """Makes the folder, removes what an earlier run left in it, and writes config.json."""
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in OWN_FILES:
            (output / name).unlink(missing_ok=True)
        _write_json(output / "config.json", {name: _plain(value) for name, value in asdict(config).items()})
    except OSError as error:
        raise InputError(f"--output {output}: cannot be written ({error.strerror}); choose another folder") from None


def finish(config: TrainConfig, manifest: Manifest, model: SkipGram, report: Report, totals: dict[str, Any]) -> None:
    """Writes vectors, vocabulary and plot, and summary.json last: a run with a summary is a finished one."""
    folder = config.output
    tables = {"center": model.center.weight, "context": model.context.weight}
    contiguous = {name: table.detach().float().cpu().contiguous() for name, table in tables.items()}
    _whole(folder / VECTORS, lambda path: path.write_bytes(save(contiguous)))
    vocab = (config.data / manifest.vocab_path).read_bytes()
    _whole(folder / VOCAB, lambda path: path.write_bytes(vocab))
    _whole(folder / "loss.png", report.plot)
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


def _write_json(path: Path, record: dict[str, Any]) -> None:
    _whole(path, lambda beside: beside.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8"))


def _whole(path: Path, write: Callable[[Path], object]) -> None:
    """Writes beside, then renames."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(beside)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _commit() -> str | None:
    """The commit of this code, where it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
