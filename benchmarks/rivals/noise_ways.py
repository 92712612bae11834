"""Ways to draw words from the noise law, count ** 0.75. Each is set up for a vocabulary and then draws words.

V words have the ids 1 to V, as in the whole project: id 0 is ``<unk>``, which is never drawn. K negatives per example.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pipeline.sampling.negatives import draw_negatives
from pipeline.sampling.noise import build_noise, noise_weights
from pipeline.shared.randomness import Purpose, stream

EXPONENT = 0.75
CACHED = 10_000
"""The number of words that the book draws at a time."""
DOMAIN = 2**31 - 1
"""The last value of gensim's table."""

Counts = npt.NDArray[np.int64]
Law = npt.NDArray[np.float64]
Words = npt.NDArray[np.integer]
Draw = Callable[[int], Words]
"""Returns the requested number of words. Each call continues the random stream."""


@dataclass(frozen=True)
class Way:
    """A name, and a function that makes a Draw from the words' counts (V,) and a seed."""

    name: str
    set_up: Callable[[Counts, int], Draw]
    reads_all: bool = False
    """Whether every example reads all V words. If so, the benchmark draws fewer words and scales the time up."""


def zipf_counts(num_words: int, top: int = 1_000_000) -> Counts:
    """Counts (V,) that follow Zipf's law: ``top`` / rank, rounded down, at least 1."""
    return np.maximum(1, top // np.arange(1, num_words + 1, dtype=np.int64))


def noise_law(counts_V: Counts, exponent: float = EXPONENT) -> Law:
    """The law itself (V,): count ** exponent, divided by the sum over all words."""
    powers_V = counts_V.astype(np.float64) ** exponent
    return np.asarray(powers_V / powers_V.sum())


def without_replacement(counts_V: Counts, seed: int, num_negatives: int = 5) -> Draw:
    """Draws K different words per example with one call of torch.multinomial. Accepts only multiples of K."""
    p_V = torch.from_numpy(noise_law(counts_V)).float()
    generator = torch.Generator().manual_seed(seed)

    def draw(num: int) -> Words:
        rows = [
            torch.multinomial(p_V, num_negatives, replacement=False, generator=generator)
            for _ in range(num // num_negatives)
        ]
        return 1 + torch.cat(rows).numpy()

    return draw


def multinomial(counts_V: Counts, seed: int, dtype: torch.dtype = torch.float32) -> Draw:
    """Draws with one large call of torch.multinomial, with replacement. V is at most 2^24."""
    p_V = torch.from_numpy(noise_law(counts_V)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    return lambda num: 1 + torch.multinomial(p_V, num, replacement=True, generator=generator).numpy()


def choices(counts_V: Counts, seed: int) -> Draw:
    """Draws 10,000 words at a time with random.choices and hands them out singly (d2l 15.3.4, RandomGenerator)."""
    population, weights = list(range(1, counts_V.size + 1)), [int(count) ** EXPONENT for count in counts_V]
    chance = random.Random(seed)
    candidates: list[int] = []
    used = 0

    def draw_one() -> int:
        nonlocal candidates, used
        if used == len(candidates):
            candidates, used = chance.choices(population, weights, k=CACHED), 0
        used += 1
        return candidates[used - 1]

    return lambda num: np.array([draw_one() for _ in range(num)], dtype=np.int64)


def cumulative_table(counts_V: Counts) -> npt.NDArray[np.uint32]:
    """The running sum of the law as integers up to 2^31 - 1, as in gensim's Word2Vec.make_cum_table."""
    running_V = np.cumsum(counts_V.astype(np.float64) ** EXPONENT)
    return np.asarray(np.round(running_V / running_V[-1] * DOMAIN).astype(np.uint32))


def cumulative(counts_V: Counts, seed: int) -> Draw:
    """Draws a random integer per word and finds it in gensim's table by binary search (gensim's ``bisect_left``)."""
    table_V, chance = cumulative_table(counts_V), np.random.default_rng(seed)
    return lambda num: 1 + np.searchsorted(table_V, chance.integers(0, DOMAIN, size=num, dtype=np.uint32))


def alias(counts_V: Counts, seed: int) -> Draw:
    """Draws as the pipeline does: integer weights, an alias table, and 64 bits per word as a function of its place."""
    noise = build_noise(noise_weights(np.concatenate([[0], counts_V]), EXPONENT))
    no_context = np.empty(0, dtype=np.int32)
    calls = 0

    def draw(num: int) -> Words:
        nonlocal calls
        words = np.empty(num, dtype=np.int32)
        own_stream = np.uint64(stream(seed, Purpose.NEGATIVE, calls))
        calls += 1
        draw_negatives(words, no_context, own_stream, noise)
        return words

    return draw


def _multinomial_double(counts_V: Counts, seed: int) -> Draw:
    return multinomial(counts_V, seed, torch.float64)


WAYS = [
    Way("torch.multinomial, without replacement", without_replacement, reads_all=True),
    Way("torch.multinomial, with, float32", multinomial),
    Way("torch.multinomial, with, float64", _multinomial_double),
    Way("random.choices", choices),
    Way("cumulative table", cumulative),
    Way("alias table", alias),
]
