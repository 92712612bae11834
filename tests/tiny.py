"""Tiny datasets and runs for tests of the trainer and its readers, made in milliseconds and without Spark."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor

from pipeline.dataset.manifest_file import Counts, Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Slice, Tables, sample
from pipeline.shared.storage import Location
from pipeline.spark.shard_writer import ROW_GROUP_ROWS, ShardFile, versions
from pipeline.text.word_index import WordIndex, encode
from training.model.batch import Batch
from training.vectors.word_vectors import Tables as Model

ODD_WORDS = ["the", "N", "Émile", "don't", "数据", "a,b", "0.5", '"quoted"', "#5", "-1e-05", "\ufeffbom", "x" * 4096]
"""Words that a reader of vectors may take for something else."""


def odd_table(num_words: int, dim: int) -> npt.NDArray[np.float32]:
    """Float32 of all sizes, down to those with fewer bits, and both zeros."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, (num_words, dim), dtype=np.uint32)
    values = bits.view(np.float32)
    values[~np.isfinite(values)] = -0.0
    return values


def write_run(folder: Path, words: list[str], center_VD: npt.NDArray[np.float32]) -> None:
    """Writes a finished run's FOLDER, as far as those who read its vectors look; counts fall from V to 1."""
    write_tables(folder, Model(words, np.arange(len(words), 0, -1), center_VD, np.zeros_like(center_VD)))


def write_tables(folder: Path, tables: Model) -> None:
    """Writes a finished run's FOLDER with all that ``tables`` has."""
    folder.mkdir(parents=True)
    save_file({"center": tables.center_VD, "context": tables.context_VD}, folder / "vectors.safetensors")
    Vocab(pa.array(tables.words), tables.counts_V).write(folder / "vocab.parquet")
    (folder / "summary.json").write_text("{}")


