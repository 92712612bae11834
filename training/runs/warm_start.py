"""A warm start: a run begins with the vectors of an earlier run, matched by word.

V words, D dimensions, K words that both vocabularies have. Row 0, <unk>, never counts as one.
"""

from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor
from xxhash import xxh3_64

from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.errors import InputError
from pipeline.shared.records import Xxh3, checked, record
from training.model.skip_gram import SkipGram
from training.run import Run
from training.train_config import TrainConfig
from training.vectors.compare import Growth, growth, shared_rows
from training.vectors.word_vectors import Tables

KEPT = "kept"
"""The name of the kept words' ids among the tensors of a checkpoint."""


@record
class StartRecord:
    """What a checkpoint stores of a run's start: the vectors' digest, and the growth of the vocabulary."""

    xxh3: Xxh3
    growth: Growth


@dataclass(frozen=True)
class Start:
    """What a run began with: its ``record``, and the ids ``kept_K`` (int64) of the kept words."""

    record: StartRecord
    kept_K: Tensor

    @property
    def growth(self) -> Growth:
        return self.record.growth


def warm_start(run: Run, model: SkipGram) -> Start | None:
    """Copies the rows of --init-from into ``model``, on every rank; rank 0 reads them. None for a cold start."""
    if run.config.init_from is None:
        return None
    body, rows = None, dict[str, Tensor]()
    if run.world.is_first:
        start, rows = read_start(run.config, run.manifest)
        body = asdict(start.record)
    body, rows = run.world.broadcast(body, rows)
    with torch.no_grad():
        model.center.weight[rows[KEPT]] = rows["center"]
        model.context.weight[rows[KEPT]] = rows["context"]
    return Start(checked(body, StartRecord), rows[KEPT])


def read_start(config: TrainConfig, manifest: Manifest) -> tuple[Start, dict[str, Tensor]]:
    """The start from --init-from on this dataset, and tensors: ids ``kept`` (K), ``center`` and ``context`` (K, D).

    Raises InputError if this run cannot begin with these vectors.
    """
    source = config.init_from
    assert source is not None
    if source.resolve() == config.output.resolve():
        raise InputError(f"--init-from {source}: is --output too, so the run would replace what it reads; name another")
    try:
        before = Tables.load(source)
    except InputError as error:
        remedy = "; or leave it out, since a checkpoint holds all that is needed" if config.resume is not None else ""
        raise InputError(f"--init-from {error}{remedy}") from None
    dim = before.center_VD.shape[1]
    if dim != config.dim:
        raise InputError(
            f"--init-from {source}: found vectors of {dim} dimensions, expected --dim {config.dim}; say --dim {dim}"
        )
    vocab = manifest.read_vocab(config.data)
    words = vocab.words.to_pylist()
    grown = growth(words, vocab.counts_V, before.words, before.counts_V)
    if not grown.kept:
        raise InputError(
            f"--init-from {source}: none of its {len(before.words) - 1:,} words is among the {len(words) - 1:,} of "
            f"{config.data}; name a run on text like this, or leave it out"
        )
    kept_K, from_K = map(torch.from_numpy, shared_rows(words, before.words))
    tables = {"center": before.center_VD, "context": before.context_VD}
    rows = {name: torch.from_numpy(table_VD)[from_K] for name, table_VD in tables.items()}
    return Start(StartRecord(_digest(before), grown), kept_K), {KEPT: kept_K, **rows}


def _digest(tables: Tables) -> str:
    """XXH3 of words and vectors, whatever file they are in."""
    digest = xxh3_64("\n".join(tables.words).encode())
    for table_VD in (tables.center_VD, tables.context_VD):
        digest.update(np.ascontiguousarray(table_VD).data.cast("B"))
    return digest.hexdigest()
