"""Laws of training.judging.heldout."""

from pathlib import Path

import numpy as np
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import random_model, random_rows, write_held_out, write_tables, write_tiny_dataset

from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.shared.errors import InputError
from training.judging.heldout import Heldout, losses
from training.model.kernels.reference import row_losses
from training.vectors import Tables


def examples(num_rows: int, num_words: int, seed: int = 0) -> Heldout:
    """With two negatives a context; places after the last one hold 0. Some rows have no context."""
    center, targets, num_contexts = (part.numpy() for part in random_rows(num_rows, num_words, seed=seed))
    targets[np.arange(targets.shape[1]) >= 3 * num_contexts[:, None]] = 0
    return Heldout(random_model(num_words, 1, 0).words, center, targets, num_contexts.astype(np.int32))


def without(tables: Tables, lost: set[str]) -> Tables:
    """Fewer words, in another order."""
    rows = [0, *(row for row in reversed(range(1, len(tables.words))) if tables.words[row] not in lost)]
    words = [tables.words[row] for row in rows]
    return Tables(words, tables.counts_V[rows], tables.center_VD[rows], tables.context_VD[rows])


def as_dict(tables: Tables) -> dict[str, tuple[list[float], list[float]]]:
    vectors = zip(tables.center_VD.tolist(), tables.context_VD.tolist(), strict=True)
    return {word: vectors for word, vectors in list(zip(tables.words, vectors, strict=True))[1:]}


def rows_of(folder: Path, manifest: Manifest) -> list[tuple[int, list[int], int]]:
    """All held-out rows as pyarrow has them, in the order of shards."""
    found: list[tuple[int, list[int], int]] = []
    for shard in manifest.select(0, "heldout"):
        columns = pq.read_table(folder / shard.path).to_pydict()
        found += zip(columns["center"], columns["contexts_negatives"], columns["num_contexts"], strict=True)
    return found


def as_rows(found: Heldout) -> list[tuple[int, list[int], int]]:
    columns = found.center_B, found.contexts_negatives_BL, found.num_contexts_B
    return list(zip(*(column.tolist() for column in columns), strict=True))


# Losses


@pytest.mark.parametrize("seed", range(3))
def test_losses_are_the_oracles_over_what_both_know(seed: int) -> None:
    found = examples(100, 30, seed)
    first = without(random_model(30, 5, 1), {"w2", "w9", "w20"})
    second = without(random_model(30, 5, 2), {"w3", "w9", "w11", "w12"})
    result = losses(found, first, second)
    assert result
    for loss, model, other in ((result.first, first, second), (result.second, second, first)):
        expected = oracles.shared_loss(as_rows(found), found.words, as_dict(model), as_dict(other))
        assert loss == pytest.approx(expected[0], rel=1e-6)
        assert (result.rows, result.places) == expected[1:]
    assert result.rows < 100
    assert result.words == 29 - 6


def test_where_all_words_are_known_the_loss_is_that_of_training() -> None:
    found, tables = examples(200, 30), random_model(30, 8, 1)
    result = losses(found, tables, tables)
    batch = found.center_B, found.contexts_negatives_BL, found.num_contexts_B
    center_B, targets_BL, num_contexts_B, *both = map(torch.from_numpy, (*batch, tables.center_VD, tables.context_VD))
    loss_B = row_losses(
        (center_B, targets_BL, num_contexts_B),
        (both[0], both[1]),
        negatives=2,
    )[torch.from_numpy(found.num_contexts_B) > 0]
    assert result
    assert result.first == result.second == pytest.approx(loss_B.double().mean().item(), rel=1e-6)
    assert (result.rows, result.places) == (len(loss_B), int(found.num_contexts_B.sum()) * 3)


