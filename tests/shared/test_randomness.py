"""Laws of pipeline.shared.randomness."""

import numba
import numpy as np
import oracles
import pytest
from scipy import stats

from pipeline.shared.draws import draw, draw_below, sequence_keys
from pipeline.shared.randomness import Purpose, fold, permutation, stream


def test_fold_is_splitmix64() -> None:
    # The first outputs of the published generator (Vigna's splitmix64.c) seeded with 1234567.
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert fold(1234567, np.arange(4)).tolist() == published


def test_fold_and_stream_equal_the_oracle() -> None:
    for state, part in [(0, 0), (2**64 - 1, 7), (1234, 2**40), (99, -1)]:
        expected = oracles.fold(state, part & oracles.MASK)
        assert int(fold(state, part)) == expected
        assert int(draw(np.uint64(state), np.uint64(part & oracles.MASK))) == expected
    assert stream(-3, Purpose.WINDOW, 4) == oracles.fold_all(-3 & oracles.MASK, 2, 4)


def test_seed_and_epoch_do_not_mix() -> None:
    """The trap of ``seed + epoch``: (1, 0) and (0, 1) are different streams."""
    streams = {stream(seed, Purpose.SUBSAMPLE, epoch) for seed in range(20) for epoch in range(20)}
    assert len(streams) == 400


@numba.njit
def draws_below(streams: np.ndarray, part: np.uint64, bound: np.uint64) -> np.ndarray:
    return np.array([np.int64(draw_below(one, part, bound)) for one in streams])


@pytest.mark.parametrize("bound", [1, 2, 5, 1000])
def test_below_is_uniform(bound: int) -> None:
    streams = fold(stream(0, Purpose.WINDOW), np.arange(50_000))
    draws = draws_below(streams, np.uint64(7), np.uint64(bound))
    counts = np.bincount(draws, minlength=bound)
    assert counts.size == bound
    assert bound == 1 or stats.chisquare(counts).pvalue > 1e-4


def test_neighbouring_streams_are_independent() -> None:
    """Draws of adjacent positions and of adjacent parts are uncorrelated, and all bits are fair."""
    draws = fold(fold(stream(0, Purpose.NEGATIVE), np.arange(400))[:, None], np.arange(400))
    uniform = draws.astype(np.float64) / 2.0**64
    for left, right in [(uniform[1:], uniform[:-1]), (uniform[:, 1:], uniform[:, :-1])]:
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.01
    ones = [int((draws >> np.uint64(bit) & np.uint64(1)).sum()) for bit in range(64)]
    assert all(abs(n - 80_000) < 5 * 200 for n in ones)


def test_a_permutation_is_one_and_every_order_is_as_likely() -> None:
    orders = [tuple(permutation(stream(seed, Purpose.ROW_ORDER), 3).tolist()) for seed in range(6000)]
    assert {tuple(sorted(order)) for order in orders} == {(0, 1, 2)}
    counts = [orders.count(order) for order in sorted(set(orders))]
    assert len(counts) == 6
    assert stats.chisquare(counts).pvalue > 1e-4


def test_a_sequence_key_depends_on_content_and_order_alone() -> None:
    hashes = np.array([3, 1, 2, 3, 1, 2, 2, 1, 3, 3], dtype=np.uint64)
    keys = sequence_keys(hashes, np.array([3, 3, 3, 1]))
    assert keys[0] == keys[1]
    assert len(set(keys.tolist())) == 3
    assert sequence_keys(np.zeros(0, np.uint64), np.zeros(0, np.int64)).size == 0


def test_a_sequence_key_equals_the_oracle() -> None:
    words = ["the", "cat", "sat", "on", "the", "mat"]
    hashes = [oracles.word_hash(word) for word in words]
    found = sequence_keys(np.array(hashes, dtype=np.uint64), np.array([4, 2]))
    assert found.tolist() == [oracles.sequence_key(words[:4]), oracles.sequence_key(words[4:])]
