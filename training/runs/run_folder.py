"""The run's folder: claimed before training, filled at the end. Every file is written atomically.

V words, D dimensions.
"""

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch

from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.shared.cli import check_output
from pipeline.shared.errors import InputError
from pipeline.shared.files import AlreadyLocked, atomic_write, fsync, locked, make_folder, os_errors, write, write_json
from training.model.blocks import BlockTables
from training.model.skip_gram import TABLES
from training.run import Run
from training.runs.checkpoint import FOLDER, newest
from training.runs.tensorboard import write_projector
from training.train_config import TrainConfig
from training.vectors.run_files import (
    BEST,
    BOARD,
    REPORT,
    SUMMARY,
    VECTORS,
    VOCAB,
    is_finished,
    map_tables,
    write_tables,
)

NEW = ".new"
LOCK = ".train.lock"
REMOVED = f".{FOLDER}"
OWN_FILES = (SUMMARY, VECTORS, VOCAB, "config.json", "metrics.jsonl", "loss.png", REPORT)


def check_free(config: TrainConfig) -> None:
    """Raises InputError if the output holds foreign files, or a run that was not to be overwritten or resumed."""
    output = config.output
    names = (*OWN_FILES, NEW, FOLDER, REMOVED, BOARD, BEST, LOCK)
    check_output(output, (*names, *(f".{name}.*" for name in OWN_FILES)), "run")
    if config.overwrite or config.resume is not None:
        return
    if holds_finished(output):
        raise InputError(f"--output {output}: holds a finished run; add --overwrite or name another folder")
    if done := newest(active_folder(output)):
        raise InputError(
            f"--output {output}: holds a run that was interrupted, with a checkpoint of step {done}; "
            f"add --resume to go on, or --overwrite to begin anew"
        )


def active_folder(output: Path) -> Path:
    """The folder of the run in progress: ``output``, or a folder inside it while a finished run is being replaced."""
    return output / NEW if (output / NEW / FOLDER).exists() else output


@contextmanager
def locked_folder(output: Path) -> Iterator[None]:
    """Holds the lock of ``output``. Raises InputError when another run holds it."""
    with ExitStack() as stack:
        try:
            with writing(output):
                make_folder(output)
                stack.enter_context(locked(output / LOCK))
        except AlreadyLocked:
            raise InputError(f"--output {output}: another run is writing there; wait for its end, or stop it") from None
        if is_finished(output / NEW):
            _replace(output)  # a run was stopped while it did this
        yield


def claim(run: Run, resumed: bool) -> Path:
    """The folder to write in, with config.json and the vocabulary, and nothing else unless the run is resumed.

    That is the output, unless the output holds a finished run: then a folder inside it, until ``finish`` replaces the
    finished run.
    """
    config, output = run.config, run.config.output
    fresh = output / NEW if holds_finished(output) else output
    folder = active_folder(output) if resumed else fresh
    vocab = run.manifest.read_vocab(config.data)
    if not resumed:
        for old in (output / NEW, folder):
            _remove_checkpoints(old)  # first: none may be found without the lines of metrics.jsonl before it
        shutil.rmtree(output / NEW, ignore_errors=True)
        make_folder(folder)
        for name in OWN_FILES:
            (folder / name).unlink(missing_ok=True)
        for name in (BOARD, BEST):
            shutil.rmtree(folder / name, ignore_errors=True)
    write_json(folder / "config.json", asdict(config))
    vocab.write(folder / VOCAB)
    return folder


def write_vectors(folder: Path, tables: BlockTables) -> npt.NDArray[np.float32]:
    """Writes both tables into ``folder``; returns the center table, of shape (V, D), mapped into memory."""
    named = zip(TABLES, tables, strict=True)
    blocks = {name: (block_BD.numpy() for block_BD in table.blocks()) for name, table in named}
    with atomic_write(folder / VECTORS) as file:
        write_tables(file, tables[0].shape, blocks)
    return map_tables(folder / VECTORS, TABLES[0])[0]


def write_best(folder: Path, tables: BlockTables, evaluated: dict[str, Any]) -> None:
    """Writes FOLDER/best, which Vectors.load reads. It has no summary, so is not loaded, while it is being replaced."""
    best = folder / BEST
    best.mkdir(exist_ok=True)
    (best / SUMMARY).unlink(missing_ok=True)
    if not (best / VOCAB).exists():
        with atomic_write(best / VOCAB) as file:
            file.write((folder / VOCAB).read_bytes())
    write_vectors(best, tables)
    write_json(best / SUMMARY, evaluated)


def summary_of(manifest: Manifest, epochs: list[dict[str, Any]], totals: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json; ``epochs`` are the lines of kind "epoch" of metrics.jsonl."""
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


def write_pages(folder: Path, run: Run, center_VD: npt.NDArray[np.float32], summary: dict[str, Any]) -> None:
    """Writes what people look at: loss.png, report.html and the files of TensorBoard's projector."""
    from training.runs import report_data, report_page, report_plots  # half a second, and only rank 0 draws

    vocab = Vocab.read(folder / VOCAB)
    words, counts_V = vocab.words.to_pylist(), vocab.counts_V
    name = run.config.output.absolute().name
    finished = report_data.FinishedRun.at_end(folder, name, summary, words, counts_V, center_VD, run.manifest)
    write(folder / "loss.png", report_plots.loss_png(finished, run.config.log_every))
    report_page.write_report(finished, folder)
    if run.config.tensorboard:
        write_projector(folder, words, counts_V, center_VD)


def finish(folder: Path, output: Path, summary: dict[str, Any]) -> None:
    """Writes summary.json, last: it marks the run as finished. Then the run replaces an older one in ``output``."""
    write_json(folder / SUMMARY, summary)
    if folder != output:
        _replace(output)


def holds_finished(output: Path) -> bool:
    """Whether ``output`` holds a finished run, even one that was stopped while it replaced another."""
    return is_finished(output) or is_finished(output / NEW)


def _replace(output: Path) -> None:
    """Replaces the old run in ``output`` by the finished one inside it. Idempotent: repeated, it does what is left."""
    if (output / SUMMARY).exists():
        for name in (BOARD, BEST):  # the new run may have none
            shutil.rmtree(output / name, ignore_errors=True)
        (output / SUMMARY).unlink()
    new = output / NEW
    for name in (FOLDER, BOARD, BEST):
        if (new / name).exists():
            shutil.rmtree(output / name, ignore_errors=True)
            (new / name).replace(output / name)
    for name in reversed(OWN_FILES):
        if (new / name).exists():
            (new / name).replace(output / name)
    fsync(output)
    shutil.rmtree(new)


def _remove_checkpoints(run: Path) -> None:
    """Removes all checkpoints at once: --resume auto must find none of which a part is gone."""
    shutil.rmtree(run / REMOVED, ignore_errors=True)
    with suppress(FileNotFoundError):
        (run / FOLDER).replace(run / REMOVED)
    shutil.rmtree(run / REMOVED, ignore_errors=True)


def writing(output: Path) -> AbstractContextManager[None]:
    """Raises an OSError of the block as one line for the user. The functions of this module raise OSError."""
    return os_errors(f"--output {output}: cannot be written", "choose another folder")


def _commit() -> str | None:
    """The commit of this code, if it runs from a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
