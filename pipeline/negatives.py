"""The noise law and its draws: negatives with replacement, from an alias table of integers. Pure numpy.

V words, S = 2^k >= V slots of the alias table.
"""

import decimal
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.randomness import U64, fold

MAX_REDRAWS = 16
_COIN_BITS = 32
_PRECISION = decimal.Context(prec=50)


@dataclass(frozen=True)
class Noise:
    """The noise law as an alias table (Walker 1977; Vose 1991) in which every probability is a multiple of 1/total.

    A slot is chosen uniformly; its 32-bit coin picks the slot's own word or its alias.
    """

    weights_V: npt.NDArray[np.int64]
    """Integer weights, proportional to count ** exponent; id 0 has 0, all others 1 or more; they sum to S · 2^32."""
    threshold_S: npt.NDArray[np.uint32]
    alias_S: npt.NDArray[np.int32]

    def words(self, bits: U64) -> npt.NDArray[np.int32]:
        """One word id for each 64 random bits: the high bits choose the slot, the low 32 are the coin."""
        num_slot_bits = (self.alias_S.size - 1).bit_length()
        slot = (bits >> np.uint64(64 - num_slot_bits)).astype(np.int32)
        coin = bits.astype(np.uint32)
        return np.where(coin < self.threshold_S[slot], slot, self.alias_S[slot])


def noise_weights(counts_V: npt.NDArray[np.int64], exponent: float) -> npt.NDArray[np.int64]:
    """count ** exponent (Mikolov et al. 2013, section 2.2: 0.75) as integers >= 1 that sum to S · 2^32; 0 for id 0.

    Powers are taken in decimal arithmetic of 50 digits: a processor's own pow differs in the last bit between
    machines, and the shards must not. Cost: some 20 us for each distinct count.
    """
    num_slots = _num_slots(counts_V.size)
    total = num_slots << _COIN_BITS
    distinct, inverse, multiplicity = np.unique(counts_V[1:], return_inverse=True, return_counts=True)
    with decimal.localcontext(_PRECISION):
        power = decimal.Decimal(repr(exponent))
        laws = [decimal.Decimal(int(count)) ** power for count in distinct]
        norm = sum((law * int(times) for law, times in zip(laws, multiplicity, strict=True)), decimal.Decimal(0))
        to_share = total - (counts_V.size - 1)  # every word has 1, so that none is impossible
        shares = np.array([1 + int(law * to_share / norm) for law in laws], dtype=np.int64)
    weights_V = np.concatenate([[0], shares[inverse]]).astype(np.int64)
    missing = total - int(weights_V.sum())  # fewer than V, lost by rounding down: the first ids take one more each
    weights_V[1 : 1 + missing] += 1
    return weights_V


def build_noise(weights_V: npt.NDArray[np.int64]) -> Noise:
    """Vose's alias method in integers, so exact. About a second for a million words."""
    num_slots = _num_slots(weights_V.size)
    capacity = 1 << _COIN_BITS
    remaining = weights_V.tolist() + [0] * (num_slots - weights_V.size)
    threshold_S = np.full(num_slots, capacity - 1, dtype=np.uint32)
    alias_S = np.arange(num_slots, dtype=np.int32)
    small = [slot for slot, weight in enumerate(remaining) if weight < capacity]
    large = [slot for slot, weight in enumerate(remaining) if weight > capacity]
    while small:
        slot, donor = small.pop(), large[-1]
        threshold_S[slot] = remaining[slot]
        alias_S[slot] = donor
        remaining[donor] -= capacity - remaining[slot]
        if remaining[donor] <= capacity:
            large.pop()
            if remaining[donor] < capacity:
                small.append(donor)
    return Noise(weights_V=weights_V, threshold_S=threshold_S, alias_S=alias_S)


def draw_negatives(
    noise: Noise, stream_N: U64, contexts_Nn: npt.NDArray[np.int32], negatives: int
) -> npt.NDArray[np.int32]:
    """K negatives for each of the n contexts of N examples (shape (N, n·K)): none is among its own row's contexts.

    A draw that hits one is drawn again (d2l 15.3.4), and after MAX_REDRAWS rounds taken from the exact conditional law
    over the other words, so it always ends. Draw number (slot, round) depends on ``stream_N`` (N,) alone.
    """
    slots = np.arange(contexts_Nn.shape[1] * negatives)
    drawn_NJ = noise.words(fold(stream_N[:, None], slots))
    row, slot = np.nonzero(_among(drawn_NJ, contexts_Nn))
    for redraw in range(1, MAX_REDRAWS):
        if row.size == 0:
            return drawn_NJ
        again = noise.words(fold(stream_N[row], _part(slot, redraw)))
        drawn_NJ[row, slot] = again
        hit = (again[:, None] == contexts_Nn[row]).any(axis=1)
        row, slot = row[hit], slot[hit]
    if row.size:
        bits = fold(stream_N[row], _part(slot, MAX_REDRAWS))
        drawn_NJ[row, slot] = _draw_allowed(noise.weights_V, bits, contexts_Nn[row])
    return drawn_NJ


def _part(slot: npt.NDArray[np.int64], redraw: int) -> npt.NDArray[np.int64]:
    return slot + (redraw << 16)  # a row has fewer than 2^15 places


def _among(drawn_NJ: npt.NDArray[np.int32], contexts_Nn: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    hit_NJ = np.zeros(drawn_NJ.shape, dtype=bool)
    for column in range(contexts_Nn.shape[1]):
        hit_NJ |= drawn_NJ == contexts_Nn[:, column : column + 1]
    return hit_NJ


def _draw_allowed(
    weights_V: npt.NDArray[np.int64], bits_R: U64, contexts_Rn: npt.NDArray[np.int32]
) -> npt.NDArray[np.int32]:
    """One word for each of R draws from the noise law without that row's contexts.

    Inverts the cumulative law with the contexts' stretches cut out: from the smallest id up, whatever lies at or
    beyond a forbidden stretch moves on by its length.
    """
    ends_V = np.cumsum(weights_V)
    contexts_Rn = np.sort(contexts_Rn, axis=1)
    repeated_Rn = np.zeros(contexts_Rn.shape, dtype=bool)
    repeated_Rn[:, 1:] = contexts_Rn[:, 1:] == contexts_Rn[:, :-1]
    forbidden_Rn = np.where(repeated_Rn, 0, weights_V[contexts_Rn])
    allowed_R = weights_V.sum() - forbidden_Rn.sum(axis=1)
    x_R = (bits_R % allowed_R.astype(np.uint64)).astype(np.int64)
    for column in range(contexts_Rn.shape[1]):
        start_R = ends_V[contexts_Rn[:, column]] - weights_V[contexts_Rn[:, column]]
        x_R += np.where(x_R >= start_R, forbidden_Rn[:, column], 0)
    return np.asarray(np.searchsorted(ends_V, x_R, side="right"), dtype=np.int32)


def _num_slots(num_words: int) -> int:
    return 1 << max(1, (num_words - 1).bit_length())
