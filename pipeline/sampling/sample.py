"""The examples of a slice of sequences: subsample, then draw windows, then draw negatives. The loops are compiled.

T tokens of a slice, T' of which subsampling keeps; Q sequences; N examples, which are the kept tokens with at least one
context; L = max_len; V words.
"""

import io
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.negatives import draw_negatives, redraw_contexts
from pipeline.sampling.noise import Noise, build_noise, noise_weights
from pipeline.sampling.subsample import keep_thresholds
from pipeline.shared.compiled import compiled, inner
from pipeline.shared.draws import draw, draw_below
from pipeline.shared.randomness import U64, Purpose, stream

_32 = np.uint64(32)


class Slice(NamedTuple):
    """Sequences end to end: ``ids`` (T,) int32; ``lengths`` int64, ``keys`` and ``repeats``, (Q,) each.

    ``repeats`` counts the equal sequences that came before, so that the copies of a line are sampled differently.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    keys: U64
    repeats: npt.NDArray[np.integer]

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Slice":
        """The chosen sequences (a flag for each) alone."""
        return Slice(
            ids=self.ids[np.repeat(chosen, self.lengths)],
            lengths=self.lengths[chosen],
            keys=self.keys[chosen],
            repeats=self.repeats[chosen],
        )


class Kept(NamedTuple):
    """The tokens that subsampling keeps, end to end: ids, positions before subsampling (T',); lengths (Q,)."""

    ids_T: npt.NDArray[np.int32]
    positions_T: npt.NDArray[np.int32]
    lengths_Q: npt.NDArray[np.int64]


class Examples(NamedTuple):
    """Rows ready to be written: ``center_N`` and ``contexts_negatives_NL`` int32, ``num_contexts_N`` int16 (>= 1)."""

    center_N: npt.NDArray[np.int32]
    contexts_negatives_NL: npt.NDArray[np.int32]
    num_contexts_N: npt.NDArray[np.int16]
    num_subsampled: int


@dataclass(frozen=True)
class Tables:
    """The integer tables of one vocabulary: made once on the driver, read by every Python worker."""

    keep_V: U64
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
            return cls(keep_V=file["keep"], noise=Noise.of(file["ends"], file["slots"]))


def sample(piece: Slice, tables: Tables, config: PipelineConfig, epoch: int) -> Examples:
    """The examples of one epoch. Each depends on its own sequence alone, so slices may be cut anywhere between."""

    def epoch_stream(purpose: Purpose) -> np.uint64:
        return np.uint64(stream(config.seed, purpose, epoch))

    # numba would compile once more for Arrow's memory, which is read-only, and for signed repeats.
    piece = piece._replace(ids=piece.ids.copy(), repeats=piece.repeats.astype(np.uint64))
    kept = Kept(np.empty_like(piece.ids), np.empty_like(piece.ids), np.empty_like(piece.lengths))
    num_examples = keep_tokens(piece, epoch_stream(Purpose.SUBSAMPLE), tables.keep_V, kept)
    examples = Examples(
        center_N=np.empty(num_examples, dtype=np.int32),
        contexts_negatives_NL=np.empty((num_examples, config.max_len), dtype=np.int32),
        num_contexts_N=np.empty(num_examples, dtype=np.int16),
        num_subsampled=piece.ids.size - int(kept.lengths_Q.sum()),
    )
    streams = epoch_stream(Purpose.WINDOW), epoch_stream(Purpose.NEGATIVE)
    fill_rows(piece, kept, *streams, config.window, config.negatives, tables.noise, examples)
    return examples


@compiled
def keep_tokens(piece: Slice, epoch_stream: np.uint64, keep_V: U64, kept: Kept) -> int:
    """Writes to ``kept`` what subsampling keeps of every sequence; returns how many examples that gives.

    A sequence with one token left has no example.
    """
    ids_T, lengths_Q, keys_Q, repeats_Q = piece
    kept_ids_T, kept_positions_T, kept_lengths_Q = kept
    token = num_kept = num_examples = 0
    for q in range(lengths_Q.size):
        stream = draw(draw(epoch_stream, keys_Q[q]), repeats_Q[q])
        start = num_kept
        for position in range(lengths_Q[q]):
            word = ids_T[token]
            kept_ids_T[num_kept] = word
            kept_positions_T[num_kept] = position
            num_kept += (draw(stream, np.uint64(position)) >> _32) < keep_V[word]
            token += 1
        kept_lengths_Q[q] = num_kept - start
        if kept_lengths_Q[q] > 1:
            num_examples += kept_lengths_Q[q]
    return num_examples


@compiled
def fill_rows(
    piece: Slice,
    kept: Kept,
    window_stream: np.uint64,
    negative_stream: np.uint64,
    window: int,
    negatives: int,
    noise: Noise,
    examples: Examples,
) -> None:
    """Writes the examples: center; contexts, then negatives, then 0; and how many contexts there are."""
    ids_T, positions_T, lengths_Q = kept
    start = example = 0
    for q in range(lengths_Q.size):
        stop = start + lengths_Q[q]
        if stop - start < 2:
            start = stop
            continue
        windows = draw(draw(window_stream, piece.keys[q]), piece.repeats[q])
        noise_stream = draw(draw(negative_stream, piece.keys[q]), piece.repeats[q])
        for token in range(start, stop):
            row_L, position = examples.contexts_negatives_NL[example], np.uint64(positions_T[token])
            radius: int = 1 + np.int64(draw_below(windows, position, np.uint64(window)))  # type: ignore[assignment]
            n = copy_contexts(ids_T, start, token, stop, radius, row_L)
            real = n * (1 + negatives)
            row_stream = draw(noise_stream, position)
            if draw_negatives(row_L[n:real], row_L[:n], row_stream, noise):
                redraw_contexts(row_L[n:real], row_L[:n], row_stream, noise)
            row_L[real:] = 0
            examples.center_N[example] = ids_T[token]
            examples.num_contexts_N[example] = n
            example += 1
        start = stop


@inner
def copy_contexts(
    ids_T: npt.NDArray[np.int32], start: int, token: int, stop: int, radius: int, row_L: npt.NDArray[np.int32]
) -> int:
    """Writes the contexts of a token, left to right, to the front of a row; returns how many there are.

    A window of radius r reaches r tokens to either side, but not beyond the ends of its sequence, ``start`` and
    ``stop`` (Mikolov et al. 2013; d2l 15.3.3).
    """
    n = 0
    for other in range(max(start, token - radius), min(stop, token + radius + 1)):
        if other != token:
            row_L[n] = ids_T[other]
            n += 1
    return n
