"""The exact laws of two kinds of draws, without replacement and avoiding a row's own contexts; and tests of fit.

V words, K negatives per example, R rows with C places for contexts, T points in time.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

from benchmarks.rivals.noise_ways import Law

NODES = 400


@dataclass(frozen=True)
class Fit:
    """The result of a chi-square test of counts against a law."""

    statistic: float
    freedom: int
    p: float


def fit(observed_V: npt.NDArray[np.integer], law_V: Law) -> Fit:
    """Pearson's chi-square test of counts (V,) against a law (V,), over cells with an expected count of 5 or more."""
    observed, expected = pooled(observed_V, law_V * observed_V.sum())
    result = stats.chisquare(observed, expected)
    return Fit(float(result.statistic), observed.size - 1, float(result.pvalue))


def pooled(
    observed_V: npt.NDArray[np.integer], expected_V: Law, least: float = 5.0
) -> tuple[npt.NDArray[np.integer], Law]:
    """Merges neighbouring words into cells that each expect ``least``; words left at the end join the last cell."""
    starts, gathered = [0], 0.0
    for word, expected in enumerate(expected_V.tolist()):
        if gathered >= least:
            starts.append(word)
            gathered = 0.0
        gathered += expected
    if gathered < least and len(starts) > 1:
        starts.pop()
    return np.add.reduceat(observed_V, starts), np.add.reduceat(expected_V, starts)


def inclusion(law_V: Law, num_negatives: int) -> Law:
    """The probability (V,) that each word is among K < V draws without replacement; the sum is K. Exact up to rounding.

    Give every word a clock that rings after an exponentially distributed time of rate p. The clocks ring in the order
    of draws without replacement (Efraimidis & Spirakis 2006; torch.multinomial works this way too). A word is drawn if
    at most K - 1 other clocks have rung when its own rings at time t. So the probability is the integral over t of
    p·exp(-p·t)·P(at most K - 1 others by t), computed by Gauss-Legendre quadrature.
    """
    end = 1.0
    while _rung_by(law_V, np.array([end]), num_negatives).sum() > 1e-16:  # until fewer than K rung is negligible
        end *= 1.5
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    t_T, weights_T = end * (nodes + 1) / 2, end / 2 * weights
    rung_KT = _rung_by(law_V, t_T, num_negatives)
    chances = []
    for word, p in enumerate(law_V.tolist()):
        if p * end > np.log(2):  # more likely rung than not: division would amplify rounding errors
            total_T = _rung_by(np.delete(law_V, word), t_T, num_negatives).sum(0)
        else:
            total_T, others_T = np.zeros(NODES), np.zeros(NODES)
            ratio_T = np.expm1(p * t_T)  # odds that this clock has rung
            for rung_T in rung_KT:  # exactly 0, 1 ... K-1 others: divides out this word's own factor
                others_T = rung_T * np.exp(p * t_T) - ratio_T * others_T
                total_T += others_T
        chances.append(float((weights_T * p * np.exp(-p * t_T) * total_T).sum()))
    return np.array(chances)


def _rung_by(law_V: Law, t_T: Law, num_negatives: int) -> npt.NDArray[np.float64]:
    """The probability that exactly 0, 1 ... K-1 clocks have rung by time t, shape (K, T)."""
    chances_KT = np.zeros((num_negatives, t_T.size))
    chances_KT[0] = 1.0
    for p in law_V.tolist():
        silent_T = np.exp(-p * t_T)
        rung_KT = chances_KT * (1 - silent_T)
        chances_KT *= silent_T
        chances_KT[1:] += rung_KT[:-1]
    return chances_KT


def avoiding(law_V: Law, contexts_RC: npt.NDArray[np.integer], num_negatives: int) -> Law:
    """The expected count of every word among the negatives of all rows, (V,), if negatives avoid their row's contexts.

    ``law_V`` has 0 for id 0, and ``contexts_RC`` has a row's n contexts, then 0. A row has n·K negatives. Each is drawn
    from the law restricted to the other words: p / (1 - the mass of the row's distinct contexts).
    """
    num_contexts_R = (contexts_RC > 0).sum(1)
    sorted_RC = np.sort(contexts_RC, axis=1)
    first_RC = np.diff(sorted_RC, axis=1, prepend=0) > 0  # each distinct context once; never 0
    mass_R = np.where(first_RC, law_V[sorted_RC], 0.0).sum(1)
    share_R = num_contexts_R * num_negatives / (1 - mass_R)
    barred_V = np.bincount(
        sorted_RC[first_RC], weights=np.repeat(share_R, first_RC.sum(1)), minlength=law_V.size
    )  # the draws that a word loses in rows in which it is a context
    return np.asarray(law_V * (share_R.sum() - barred_V))
