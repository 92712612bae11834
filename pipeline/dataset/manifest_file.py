"""The manifest of a dataset: the one file that readers trust. This module needs neither Spark nor torch.

DATASET/manifest.json                                     written last, atomically
DATASET/<generation>/vocab.parquet                        word_id, word, count
DATASET/<generation>/<split>/epoch=E/shard-NNNNN.parquet
"""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError, one_line
from pipeline.shared.storage import Location

FORMAT_VERSION = 2
FILE_NAME = "manifest.json"
VOCAB = "vocab.parquet"
PREPARE_AGAIN = "run prepare again with --overwrite"


class ManifestError(InputError):
    """A dataset is missing, damaged or of another format."""

    @classmethod
    def unreadable(cls, where: Location, error: Exception) -> "ManifestError":
        """The error of a file that cannot be read or understood."""
        remedy = PREPARE_AGAIN
        if where.local is None and isinstance(error, OSError):
            remedy = "check the address, your credentials for it, and that its server can be reached"
        return cls(f"{where}: cannot be read ({one_line(error)}); {remedy}")


@dataclass(frozen=True)
class ShardInfo:
    """One Parquet file of examples; ``path`` is relative to the dataset."""

    path: str
    split: str
    epoch: int
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class CorpusCounts:
    """What prepare read."""

    lines: int
    """Lines of text, or rows of a column."""
    nulls: int
    """Rows without a value, and null or empty elements of arrays; skipped."""
    invalid_utf8_lines: int
    sequences: int
    """Sequences of two tokens or more, after cutting."""
    too_short: int
    """Sequences with fewer than two tokens, including empty lines; left out."""
    tokens: int
    """All tokens, including those of too short sequences."""
    long_tokens: int
    """Tokens too long to be words; they became <unk>."""


@dataclass(frozen=True)
class Counts(CorpusCounts):
    """What prepare read and made. The last three are sums over all sampled epochs, including heldout."""

    unknown: int
    """Tokens that are <unk>."""
    subsampled: int
    """Known tokens that subsampling dropped."""
    examples: int
    pairs: int
    """(center, context) pairs."""


