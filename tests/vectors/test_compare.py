"""Laws of training.vectors.compare."""

import random

import numpy as np
import oracles
import pytest
from scipy.stats import ortho_group
from tiny import random_model

from training.vectors import Tables, compare, cosine
from training.vectors.compare import Norms, growth, neighbour_overlap, rows_in, shared_rows


def of_words(tables: Tables, words: list[str]) -> Tables:
    """The model of these words alone, in this order."""
    rows = [0, *(tables.words.index(word) for word in words)]
    return Tables(["<unk>", *words], tables.counts_V[rows], tables.center_VD[rows], tables.context_VD[rows])


def nearby(tables: Tables, seed: int, noise: float = 0.5) -> Tables:
    center_VD = tables.center_VD + noise * random_model(len(tables.words), tables.center_VD.shape[1], seed).center_VD
    return Tables(tables.words, tables.counts_V, center_VD.astype(np.float32), tables.context_VD)


def as_dict(tables: Tables) -> dict[str, list[float]]:
    return dict(zip(tables.words[1:], tables.center_VD[1:].tolist(), strict=True))


def test_words_are_matched_by_spelling_and_unk_by_nothing() -> None:
    words, others = ["<unk>", "a", "b", "<unk> ", "c"], ["b", "c", "x", "b", "a"]
    assert rows_in(words, others).tolist() == [0, 4, 3, 0, 1]
    mine, theirs = shared_rows(words, others)
    assert (mine.tolist(), theirs.tolist()) == ([1, 2, 4], [4, 3, 1])


@pytest.mark.parametrize(("frequent_words", "topk"), [(30, 10), (7, 3), (1000, 1)])
def test_overlap_is_that_of_the_oracle(frequent_words: int, topk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over words in another order, with words that only one has, in blocks of a few."""
    monkeypatch.setattr(compare, "BLOCK_WORDS", 4)
    monkeypatch.setattr(cosine, "CHUNK_VALUES", 50)
    old = random_model(60, 8, 0)
    rng = np.random.default_rng(1)
    new = of_words(nearby(old, 2), rng.permutation(old.words[1:45]).tolist())
    new.words[5] = "new"
    shared = [word for word in old.words[1:] if word in new.words]
    expected = oracles.overlap(as_dict(new), as_dict(old), shared[:frequent_words], topk)
    assert 0.1 < expected < 0.9
    assert neighbour_overlap(new, old, frequent_words, topk) == pytest.approx(expected)


def test_overlap_is_one_for_the_same_neighbours_however_vectors_are_turned_and_stretched() -> None:
    old = random_model(200, 10, 0)
    turn_DD = ortho_group.rvs(10, random_state=0)
    center_VD = (3 * old.center_VD @ turn_DD).astype(np.float32)
    assert neighbour_overlap(Tables(old.words, old.counts_V, center_VD, old.context_VD), old) == 1
    assert neighbour_overlap(random_model(200, 10, 1), old) < 0.15


def test_words_that_are_new_or_lost_change_no_overlap() -> None:
    old = random_model(200, 10, 0)
    new = nearby(old, 1)
    grown = random_model(500, 10, 2)
    grown.center_VD[:200] = new.center_VD
    assert neighbour_overlap(grown, old) == neighbour_overlap(new, old)
    kept = of_words(old, old.words[1:200:2])
    assert neighbour_overlap(new, kept) == neighbour_overlap(of_words(new, kept.words[1:]), kept)


def test_the_champions_frequent_words_are_asked_for_whatever_is_frequent_now() -> None:
    """The first half of the champion's words keep their neighbours; the challenger has them last."""
    old = random_model(101, 10, 0)
    center_VD = old.center_VD.copy()
    center_VD[51:] *= np.random.default_rng(1).uniform(0.9, 1.1, (50, 10))
    new = of_words(Tables(old.words, old.counts_V, center_VD, old.context_VD), old.words[:0:-1])
    expected = oracles.overlap(as_dict(new), as_dict(old), old.words[1:21], 10)
    assert neighbour_overlap(new, old, frequent_words=20) == pytest.approx(expected)
    assert neighbour_overlap(new, old, frequent_words=20) != neighbour_overlap(old, new, frequent_words=20)


@pytest.mark.parametrize(("num_shared", "expected"), [(0, 0), (1, 0), (2, 1), (5, 1)])
def test_few_shared_words_are_all_neighbours(num_shared: int, expected: float) -> None:
    old = random_model(20, 5, 0)
    new = random_model(20, 5, 1)
    new.words[1:] = [*old.words[1 : num_shared + 1], *(f"n{row}" for row in range(19 - num_shared))]
    assert neighbour_overlap(new, old) == expected


def test_norms_are_those_of_words_and_say_what_is_bad() -> None:
    center_VD = np.array([[0, 0], [3, 4], [0, 1], [0, 2]], np.float32)
    tables = Tables(["<unk>", "a", "b", "c"], np.ones(4, np.int64), center_VD, 2 * center_VD)
    assert Norms.of(tables) == Norms(bad=0, center=(1, 2, 5), context=(2, 4, 10))
    center_VD[2] = 0
    assert Norms.of(tables) == Norms(bad=1, center=(0, 2, 5), context=(2, 4, 10))
    tables.context_VD[1:] = np.array([[1e30, 0], [0, 0], [np.nan, 1]])
    assert Norms.of(tables) == Norms(bad=3, center=(0, 2, 5), context=(0, 0, 0))
    tables.center_VD[1:] = np.inf
    assert Norms.of(tables) == Norms(bad=5, center=None, context=(0, 0, 0))


def test_growth_is_counted_word_by_word() -> None:
    """Also where a text has the literal <unk>, whose id is not 0."""
    rng = random.Random(0)
    for _ in range(50):
        old, new = (["<unk>", *rng.sample([*"abcdefghij", "<unk>"], rng.randint(1, 9))] for _ in range(2))
        counts = [np.array([rng.randint(1, 99) for _ in words]) for words in (new, old)]
        kept = [row for row in range(1, len(new)) if new[row] in old[1:]]
        lost = [row for row in range(1, len(old)) if old[row] not in new[1:]]
        found = growth(new, counts[0], old, counts[1])
        assert (found.kept, found.new, found.lost) == (len(kept), len(new) - 1 - len(kept), len(lost))
        assert found.kept_share == pytest.approx(sum(counts[0][row] for row in kept) / sum(counts[0][1:]))
        assert found.lost_share == pytest.approx(sum(counts[1][row] for row in lost) / sum(counts[1][1:]))
