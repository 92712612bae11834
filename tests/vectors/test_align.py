"""Laws of training.vectors.alignment."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from oracles import cosine
from safetensors.numpy import load_file
from scipy.stats import ortho_group
from tiny import random_model

from pipeline.shared.errors import InputError
from training.vectors.alignment import align, drift, rotated
from training.vectors.word_vectors import Tables


def turned(tables: Tables, rotation_DD: npt.NDArray[np.float64]) -> Tables:
    center_VD, context_VD = (
        (table_VD @ rotation_DD).astype(np.float32) for table_VD in (tables.center_VD, tables.context_VD)
    )
    return Tables(tables.words, tables.counts_V, center_VD, context_VD)


def rows(tables: Tables, order: list[int]) -> Tables:
    """The same words in another order, or fewer."""
    return Tables(
        [tables.words[row] for row in order],
        tables.counts_V[order],
        tables.center_VD[order],
        tables.context_VD[order],
    )


def aligned(new: Tables, old: Tables) -> Tables:
    rotation_DD = align(new, old).rotation_DD
    center_VD, context_VD = (
        np.concatenate([*rotated(table_VD, rotation_DD)]) for table_VD in (new.center_VD, new.context_VD)
    )
    return Tables(new.words, new.counts_V, center_VD, context_VD)


def all_cosines(table_VD: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    wide_VD = table_VD[1:].astype(np.float64)
    wide_VD /= np.linalg.norm(wide_VD, axis=1, keepdims=True)
    return np.asarray(wide_VD @ wide_VD.T)


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 50])
def test_alignment_changes_no_similarity_within_a_model(dim: int, trained: bool) -> None:
    new, old = (random_model(300, dim, seed, trained) for seed in (0, 1))
    found = aligned(new, old)
    for before_VD, after_VD in ((new.center_VD, found.center_VD), (new.context_VD, found.context_VD)):
        assert np.abs(all_cosines(before_VD) - all_cosines(after_VD)).max() < 1e-5
        assert np.allclose(np.linalg.norm(before_VD, axis=1), np.linalg.norm(after_VD, axis=1), rtol=1e-5)
    before_VV, after_VV = (
        tables.center_VD.astype(np.float64) @ tables.context_VD.astype(np.float64).T for tables in (new, found)
    )
    assert np.abs(before_VV - after_VV).max() < 1e-5
    assert not found.center_VD[0].any()
    assert not found.context_VD[0].any()
    assert {found.center_VD.dtype, found.context_VD.dtype} == {np.dtype(np.float32)}


@pytest.mark.parametrize("seed", range(3))
def test_a_known_turn_is_found_by_the_words_that_both_have_wherever_they_stand(seed: int) -> None:
    """With a reflection in some of them; other words, and their order, change nothing."""
    old, rng = random_model(80, 6, seed), np.random.default_rng(seed)
    turn_DD = ortho_group.rvs(6, random_state=seed)
    order = [0, *(1 + rng.permutation(79)).tolist()]
    new = turned(rows(old, order), turn_DD.T)
    new.words[5] = "new"
    new.center_VD[5] = 100
    found = align(new, old)
    assert np.abs(found.rotation_DD - turn_DD).max() < 1e-5
    assert found.drift_S.max() < 1e-6
    assert found.words == [word for word in new.words[1:] if word != "new"]
    assert np.abs(aligned(new, old).context_VD - rows(old, order).context_VD).max() < 1e-5


def test_the_rotation_is_orthogonal_and_its_bytes_are_the_same_every_time(tmp_path: Path) -> None:
    new, old = random_model(200, 20, 0), random_model(150, 20, 1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        align(new, old).write(tmp_path / name)
    for file in ("alignment.safetensors", "drift.parquet"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    rotation_DD = load_file(tmp_path / "one" / "alignment.safetensors")["rotation"]
    assert rotation_DD.dtype == np.float64
    assert np.abs(rotation_DD @ rotation_DD.T - np.eye(20)).max() < 1e-12
    np.testing.assert_allclose(new.center_VD @ rotation_DD, aligned(new, old).center_VD, atol=1e-6)
    table = pq.read_table(tmp_path / "one" / "drift.parquet").to_pydict()
    assert list(table) == ["word", "count", "drift"]
    assert table["word"] == old.words[1:]
    assert table["count"] == new.counts_V[1:150].tolist()
    assert table["count"] == sorted(table["count"], reverse=True)


def test_no_other_turn_brings_counted_vectors_nearer() -> None:
    """Small turns from the one that was found, and those of other weights, are all further away."""
    new, old = random_model(40, 3, 0), random_model(40, 3, 1)
    new.counts_V[1:4] = 10**6
    rotation_DD = align(new, old).rotation_DD

    def distance(turn_DD: npt.NDArray[np.float64]) -> float:
        return float(new.counts_V[1:] @ ((new.center_VD @ turn_DD - old.center_VD)[1:] ** 2).sum(1))

    best = distance(rotation_DD)
    others = [rotation_DD @ ortho_group.rvs(3, random_state=seed) for seed in range(20)]
    evenly = align(Tables(new.words, np.ones_like(new.counts_V), new.center_VD, new.context_VD), old).rotation_DD
    theirs = align(Tables(new.words, old.counts_V, new.center_VD, new.context_VD), old).rotation_DD
    assert all(best < distance(other) for other in (*others, evenly, theirs))
    for first, second in ((0, 1), (0, 2), (1, 2)):
        for angle in (-1e-3, 1e-3):
            small_DD = np.eye(3)
            small_DD[[first, second], [first, second]] = np.cos(angle)
            small_DD[first, second], small_DD[second, first] = np.sin(angle), -np.sin(angle)
            assert best < distance(rotation_DD @ small_DD)


def test_the_center_vectors_alone_decide() -> None:
    new, old = random_model(40, 5, 0), random_model(40, 5, 1)
    other = Tables(new.words, new.counts_V, new.center_VD, new.context_VD[::-1].copy())
    assert np.array_equal(align(new, old).rotation_DD, align(other, old).rotation_DD)


@pytest.mark.parametrize("num_shared", [1, 2, 7])
def test_fewer_shared_words_than_dimensions_still_turn_without_changing_a_similarity(num_shared: int) -> None:
    old = random_model(30, 8, 0)
    new = turned(rows(old, list(range(num_shared + 1))), ortho_group.rvs(8, random_state=1))
    found = align(new, old)
    assert np.abs(found.rotation_DD @ found.rotation_DD.T - np.eye(8)).max() < 1e-12
    assert found.drift_S.max() < 1e-6
    assert np.array_equal(found.rotation_DD, align(new, old).rotation_DD)


def test_drift_is_one_less_the_cosine() -> None:
    first, second = random_model(50, 7, 0).center_VD, random_model(50, 7, 1).center_VD
    expected = [1.0, *(1 - cosine(a, b) for a, b in zip(first[1:].tolist(), second[1:].tolist(), strict=True))]
    assert drift(first, second) == pytest.approx(expected, abs=1e-6)
    assert not drift(first[1:], first[1:]).any()
    assert drift(first[1:], -first[1:]) == pytest.approx(2)
    assert (drift(first[1:], 3 * first[1:]) < 1e-6).all()


def test_equal_models_do_not_drift() -> None:
    tables = random_model(60, 10, 0)
    assert align(tables, tables).drift_S.max() < 1e-6


def test_another_dim_and_no_shared_word_are_refused() -> None:
    with pytest.raises(InputError, match=r"dim: found 4, expected the 5 .* keep dim, or begin a new workspace"):
        align(random_model(9, 4, 0), random_model(9, 5, 0))
    other = random_model(9, 5, 0)
    other.words[1:] = [f"other {word}" for word in other.words[1:]]
    with pytest.raises(InputError, match=r"no word of the 8 published ones among the 11 .* tokenizer"):
        align(random_model(12, 5, 0), other)
