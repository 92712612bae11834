"""The noise law: count ** exponent in integers, and the alias table from which words are drawn.

V words, S = 2^k >= V slots of the alias table.
"""

import decimal
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.shared.compiled import compiled
from pipeline.shared.randomness import U64

COIN_BITS = 32
_PRECISION = decimal.Context(prec=50)


class Noise(NamedTuple):
    """The noise law as an alias table (Walker 1977; Vose 1991) in which every probability is a multiple of 1/total.

    A slot is chosen uniformly; its 32-bit coin picks the slot's own word or its alias.
    """

    ends_V: npt.NDArray[np.int64]
    """Running sum of the weights; the last is their total, S · 2^32."""
    slots_S: U64
    """Threshold of the coin in the upper 32 bits, alias in the lower: a draw reads memory in one place only."""
    slot_shift: np.uint64
    """64 - log2(S): 64 random bits, shifted right by it, choose a slot."""

    @classmethod
    def of(cls, ends_V: npt.NDArray[np.int64], slots_S: U64) -> "Noise":
        return cls(ends_V, slots_S, np.uint64(65 - slots_S.size.bit_length()))


def noise_weights(counts_V: npt.NDArray[np.int64], exponent: float) -> npt.NDArray[np.int64]:
    """count ** exponent (Mikolov et al. 2013, section 2.2: 0.75) as integers >= 1 that sum to S · 2^32; 0 for id 0.

    Powers are computed in decimal arithmetic of 50 digits, because a processor's pow differs in the last bit between
    machines, and the shards must not. Cost: 0.1 ms for each distinct count, 2 s for a million words of 10^9 tokens.
    """
    num_slots = _num_slots(counts_V.size)
    total = num_slots << COIN_BITS
    distinct, inverse, multiplicity = np.unique(counts_V[1:], return_inverse=True, return_counts=True)
    with decimal.localcontext(_PRECISION):
        power = decimal.Decimal(repr(exponent))
        laws = [decimal.Decimal(int(count)) ** power for count in distinct]
        norm = sum((law * int(times) for law, times in zip(laws, multiplicity, strict=True)), decimal.Decimal(0))
        to_share = total - (counts_V.size - 1)  # every word has 1 already, so that none is impossible
        shares = np.array([1 + int(law * to_share / norm) for law in laws], dtype=np.int64)
    weights_V = np.concatenate([[0], shares[inverse]]).astype(np.int64)
    missing = total - int(weights_V.sum())  # fewer than V, lost by rounding down: the first ids get one more each
    weights_V[1 : 1 + missing] += 1
    return weights_V


def build_noise(weights_V: npt.NDArray[np.int64]) -> Noise:
    """The law with these weights, which sum to S · 2^32. Takes some 20 ms for a million words."""
    return Noise.of(np.cumsum(weights_V), _alias_table(weights_V, _num_slots(weights_V.size)))


def _alias_table(weights_V: npt.NDArray[np.int64], num_slots: int) -> U64:
    remaining_S = np.zeros(num_slots, dtype=np.int64)
    remaining_S[: weights_V.size] = weights_V
    threshold_S = np.full(num_slots, (1 << COIN_BITS) - 1, dtype=np.int64)
    alias_S = np.arange(num_slots)
    stacks_2S = np.empty((2, num_slots), dtype=np.int32)
    _fill_slots(remaining_S, threshold_S, alias_S, *stacks_2S)
    threshold_S <<= COIN_BITS
    threshold_S |= alias_S
    return threshold_S.view(np.uint64)


@compiled
def _fill_slots(
    remaining_S: npt.NDArray[np.int64],
    threshold_S: npt.NDArray[np.int64],
    alias_S: npt.NDArray[np.int64],
    small: npt.NDArray[np.int32],
    large: npt.NDArray[np.int32],
) -> None:
    """Vose's alias method, exact because it is in integers: slots with more than their share fill those with less.

    ``small`` and ``large`` are stacks of slots.
    """
    capacity = np.int64(1) << COIN_BITS
    num_small = num_large = 0
    for slot in range(remaining_S.size):
        if remaining_S[slot] < capacity:
            small[num_small] = slot
            num_small += 1
        elif remaining_S[slot] > capacity:
            large[num_large] = slot
            num_large += 1
    while num_small:
        num_small -= 1
        slot, donor = small[num_small], large[num_large - 1]
        threshold_S[slot] = remaining_S[slot]
        alias_S[slot] = donor
        remaining_S[donor] -= capacity - remaining_S[slot]
        if remaining_S[donor] <= capacity:
            num_large -= 1
            if remaining_S[donor] < capacity:
                small[num_small] = donor
                num_small += 1


def _num_slots(num_words: int) -> int:
    return 1 << max(1, (num_words - 1).bit_length())
