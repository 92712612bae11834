"""The manifest of a dataset: the one file that readers trust. This module needs neither Spark nor torch.

DATASET/manifest.json                                     written last, atomically
DATASET/<generation>/vocab.parquet                        word_id, word, count
DATASET/<generation>/<split>/epoch=E/shard-NNNNN.parquet
"""

import dataclasses
import hashlib
import json
from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from pipeline.dataset.vocab import Vocab, VocabError
from pipeline.pipeline_config import MAX_EPOCHS, PipelineConfig
from pipeline.shared.errors import InputError, one_line, shown
from pipeline.shared.records import Count, RecordError, Sha256, checked, read, record
from pipeline.shared.storage import Location

FORMAT_VERSION = 2
FILE_NAME = "manifest.json"
VOCAB = "vocab.parquet"
PREPARE_AGAIN = "run prepare again with --overwrite"

ROW_GROUP_BYTES = 64
"""Fewer bytes than any row group takes, so that a shard's size bounds the number of its row groups."""

Name = Annotated[str, Field(pattern=r"^[\w=-][\w.=-]*$", max_length=255)]
"""The name of a file or a folder. It is no way out of its folder."""
Names = Annotated[str, Field(pattern=r"^[\w=-][\w.=-]*(/[\w=-][\w.=-]*)*$", max_length=4096)]
"""A path below a folder."""
Split = Literal["train", "heldout"]


class ManifestError(InputError):
    """A dataset is missing, damaged or of another format."""

    @classmethod
    def unreadable(cls, where: Location, error: Exception) -> "ManifestError":
        """The error of a file that cannot be read or understood."""
        remedy = PREPARE_AGAIN
        if where.local is None and isinstance(error, OSError):
            remedy = "check the address, your credentials for it, and that its server can be reached"
        return cls(f"{where}: cannot be read ({one_line(error)}); {remedy}")


@record
class ShardInfo:
    """One Parquet file of examples; ``path`` is relative to the dataset."""

    path: Names
    split: Split
    epoch: Annotated[int, Field(ge=0, lt=MAX_EPOCHS)]
    rows: Annotated[Count, Field(ge=1)]
    bytes: Annotated[Count, Field(ge=1)]
    sha256: Sha256


@record
class CorpusCounts:
    """What prepare read."""

    lines: Count
    """Lines of text, or rows of a column."""
    nulls: Count
    """Rows without a value, and null or empty elements of arrays; skipped."""
    invalid_utf8_lines: Count
    """Lines or rows with bytes that are not UTF-8, or with zero bytes."""
    sequences: Count
    """Sequences of two tokens or more, after cutting."""
    too_short: Count
    """Sequences with fewer than two tokens, including empty lines; left out."""
    cut: Count = field(default=0, kw_only=True)
    """Lines or rows of more than max_sentence_length tokens. Datasets of earlier versions do not say."""
    tokens: Count
    """All tokens, including those of too short sequences."""
    long_tokens: Count
    """Tokens too long to be words; they became <unk>."""


@record
class Counts(CorpusCounts):
    """What prepare read and made. The last three are sums over all sampled epochs, including heldout."""

    unknown: Count
    """Tokens that are <unk>."""
    subsampled: Count
    """Known tokens that subsampling dropped."""
    examples: Count
    pairs: Count
    """(center, context) pairs."""


@record
class Manifest:
    """Everything that a reader needs to know about a dataset."""

    generation: Name
    config: PipelineConfig
    source_state: tuple[dict[str, str | int], ...]
    """Path, size and time of each source. A changed corpus has another state."""
    counts: Counts
    vocab_size: Annotated[int, Field(ge=2, lt=2**31)]
    """V, ids from 0 (<unk>) to V - 1."""
    vocab_digest: Sha256
    max_len: int
    """L, the width of contexts_negatives."""
    row_group_rows: Annotated[int, Field(ge=1, lt=2**31)]
    """Rows of every row group but a shard's last."""
    versions: dict[str, str]
    shards: tuple[ShardInfo, ...]
    format_version: int = FORMAT_VERSION

    @property
    def dataset_id(self) -> str:
        """A digest of format, settings, vocabulary and shards: equal for equal data, in any folder."""
        identity = {
            "format_version": self.format_version,
            "config": self.config.identity,
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
            found = read(path)
        except (FileNotFoundError, NotADirectoryError):
            raise ManifestError(f"{dataset}: no {FILE_NAME}, so no dataset; write one with jobs/prepare.py") from None
        except (OSError, RecordError) as error:
            raise ManifestError.unreadable(path, error) from None
        version = found.get("format_version") if isinstance(found, dict) else None
        if version != FORMAT_VERSION:
            newer = isinstance(version, int) and version > FORMAT_VERSION
            remedy = "use the shardvec that wrote it, or a newer one" if newer else PREPARE_AGAIN
            raise ManifestError(f"{path}: found format version {shown(version)}, expected {FORMAT_VERSION}; {remedy}")
        try:
            dataset_id = found.pop("dataset_id", None)
            manifest = checked(found, Manifest)
            manifest._check_consistent()
        except RecordError as error:
            raise ManifestError(f"{path}: not a valid manifest ({error}); {PREPARE_AGAIN}") from None
        if manifest.dataset_id != dataset_id:
            raise ManifestError(f"{path}: dataset_id does not fit its contents; {PREPARE_AGAIN}")
        return manifest

    def read_vocab(self, dataset: str | Path | Location) -> Vocab:
        """The dataset's vocabulary. Raises ManifestError unless its size and digest are the manifest's."""
        path = Location.of(dataset) / self.vocab_path
        try:
            vocab = Vocab.read(path)
        except (OSError, VocabError) as error:
            raise ManifestError.unreadable(path, error) from None
        if len(vocab) != self.vocab_size or vocab.digest() != self.vocab_digest:
            raise ManifestError(f"{path}: its words and counts are not those that the manifest lists; {PREPARE_AGAIN}")
        return vocab

    def _check_consistent(self) -> None:
        """Raises RecordError unless the fields fit together."""
        rows = sum(shard.rows for shard in self.shards)
        for name, found, expected in (
            ("max_len", self.max_len, self.config.max_len),
            ("counts.examples", self.counts.examples, rows),
            ("shards", len({shard.path for shard in self.shards}), len(self.shards)),
        ):
            if found != expected:
                raise RecordError(f"{name}: found {found:,}, expected {expected:,}, as the other fields say")
        if not any(shard.split == "train" for shard in self.shards):
            raise RecordError("shards: found none to train on, expected one or more")
        for shard in self.shards:
            if not shard.path.startswith(f"{self.generation}/"):
                raise RecordError(f"shards: found {shard.path}, expected a path in {self.generation}")
            if shard.epoch >= (self.sampled_epochs if shard.split == "train" else 1):
                raise RecordError(f"shards: found epoch {shard.epoch} of {shard.split}, which is not among the epochs")
            if -(-shard.rows // self.row_group_rows) > shard.bytes // ROW_GROUP_BYTES:
                raise RecordError(f"shards: found {shard.rows:,} rows in {shard.bytes:,} bytes, expected fewer")

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
            (self.counts.too_short, "lines or pieces of lines had fewer than two tokens, so they give no example"),
            (self.counts.cut, f"lines were cut into pieces of {self.config.max_sentence_length:,} tokens"),
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
