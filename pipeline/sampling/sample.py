"""The examples of a slice of sequences: subsample, then draw windows, then draw negatives. The loops are compiled.

T tokens of a slice, T' of which subsampling keeps; Q sequences; N examples, which are the kept tokens with at least one
context; L = max_len; V words.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.pipeline_config import MAX_SEQUENCE_TOKENS, PipelineConfig
from pipeline.sampling.negatives import draw_negatives, redraw_contexts
from pipeline.sampling.noise import Noise, build_noise, noise_weights
from pipeline.sampling.subsample import keep_thresholds
from pipeline.sampling.window import choose_contexts, copy_contexts, draw_radius
from pipeline.shared.compiled import compiled, inner
from pipeline.shared.draws import draw
from pipeline.shared.randomness import U64, Purpose, stream

_32 = np.uint64(32)


class Slice(NamedTuple):
    """Sequences end to end: ``ids`` (T,) int32; ``lengths`` int64, ``keys`` and ``repeats``, (Q,) each.

    ``repeats`` counts the equal sequences before each sequence, so that copies of a line are sampled differently.
    """

    ids: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]
    keys: U64
    repeats: npt.NDArray[np.integer]

    def where(self, chosen: npt.NDArray[np.bool_]) -> "Slice":
        """The sequences whose flag is set. ``chosen`` is (Q,)."""
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
    """The integer tables of one vocabulary. The driver makes them once; every Python worker reads them."""

    ARRAYS: ClassVar = ("keep", "ends", "slots")

    keep_V: U64
    noise: Noise

    @classmethod
    def build(cls, counts_V: npt.NDArray[np.int64], config: PipelineConfig) -> "Tables":
        return cls(
            keep_V=keep_thresholds(counts_V, config.sample, config.subsample_rule),
            noise=build_noise(noise_weights(counts_V, config.ns_exponent)),
        )

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """By the names in ARRAYS, from which ``of_arrays`` makes the same tables."""
        return dict(zip(self.ARRAYS, (self.keep_V, self.noise.ends_V, self.noise.slots_S), strict=True))

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "Tables":
        keep_V, ends_V, slots_S = (arrays[name] for name in cls.ARRAYS)
        return cls(keep_V, Noise.of(ends_V, slots_S))


class EpochParameters(NamedTuple):
    """Streams, settings and tables of one epoch for the compiled loops, which cannot take a PipelineConfig."""

    subsample_stream: np.uint64
    window_stream: np.uint64
    negative_stream: np.uint64
    window: int
    """The largest radius."""
    is_dynamic: bool
    """Whether radii are drawn. Otherwise all are ``window``."""
    has_left: bool
    """Whether tokens before the center are contexts."""
    has_right: bool
    """Whether tokens after the center are contexts."""
    max_contexts: int
    negatives: int
    keep_V: U64
    noise: Noise


def sample(piece: Slice, tables: Tables, config: PipelineConfig, epoch: int) -> Examples:
    """The examples of one epoch. Each depends on its own sequence alone, so a slice may end after any sequence."""

    def epoch_stream(purpose: Purpose) -> np.uint64:
        return np.uint64(stream(config.seed, purpose, epoch))

    parameters = EpochParameters(
        subsample_stream=epoch_stream(Purpose.SUBSAMPLE),
        window_stream=epoch_stream(Purpose.WINDOW),
        negative_stream=epoch_stream(Purpose.NEGATIVE),
        window=MAX_SEQUENCE_TOKENS if isinstance(config.window, str) else config.window,
        is_dynamic=config.window_kind == "dynamic",
        has_left=config.window_side != "right",
        has_right=config.window_side != "left",
        max_contexts=config.max_contexts,
        negatives=config.negatives,
        keep_V=tables.keep_V,
        noise=tables.noise,
    )
    # numba would compile once more for Arrow's memory, which is read-only, and for signed repeats.
    piece = piece._replace(ids=piece.ids.copy(), repeats=piece.repeats.astype(np.uint64))
    kept = Kept(np.empty_like(piece.ids), np.empty_like(piece.ids), np.empty_like(piece.lengths))
    num_examples = keep_tokens(piece, parameters, kept)
    examples = Examples(
        center_N=np.empty(num_examples, dtype=np.int32),
        contexts_negatives_NL=np.empty((num_examples, config.max_len), dtype=np.int32),
        num_contexts_N=np.empty(num_examples, dtype=np.int16),
        num_subsampled=piece.ids.size - int(kept.lengths_Q.sum()),
    )
    fill_rows(piece, kept, parameters, examples)
    return examples


@compiled
def keep_tokens(piece: Slice, parameters: EpochParameters, kept: Kept) -> int:
    """Writes the tokens that subsampling keeps to ``kept``. Returns the number of examples.

    A sequence with one token left has no example. With contexts on one side alone, one of its ends has none either.
    """
    ids_T, lengths_Q = piece.ids, piece.lengths
    kept_ids_T, kept_positions_T, kept_lengths_Q = kept
    token = num_kept = num_examples = 0
    for q in range(lengths_Q.size):
        stream = sequence_stream(parameters.subsample_stream, piece, q)
        start = num_kept
        for position in range(lengths_Q[q]):
            word = ids_T[token]
            kept_ids_T[num_kept] = word
            kept_positions_T[num_kept] = position
            num_kept += (draw(stream, np.uint64(position)) >> _32) < parameters.keep_V[word]
            token += 1
        kept_lengths_Q[q] = num_kept - start
        if kept_lengths_Q[q] > 1:
            num_examples += kept_lengths_Q[q] - 2 + parameters.has_left + parameters.has_right
    return num_examples


@compiled
def fill_rows(piece: Slice, kept: Kept, parameters: EpochParameters, examples: Examples) -> None:
    """Writes the examples: center; contexts, then negatives, then 0; and the number of contexts."""
    ids_T, positions_T, lengths_Q = kept
    noise = parameters.noise  # read in the loop, a tuple within a tuple costs an eighth of the time
    start = example = 0
    for q in range(lengths_Q.size):
        stop = start + lengths_Q[q]
        if stop - start < 2:
            start = stop
            continue
        window_stream = sequence_stream(parameters.window_stream, piece, q)
        negative_stream = sequence_stream(parameters.negative_stream, piece, q)
        for token in range(start, stop):
            position, radius = np.uint64(positions_T[token]), parameters.window
            if parameters.is_dynamic:
                radius = draw_radius(window_stream, position, parameters.window)
            begin = max(start, token - radius) if parameters.has_left else token
            end = min(stop, token + 1 + radius) if parameters.has_right else token + 1
            n = min(end - begin - 1, parameters.max_contexts)
            if n == 0:
                continue
            row_L = examples.contexts_negatives_NL[example]
            if n < end - begin - 1:
                choose_contexts(ids_T, begin, token, end, draw(window_stream, position), row_L[:n])
            else:
                copy_contexts(ids_T, begin, token, end, row_L)
            real = n * (1 + parameters.negatives)
            row_stream = draw(negative_stream, position)
            if draw_negatives(row_L[n:real], row_L[:n], row_stream, noise):
                redraw_contexts(row_L[n:real], row_L[:n], row_stream, noise)
            row_L[real:] = 0
            examples.center_N[example] = ids_T[token]
            examples.num_contexts_N[example] = n
            example += 1
        start = stop


@inner
def sequence_stream(epoch_stream: np.uint64, piece: Slice, q: int) -> np.uint64:
    """The stream of sequence ``q``: a function of its words and of how many equal sequences came before."""
    return draw(draw(epoch_stream, piece.keys[q]), piece.repeats[q])