def test_what_one_model_does_not_know_costs_neither() -> None:
    """Another vector for a word that the other lacks, as center, context or negative, changes no loss."""
    found, first, second = examples(200, 30), random_model(30, 8, 1), random_model(30, 8, 2)
    short = without(second, {"w1", "w7"})
    before = losses(found, first, short)
    for table_VD in (first.center_VD, first.context_VD):
        table_VD[[1, 7]] = 9
    assert losses(found, first, short) == before
    assert losses(found, first, second) != before


def test_an_example_with_negatives_alone_does_not_count() -> None:
    words = ["<unk>", "a", "b", "c"]
    found = Heldout(words, *(np.array(part, np.int32) for part in ([1, 1], [[2, 3], [3, 2]], [1, 1])))
    tables = Tables(words, np.ones(4, np.int64), *np.ones((2, 4, 2), np.float32))
    result = losses(found, tables, without(tables, {"b"}))
    assert result
    assert (result.rows, result.places) == (1, 1)


def test_nothing_in_common_is_no_loss() -> None:
    found, tables = examples(20, 10), random_model(10, 3, 1)
    other = Tables(["<unk>", *(f"x{row}" for row in range(9))], tables.counts_V, tables.center_VD, tables.context_VD)
    assert losses(found, tables, other) is None


# Files


def test_all_that_a_dataset_holds_out_is_read(tmp_path: Path) -> None:
    manifest = write_held_out(tmp_path)
    found = Heldout.of_dataset(tmp_path)
    assert as_rows(found) == rows_of(tmp_path, manifest)
    assert found.words == pq.read_table(tmp_path / manifest.vocab_path)["word"].to_pylist()
    assert len(found.center_B) > 4 * 100 * 4


@pytest.mark.parametrize("max_rows", [1, 3, 50, 777])
def test_a_part_of_it_is_spread_evenly(tmp_path: Path, max_rows: int) -> None:
    rows = rows_of(tmp_path, write_held_out(tmp_path))
    found = Heldout.of_dataset(tmp_path, max_rows)
    assert as_rows(found) == [rows[index * len(rows) // max_rows] for index in range(max_rows)]


def test_what_is_written_is_read_back_with_the_same_bytes_every_time(tmp_path: Path) -> None:
    found = examples(300, 30)
    for name in ("one", "two"):
        write_tables(tmp_path / name, random_model(30, 4, 0))
        found.write(tmp_path / name)
    again = Heldout.load(tmp_path / "one")
    assert (again.words, as_rows(again)) == (found.words, as_rows(found))
    assert (tmp_path / "one/heldout.parquet").read_bytes() == (tmp_path / "two/heldout.parquet").read_bytes()
    model, other = random_model(30, 4, 1), random_model(30, 4, 2)
    assert losses(again, model, other) == losses(found, model, other)


def test_a_dataset_that_holds_nothing_out_is_refused(tmp_path: Path) -> None:
    write_tiny_dataset(tmp_path / "data")
    with pytest.raises(InputError, match=r"no held-out examples, .* prepare with a holdout such as 0.01"):
        Heldout.of_dataset(tmp_path / "data")


def test_a_damaged_shard_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / write_held_out(tmp_path).select(0, "heldout")[1].path
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=f"{path}: cannot be read"):
        Heldout.of_dataset(tmp_path)


def test_a_published_file_that_is_gone_or_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    write_tables(tmp_path / "run", random_model(20, 4, 0))
    with pytest.raises(InputError, match=r"heldout.parquet: cannot be read .*; bring it back, or set heldout_increase"):
        Heldout.load(tmp_path / "run")
    examples(300, 30).write(tmp_path / "run")
    with pytest.raises(InputError, match=r"heldout.parquet: cannot be read .found ids from 1 to 29, expected 1 to 19"):
        Heldout.load(tmp_path / "run")
    pq.write_table(pa.table({"center": [1]}), tmp_path / "run/heldout.parquet")
    with pytest.raises(InputError, match=r"heldout.parquet: cannot be read"):
        Heldout.load(tmp_path / "run")
