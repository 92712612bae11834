"""The challenger: a folder of new vectors, aligned with the published ones and ready to be published."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from jobs.retraining.workspace import Cycle
from pipeline.shared.files import atomic_write, remove, write, write_json
from training.judging.heldout import Heldout
from training.vectors.alignment import align, rotated
from training.vectors.run_files import SUMMARY, VECTORS, VOCAB, Float32, folder_of_vectors, read_summary, write_tables
from training.vectors.word_vectors import Tables

OF_THE_RUN = (
    *("dataset_id", "vocab_size", "examples", "steps", "loss", "mean_loss"),
    *("world_size", "threads", "kernel", "device", "versions", "commit"),
)
"""The entries of a run's summary that a version keeps: none that differ between equal runs, such as times."""


def make_challenger(cycle: Cycle, current: Path | None, holds_out: bool) -> None:
    """Makes CYCLE/challenger, atomically. Equal runs give equal bytes. ``current`` is the published version."""
    temporary = cycle.challenger.with_name(".challenger")
    remove(temporary)
    remove(cycle.challenger)
    temporary.mkdir()
    summary = read_summary(cycle.run)
    new = Tables.load(folder_of_vectors(cycle.run))
    tables: dict[str, Iterable[Float32]] = {"center": [new.center_VD], "context": [new.context_VD]}
    if current is not None:
        alignment = align(new, Tables.load(current))
        alignment.write(temporary)
        tables = {
            "center": rotated(new.center_VD, alignment.rotation_DD),
            "context": rotated(new.context_VD, alignment.rotation_DD),
        }
    if holds_out:
        Heldout.of_dataset(cycle.dataset).write(temporary)
    with atomic_write(temporary / VECTORS) as file:
        write_tables(file, new.center_VD.shape, tables)
    write(temporary / VOCAB, (cycle.run / VOCAB).read_bytes())
    card: dict[str, Any] = {name: summary[name] for name in OF_THE_RUN}
    card |= {"run_id": cycle.run_id, "dim": new.center_VD.shape[1], "supersedes": current.name if current else None}
    write_json(temporary / SUMMARY, card)
    temporary.replace(cycle.challenger)
