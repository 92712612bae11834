"""One sampling of a slice of sequences: subsample -> window -> negatives. Pure numpy.

N kept tokens of the slice with at least one context (the examples), L = max_len.
"""

import io
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.config import PipelineConfig
from pipeline.examples import contexts
from pipeline.negatives import Noise, build_noise, draw_negatives, noise_weights
from pipeline.randomness import U64, Purpose, below, fold, stream
from pipeline.subsample import keep_thresholds


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
        noise = self.noise
        np.savez(buffer, keep=self.keep_V, weights=noise.weights_V, threshold=noise.threshold_S, alias=noise.alias_S)
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Tables":
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            noise = Noise(weights_V=file["weights"], threshold_S=file["threshold"], alias_S=file["alias"])
            return cls(keep_V=file["keep"], noise=noise)


def sample(piece: Slice, tables: Tables, config: PipelineConfig, epoch: int) -> Examples:
    """The examples of one epoch. Each depends on its own sequence alone, so slices may be cut anywhere between."""

    def draws(purpose: Purpose) -> U64:
        """A stream for every sequence."""
        return fold(fold(stream(config.seed, purpose, epoch), piece.keys), piece.repeats)

    sequence = np.repeat(np.arange(piece.lengths.size), piece.lengths)
    position = np.arange(piece.ids.size) - np.repeat(np.cumsum(piece.lengths) - piece.lengths, piece.lengths)

    keep_bits = fold(draws(Purpose.SUBSAMPLE)[sequence], position) >> np.uint64(32)
    kept = keep_bits < tables.keep_V[piece.ids]
    sequence, position, ids = sequence[kept], position[kept], piece.ids[kept]
    lengths = np.bincount(sequence, minlength=piece.lengths.size)

    radius = 1 + below(fold(draws(Purpose.WINDOW)[sequence], position), config.window)
    contexts_NC, num_contexts_N = contexts(ids, lengths, radius, config.window)

    has_context = num_contexts_N > 0
    streams_N = fold(draws(Purpose.NEGATIVE)[sequence[has_context]], position[has_context])
    contexts_NC, num_contexts_N = contexts_NC[has_context], num_contexts_N[has_context]
    return Examples(
        center_N=ids[has_context],
        contexts_negatives_NL=_rows(contexts_NC, num_contexts_N, streams_N, tables.noise, config),
        num_contexts_N=num_contexts_N.astype(np.int16),
        num_subsampled=int(kept.size - ids.size),
    )


def _rows(
    contexts_NC: npt.NDArray[np.int32],
    num_contexts_N: npt.NDArray[np.int64],
    streams_N: U64,
    noise: Noise,
    config: PipelineConfig,
) -> npt.NDArray[np.int32]:
    """Contexts, then negatives, then 0. Rows with equally many contexts are drawn together: no place is wasted."""
    rows_NL = np.zeros((num_contexts_N.size, config.max_len), dtype=np.int32)
    for n in range(1, 2 * config.window + 1):
        index = np.flatnonzero(num_contexts_N == n)
        contexts_Nn = contexts_NC[index, :n]
        negatives = draw_negatives(noise, streams_N[index], contexts_Nn, config.negatives)
        rows_NL[index, : n * (1 + config.negatives)] = np.hstack([contexts_Nn, negatives])
    return rows_NL
