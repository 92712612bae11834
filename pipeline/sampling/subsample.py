"""Subsampling of frequent words: the probability with which each token is kept, as exact integers."""

from fractions import Fraction
from math import isqrt

import numpy as np
import numpy.typing as npt

CERTAIN = 1 << 32
"""The threshold of a word that is always kept: more than any 32 random bits."""


def keep_thresholds(counts_V: npt.NDArray[np.int64], sample: float, rule: str) -> npt.NDArray[np.uint64]:
    """floor(2^32 · keep probability) of every word (shape (V,), uint64): a token stays when 32 random bits are below.

    With f = count / sum of counts and t = ``sample``: ``paper`` is min(1, sqrt(t/f)) (Mikolov et al. 2013, Eq. 5; d2l),
    ``word2vec`` is min(1, sqrt(t/f) + t/f) (word2vec.c, gensim). ``sample`` 0 keeps everything. Id 0, <unk>, gets 0 and
    is not part of the sum. The arithmetic is on integers, so every machine gets the same numbers.
    """
    known_V = counts_V.copy()
    known_V[0] = 0
    total = int(known_V.sum())
    t = Fraction(repr(sample))
    distinct, inverse = np.unique(known_V, return_inverse=True)
    thresholds = [_threshold(int(count), total, t, rule) for count in distinct]
    return np.array(thresholds, dtype=np.uint64)[inverse]


def _threshold(count: int, total: int, t: Fraction, rule: str) -> int:
    if count == 0:
        return 0
    if t == 0:
        return CERTAIN
    ratio = t * total / count  # t / f
    threshold = isqrt((ratio.numerator << 64) // ratio.denominator)
    if rule == "word2vec":
        threshold += (ratio.numerator << 32) // ratio.denominator
    return min(CERTAIN, threshold)