@dataclass(frozen=True)
class Manifest:
    """Everything that a reader needs to know about a dataset."""

    generation: str
    config: PipelineConfig
    source_state: tuple[dict[str, str | int], ...]
    """Path, size and time of each source. A changed corpus has another state."""
    counts: Counts
    vocab_size: int
    """V, ids from 0 (<unk>) to V - 1."""
    vocab_digest: str
    max_len: int
    """L, the width of contexts_negatives."""
    row_group_rows: int
    """Rows of every row group but a shard's last."""
    versions: dict[str, str]
    shards: tuple[ShardInfo, ...]
    format_version: int = FORMAT_VERSION

    @property
    def dataset_id(self) -> str:
        """A digest of format, config, vocabulary and shards: equal for equal data, in any folder."""
        identity = {
            "format_version": self.format_version,
            "config": dataclasses.asdict(self.config),
            "vocab": self.vocab_digest,
            "shards": [[shard.split, shard.epoch, shard.rows, shard.sha256] for shard in self.shards],
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    @property
    def vocab_path(self) -> str:
        return f"{self.generation}/{VOCAB}"

    @property
    def sampled_epochs(self) -> int:
        """The number of independent samplings."""
        return self.config.epochs

    def select(self, epoch: int, split: str = "train") -> tuple[ShardInfo, ...]:
        """The shards of one sampled epoch, 0 to ``sampled_epochs`` - 1 (always 0 for ``heldout``), in a fixed order."""
        return tuple(shard for shard in self.shards if (shard.split, shard.epoch) == (split, epoch))

    def save(self, dataset: Path | Location) -> None:
        """Makes this the dataset's manifest, atomically. Until then nothing changes for readers."""
        record = {"dataset_id": self.dataset_id, **dataclasses.asdict(self)}
        (Location.of(dataset) / FILE_NAME).put(f"{json.dumps(record, indent=1)}\n".encode())

    @classmethod
    def load(cls, dataset: str | Path | Location) -> "Manifest":
        """Reads and checks DATASET/manifest.json. Raises ManifestError when it is missing or cannot be used."""
        path = Location.of(dataset) / FILE_NAME
        try:
            record = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise ManifestError(f"{dataset}: no {FILE_NAME}, so no dataset; write one with jobs/prepare.py") from None
        except (OSError, ValueError) as error:
            raise ManifestError.unreadable(path, error) from None
        found = record.get("format_version") if isinstance(record, dict) else None
        if found != FORMAT_VERSION:
            newer = isinstance(found, int) and found > FORMAT_VERSION
            remedy = "use the shardvec that wrote it, or a newer one" if newer else PREPARE_AGAIN
            raise ManifestError(f"{path}: found format version {found}, expected {FORMAT_VERSION}; {remedy}")
        try:
            manifest = _from_record(record)
        except (KeyError, TypeError, ValueError) as error:
            raise ManifestError(f"{path}: not a valid manifest ({error}); {PREPARE_AGAIN}") from None
        if manifest.dataset_id != record.get("dataset_id") or manifest.max_len != manifest.config.max_len:
            raise ManifestError(f"{path}: dataset_id does not fit its contents; {PREPARE_AGAIN}")
        return manifest

    def check_files(self, dataset: str | Path | Location) -> None:
        """Raises ManifestError unless every listed file exists with its listed size. Reads no examples."""
        folder = Location.of(dataset)
        vocab = folder / self.vocab_path
        try:
            with vocab.open() as file:
                num_words = pq.read_metadata(file).num_rows
        except FileNotFoundError:
            raise ManifestError(f"{vocab}: missing; {PREPARE_AGAIN}") from None
        except (OSError, pa.ArrowException) as error:
            raise ManifestError.unreadable(vocab, error) from None
        if num_words != self.vocab_size:
            raise ManifestError(f"{vocab}: {num_words} words, manifest lists {self.vocab_size}; {PREPARE_AGAIN}")
        try:
            sizes = folder.sizes([shard.path for shard in self.shards])
        except OSError as error:
            raise ManifestError.unreadable(folder, error) from None
        for shard, found in zip(self.shards, sizes, strict=True):
            if found != shard.bytes:
                state = "missing" if found is None else f"{found} bytes"
                raise ManifestError(
                    f"{folder / shard.path}: {state}, manifest lists {shard.bytes} bytes; {PREPARE_AGAIN}"
                )

    @property
    def remarks(self) -> list[str]:
        """Warnings about the corpus, one line each."""
        found = (
            (self.counts.nulls, "rows or tokens without a value were skipped"),
            (self.counts.invalid_utf8_lines, "lines were not valid UTF-8; the bytes that were not became U+FFFD"),
            (self.counts.long_tokens, "tokens were too long to be words and became <unk>"),
        )
        return [f"{number:,} {what}" for number, what in found if number]

    def __str__(self) -> str:
        """Counts and sizes of the dataset, in a few lines for people."""
        counts = self.counts
        size = sum(shard.bytes for shard in self.shards)
        held = sum(shard.rows for shard in self.shards if shard.split == "heldout")
        lines = [
            f"{counts.lines:,} lines, {counts.tokens:,} tokens, {counts.unknown:,} of them <unk>",
            *self.remarks,
            f"vocabulary of {self.vocab_size:,} with <unk>",
            f"{counts.examples:,} examples, {counts.pairs:,} pairs in {self.sampled_epochs} sampled epoch(s)"
            + (f", {held:,} of the examples held out" if held else ""),
            f"{len(self.shards)} shards, {size / 1e6:.1f} MB, {size / counts.examples:.1f} bytes an example",
        ]
        return "\n".join(lines)


def _from_record(record: dict[str, Any]) -> Manifest:
    """A Manifest from its JSON. Raises KeyError, TypeError or ValueError if a field is missing, unknown or invalid."""
    fields = {field.name: record[field.name] for field in dataclasses.fields(Manifest)}
    fields["config"] = PipelineConfig(**record["config"])
    fields["counts"] = Counts(**record["counts"])
    fields["shards"] = tuple(ShardInfo(**shard) for shard in record["shards"])
    fields["source_state"] = tuple(record["source_state"])
    return Manifest(**fields)
