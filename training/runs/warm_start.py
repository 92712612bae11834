"""A warm start: a run begins with the vectors of an earlier run, matched by word.

V words, D dimensions, K words that both vocabularies have. Row 0, <unk>, never counts as one.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from xxhash import xxh3_64

from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.errors import InputError
from pipeline.shared.records import Xxh3, checked, record
from training.model.blocks import Blocks, BlockTables, spans
from training.model.skip_gram import TABLES
from training.run import Run
from training.train_config import TrainConfig
from training.vectors.compare import Growth, growth, shared_rows
from training.vectors.run_files import VECTORS, map_tables
from training.vectors.word_vectors import Float32, Tables

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


@dataclass(frozen=True)
class Source:
    """Rows that kept words begin with: of words ``kept_K``, in rising order, rows ``from_K`` of ``tables``."""

    kept_K: npt.NDArray[np.int64]
    from_K: npt.NDArray[np.int64]
    tables: list[Float32]
    """Centers and contexts."""


def warm_start(run: Run, tables: BlockTables) -> tuple[Start | None, BlockTables]:
    """``tables`` with the rows of --init-from, on every rank. None, and ``tables``, for a cold start.

    Rank 0 checks them; all map the file into memory.
    """
    config, world = run.config, run.world
    if config.init_from is None:
        return None, tables
    body, sent = None, dict[str, Tensor]()
    if world.is_first:
        start, source = read_start(config, run.manifest)
        body = asdict(start.record)
        sent = {KEPT: torch.from_numpy(source.kept_K), "from": torch.from_numpy(source.from_K)}
    body, sent = world.broadcast(body, sent)
    with world.everywhere(_file_of(config.init_from)) as file:
        if not world.is_first:
            source = Source(sent[KEPT].numpy(), sent["from"].numpy(), map_tables(file, *TABLES))
    center, context = (_with_rows(table, source, old_VD) for table, old_VD in zip(tables, source.tables, strict=True))
    return Start(checked(body, StartRecord), sent[KEPT]), (center, context)


def _with_rows(table: Blocks, source: Source, old_VD: Float32) -> Blocks:
    """``table``, but for the kept words' rows."""

    def blocks() -> Iterator[Tensor]:
        for rows, block_BD in zip(spans(table.shape[0]), table.blocks(), strict=True):
            first, last = np.searchsorted(source.kept_K, (rows.start, rows.stop))
            block_BD[source.kept_K[first:last] - rows.start] = torch.from_numpy(old_VD[source.from_K[first:last]])
            yield block_BD

    return Blocks(table.shape, blocks)


def read_start(config: TrainConfig, manifest: Manifest) -> tuple[Start, Source]:
    """The start from --init-from on this dataset. Raises InputError if this run cannot begin with these vectors."""
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
    kept_K, from_K = shared_rows(words, before.words)
    start = Start(StartRecord(_digest(before), grown), torch.from_numpy(kept_K))
    return start, Source(kept_K, from_K, [before.center_VD, before.context_VD])


def _file_of(source: Path) -> Path:
    """The file that holds the tables of a run, or of a .safetensors file."""
    found = source.resolve()
    return found if found.is_file() else found / VECTORS


def _digest(tables: Tables) -> str:
    """XXH3 of words and vectors, whatever file they are in."""
    digest = xxh3_64("\n".join(tables.words).encode())
    for table_VD in (tables.center_VD, tables.context_VD):
        digest.update(np.ascontiguousarray(table_VD).data.cast("B"))
    return digest.hexdigest()
