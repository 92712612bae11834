"""One sampling of a slice of sequences: subsample -> window -> negatives.

N kept tokens of the slice with at least one context (the examples), L = max_len.
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.examples import fill_rows, keep_tokens
from pipeline.sampling.noise import Noise, build_noise, noise_weights
from pipeline.sampling.subsample import keep_thresholds
from pipeline.shared.randomness import U64, Purpose, stream


@dataclass(frozen=True)
class Slice:
    """Sequences end to end: ``ids`` int32, ``lengths`` int64, and for each its ``keys`` and ``repeats``.

    ``repeats`` counts the equal sequences that came before, so that the copies of a line are sampled differently.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    keys: U64
    repeats: npt.NDArray[np.int64]

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Slice":
        """The chosen sequences (a flag for each) alone."""
        return Slice(
            ids=self.ids[np.repeat(chosen, self.lengths)],
            lengths=self.lengths[chosen],
            keys=self.keys[chosen],
            repeats=self.repeats[chosen],
        )


@dataclass(frozen=True)
class Examples:
    """Rows ready to be written: ``center_N`` and ``contexts_negatives_NL`` int32, ``num_contexts_N`` int16 (>= 1)."""

    center_N: npt.NDArray[np.int32]
    contexts_negatives_NL: npt.NDArray[np.int32]
    num_contexts_N: npt.NDArray[np.int16]
    num_subsampled: int


@dataclass(frozen=True)
class Tables:
    """The integer tables of one vocabulary: made once on the driver, read by every Python worker."""

    keep_V: npt.NDArray[np.uint64]
    noise: Noise

    @classmethod
    def build(cls, counts_V: npt.NDArray[np.int64], config: PipelineConfig) -> "Tables":
        return cls(
            keep_V=keep_thresholds(counts_V, config.sample, config.subsample_rule),
            noise=build_noise(noise_weights(counts_V, config.ns_exponent)),
        )

    def to_bytes(self) -> bytes:
        buffer = io.BytesIO()
        np.savez(buffer, keep=self.keep_V, ends=self.noise.ends_V, slots=self.noise.slots_S)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Tables":
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return cls(keep_V=file["keep"], noise=Noise(ends_V=file["ends"], slots_S=file["slots"]))


def sample(piece: Slice, tables: Tables, config: PipelineConfig, epoch: int) -> Examples:
    """The examples of one epoch. Each depends on its own sequence alone, so slices may be cut anywhere between."""

    def epoch_stream(purpose: Purpose) -> np.uint64:
        return np.uint64(stream(config.seed, purpose, epoch))

    # A copy, since numba would compile anew for Arrow's memory, which is read-only.
    ids, repeats = piece.ids.copy(), piece.repeats.astype(np.uint64)
    kept_ids, kept_positions = np.empty_like(ids), np.empty_like(ids)
    kept_lengths = np.empty_like(piece.lengths)
    num_examples = keep_tokens(
        ids,
        piece.lengths,
        piece.keys,
        repeats,
        epoch_stream(Purpose.SUBSAMPLE),
        tables.keep_V,
        kept_ids,
        kept_positions,
        kept_lengths,
    )
    examples = Examples(
        center_N=np.empty(num_examples, dtype=np.int32),
        contexts_negatives_NL=np.empty((num_examples, config.max_len), dtype=np.int32),
        num_contexts_N=np.empty(num_examples, dtype=np.int16),
        num_subsampled=ids.size - int(kept_lengths.sum()),
    )
    fill_rows(
        kept_ids,
        kept_positions,
        kept_lengths,
        piece.keys,
        repeats,
        epoch_stream(Purpose.WINDOW),
        epoch_stream(Purpose.NEGATIVE),
        config.window,
        config.negatives,
        tables.noise.slots_S,
        tables.noise.slot_shift,
        tables.noise.ends_V,
        examples.center_N,
        examples.contexts_negatives_NL,
        examples.num_contexts_N,
    )
    return examples
