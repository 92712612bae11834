"""Datasets that follow the laws of real corpora, made on the spot: neither Spark nor Java nor a text is needed.

Words are independent and follow Zipf's law with a shift (Mandelbrot 1953): the word of rank r has a frequency
proportional to (r + shift) ** -exponent. Exponents and shifts were fitted to the counts of Penn Treebank and of 17 M
tokens of Wikipedia. tests/house/test_ladder.py compares: 100, 1,000 and 5,000 words have nearly the same share of the
tokens, and nearly as many tokens are left after subsampling. Contexts then are no better than chance, so vectors mean
nothing; speeds, contention and losses of one implementation beside another's do not need them to.

All that comes after the words is the project's own: subsampling, windows, negatives, and the format of the shards.

V words, T tokens, Q sequences.
"""

import hashlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.dataset.manifest_file import FORMAT_VERSION, Counts, Manifest, ManifestError, ShardInfo
from pipeline.dataset.vocab import Vocab
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Slice, Tables, sample
from pipeline.shared.randomness import fold
from pipeline.shared.storage import Location
from pipeline.spark.shard_writer import ROW_GROUP_ROWS, ShardFile, versions
from training.model.limits import num_cores


class Law(NamedTuple):
    """A corpus: how often each word occurs, and how long the sequences are."""

    vocab_size: int
    """V, with <unk>."""
    num_tokens: int
    """T, without those that are <unk>."""
    exponent: float
    shift: float
    mean_length: float
    """Tokens of a sequence."""
    spread_length: float = 0.0
    """Standard deviation of the lengths, which follow a gamma law; 0: all are equal."""
    num_shards: int = 16

    @property
    def frequencies_V(self) -> npt.NDArray[np.float64]:
        """The share of each word in the tokens; <unk> has none."""
        ranks_V = np.arange(self.vocab_size, dtype=np.float64)
        frequencies_V: npt.NDArray[np.float64] = np.power(ranks_V + self.shift, -self.exponent)
        frequencies_V[0] = 0
        frequencies_V /= frequencies_V.sum()
        return frequencies_V

    @property
    def counts_V(self) -> npt.NDArray[np.int64]:
        """What the law expects, at least 1 of each word."""
        counts_V = np.maximum(1, np.rint(self.frequencies_V * self.num_tokens)).astype(np.int64)
        counts_V[0] = 0
        return counts_V

    def lengths(self, num_tokens: int, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Lengths of sequences, 2 tokens or more, with ``num_tokens`` or a few more in all."""
        num_sequences = 2 + int(1.2 * num_tokens / self.mean_length)
        if self.spread_length:
            shape = (self.mean_length / self.spread_length) ** 2
            drawn = np.rint(rng.gamma(shape, self.mean_length / shape, num_sequences))
        else:
            drawn = np.full(num_sequences, self.mean_length)
        lengths = np.maximum(2, drawn).astype(np.int64)
        return lengths[: 1 + int(np.searchsorted(np.cumsum(lengths), num_tokens))]


PTB = Law(6_719, 820_056, 1.02, 1.0, 19.5, 9.5)
WIKIPEDIA = Law(67_849, 16_693_938, 1.10, 1.5, 1000)
MILLION = WIKIPEDIA._replace(vocab_size=1_000_000)


def dataset(law: Law, folder: Path) -> Path:
    """The law's dataset in ``folder``; makes it unless it is there, whole."""
    digest = hashlib.sha256(repr((law, FORMAT_VERSION)).encode()).hexdigest()[:8]
    path = folder / f"{law.vocab_size}-{law.num_tokens}-{digest}"
    try:
        Manifest.load(path).check_files(path)
    except ManifestError:
        shutil.rmtree(path, ignore_errors=True)
        write(law, path)
    return path


def write(law: Law, path: Path) -> Manifest:
    """Writes the law's dataset; the same bytes every time. Its shards are made at once, each by a thread."""
    config = PipelineConfig(min_count=1, num_shards=law.num_shards)
    generation = path / "gen-law"
    generation.mkdir(parents=True)
    words = pa.array(["<unk>", *(f"w{rank:09}" for rank in range(1, law.vocab_size))])
    vocab = Vocab(words, law.counts_V)
    vocab.write(generation / "vocab.parquet")
    tables, cumulated_V = Tables.build(law.counts_V, config), np.cumsum(law.frequencies_V)

    def shard(number: int) -> tuple[ShardInfo | None, npt.NDArray[np.int64]]:
        """A shard; its numbers of sequences, tokens, subsampled ones and pairs."""
        rng = np.random.default_rng([config.seed, number])
        lengths = law.lengths(-(-law.num_tokens // law.num_shards), rng)
        drawn_T = np.searchsorted(cumulated_V, rng.random(lengths.sum()), side="right")
        ids_T = drawn_T.clip(1, law.vocab_size - 1).astype(np.int32)
        keys_Q = fold(number, np.arange(lengths.size))
        examples = sample(Slice(ids_T, lengths, keys_Q, np.zeros(lengths.size, np.int64)), tables, config, epoch=0)
        with ShardFile(Location.of(generation), "train", 0, number, config) as file:
            file.append(examples)
            info = file.finish()
        return info, np.array([lengths.size, ids_T.size, examples.num_subsampled, file.num_pairs])

    with ThreadPoolExecutor(min(law.num_shards, num_cores())) as threads:
        found, numbers = zip(*threads.map(shard, range(law.num_shards)), strict=True)
    shards = tuple(info for info in found if info is not None)
    num_sequences, num_tokens, num_subsampled, num_pairs = map(int, np.sum(numbers, axis=0))
    read = {"lines": num_sequences, "nulls": 0, "invalid_utf8_lines": 0, "sequences": num_sequences, "too_short": 0}
    made = {"unknown": 0, "subsampled": num_subsampled, "examples": sum(shard.rows for shard in shards)}
    manifest = Manifest(
        generation=generation.name,
        config=config,
        source_state=(),
        counts=Counts(**read, tokens=num_tokens, long_tokens=0, **made, pairs=num_pairs),
        vocab_size=len(vocab),
        vocab_digest=vocab.digest(),
        max_len=config.max_len,
        row_group_rows=ROW_GROUP_ROWS,
        versions=versions(),
        shards=shards,
    )
    manifest.save(path)
    return manifest