def random_model(num_words: int, dim: int, seed: int, trained: bool = False) -> Model:
    """Words ``w1`` ..., fewer and fewer of each; as ``trained`` ones are, longer, and all a little alike."""
    rng = np.random.default_rng(seed)
    center_VD, context_VD = rng.standard_normal((2, num_words, dim), dtype=np.float32)
    if trained:
        center_VD, context_VD = center_VD * np.float32(0.4) + 1, context_VD * np.float32(0.4) - 1
        center_VD, context_VD = (table_VD * np.float32(3 / dim**0.5) for table_VD in (center_VD, context_VD))
    center_VD[0] = context_VD[0] = 0
    counts_V = (10_000 // np.arange(1, num_words + 1)).astype(np.int64)
    return Model(["<unk>", *(f"w{row}" for row in range(1, num_words))], counts_V, center_VD, context_VD)


def write_tiny_dataset(
    folder: Path,
    num_sequences: int = 400,
    num_words: int = 60,
    row_group_rows: int = ROW_GROUP_ROWS,
    **config: Any,
) -> Manifest:
    """Writes a valid dataset FOLDER and returns its manifest: sequences of 4 to 12 words ``w0`` ... by Zipf's law.

    The same bytes every time for equal arguments. ``config`` are PipelineConfig's, but for ``holdout``; left out, all
    words and tokens are kept, and there are 4 shards an epoch.
    """
    settings = PipelineConfig(**{"min_count": 1, "sample": 0.0, "num_shards": 4, **config})
    assert settings.holdout == 0, "nothing is held out here"
    rng = np.random.default_rng(settings.seed)
    lengths = rng.integers(4, 13, size=num_sequences)
    zipf = 1 / np.arange(1, num_words + 1)
    words = [f"w{rank}" for rank in rng.choice(num_words, size=lengths.sum(), p=zipf / zipf.sum())]
    return write_dataset(folder, words, lengths, settings, row_group_rows)


def write_dataset(
    folder: Path,
    words: list[str],
    lengths: npt.NDArray[np.int64],
    settings: PipelineConfig,
    row_group_rows: int = ROW_GROUP_ROWS,
) -> Manifest:
    """Writes what ``prepare`` would make of these sequences, end to end, but for their order and ``holdout``."""
    counts = Counter(words)
    kept = {word: count for word, count in counts.items() if count >= settings.min_count}
    vocab = Vocab.from_counts(
        pa.array(list(kept)), pa.array(list(kept.values()), pa.int64()), len(words), settings.max_vocab
    )
    tables = Tables.build(vocab.counts_V, settings)
    encoded = encode(pa.array(words), lengths, WordIndex(vocab.words))
    # Every sequence counts as the first of its kind: equal ones are then sampled alike, which does no harm here.
    whole = Slice(encoded.ids, encoded.lengths, encoded.keys, np.zeros(encoded.lengths.size, np.int64))

    generation = folder / "gen-tiny"
    generation.mkdir(parents=True)
    vocab.write(generation / "vocab.parquet")
    shard_of = np.arange(encoded.lengths.size) % (settings.num_shards or 1)
    shards, num_subsampled, num_pairs = [], 0, 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.spark.shard_writer.ROW_GROUP_ROWS", row_group_rows)
        for epoch in range(settings.epochs):
            for number in range(settings.num_shards or 1):
                examples = sample(whole.where(shard_of == number), tables, settings, epoch)
                with ShardFile(Location.of(generation), "train", epoch, number, settings) as file:
                    file.append(examples)
                    info = file.finish()
                if info is not None:
                    shards.append(info)
                num_subsampled += examples.num_subsampled
                num_pairs += file.num_pairs
    manifest = Manifest(
        generation=generation.name,
        config=settings,
        source_state=(),
        counts=Counts(
            lines=lengths.size,
            nulls=0,
            invalid_utf8_lines=0,
            sequences=lengths.size,
            too_short=0,
            tokens=len(words),
            long_tokens=0,
            unknown=int(vocab.counts_V[0]),
            subsampled=num_subsampled,
            examples=sum(shard.rows for shard in shards),
            pairs=num_pairs,
        ),
        vocab_size=len(vocab),
        vocab_digest=vocab.digest(),
        max_len=settings.max_len,
        row_group_rows=row_group_rows,
        versions=versions(),
        shards=tuple(shards),
    )
    manifest.save(folder)
    return manifest


def write_held_out(folder: Path) -> Manifest:
    """A tiny dataset in row groups of 100 rows, whose held-out examples are another sampling of the same sequences."""
    manifest = write_tiny_dataset(folder, epochs=2, row_group_rows=100)
    shards = tuple(replace(shard, split="train" if shard.epoch else "heldout", epoch=0) for shard in manifest.shards)
    manifest = replace(manifest, shards=shards, config=replace(manifest.config, epochs=1))
    manifest.save(folder)
    return manifest


def copies(batches: Iterable[Batch]) -> list[Batch]:
    """The batches of a stream, of which each is valid only until the next one is asked for."""
    return list(map(copy, batches))


def copy(batch: Batch) -> Batch:
    center_B, targets_BL, num_contexts_B = (tensor.clone() for tensor in batch.tensors())
    return Batch(center_B, targets_BL, num_contexts_B, batch.num_steps)


Rows = tuple[Tensor, Tensor, Tensor]
"""center_B, contexts_negatives_BL and num_contexts_B, as a batch holds them."""


def random_rows(
    num_rows: int,
    num_words: int,
    window: int = 2,
    negatives: int = 2,
    seed: int = 0,
    num_contexts: int | None = None,
    repeat: bool = True,
) -> Rows:
    """Rows of words 1 to ``num_words`` - 1, frequent ones first; padding names random words too, as leftovers would.

    ``num_contexts`` in every row, or 0 to 2·window. Without ``repeat`` no row names a word twice.
    """
    rng = np.random.default_rng(seed)
    max_len = 2 * window * (1 + negatives)
    weights = 1 / np.arange(1, num_words)
    weights /= weights.sum()
    words = [1 + rng.choice(num_words - 1, size=max_len, replace=repeat, p=weights) for _ in range(num_rows)]
    counts = rng.integers(0, 2 * window + 1, size=num_rows)
    return (
        torch.from_numpy(1 + rng.choice(num_words - 1, size=num_rows, p=weights).astype(np.int32)),
        torch.from_numpy(np.array(words, dtype=np.int32).reshape(num_rows, max_len)),
        torch.from_numpy(
            counts.astype(np.int16) if num_contexts is None else np.full(num_rows, num_contexts, np.int16)
        ),
    )


def random_tables(num_words: int, dim: int, scale: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Center and context; row 0 is zero, as in every model."""
    generator = torch.Generator().manual_seed(seed)
    tables = torch.randn(2, num_words, dim, generator=generator) * scale
    tables[:, 0] = 0
    return tables[0].clone(), tables[1].clone()


# Damage


def tree(folder: Path) -> dict[str, bytes]:
    """All that lies in ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(path: Path, offset: int) -> None:
    edit(path, lambda old: old[:offset] + bytes([old[offset] ^ 1]) + old[offset + 1 :])


def damage_page(path: Path, column: str) -> None:
    """Turns one bit in the middle of a column's data."""
    row_group = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [row_group.column(i) for i in range(row_group.num_columns)]
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema.split(".")[0] == column)
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    flip(path, (chunk.data_page_offset + begin + chunk.total_compressed_size) // 2)
