"""The shards' own Parquet encoder: what goes in comes out, through every reader."""

import hashlib
import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.dataset import encode as parquet
from pipeline.dataset.encode import SCHEMA, ExampleWriter
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.sample import Examples
from pipeline.shared.storage import Location
from pipeline.spark.shard_writer import ROW_GROUP_ROWS, ShardFile


def random_examples(num_rows: int, vocab_size: int, window: int, negatives: int, seed: int = 0) -> Examples:
    """Every n from 1 to 2·window, as long as the rows last, then random ones; ids 1 to ``vocab_size`` - 1."""
    rng = np.random.default_rng(seed)
    num_contexts = rng.integers(1, 2 * window + 1, num_rows).astype(np.int16)
    num_contexts[: 2 * window] = np.arange(1, 2 * window + 1)[:num_rows]
    length = 2 * window * (1 + negatives)
    ids = rng.integers(1, vocab_size, (num_rows, length)).astype(np.int32)
    ids[np.arange(length) >= num_contexts[:, None] * (1 + negatives)] = 0
    return Examples(rng.integers(1, vocab_size, num_rows).astype(np.int32), ids, num_contexts, 0)


def part(examples: Examples, start: int, stop: int) -> Examples:
    rows = slice(start, stop)
    return Examples(examples.center_N[rows], examples.contexts_negatives_NL[rows], examples.num_contexts_N[rows], 0)


def encoded(examples: Examples, negatives: int) -> bytes:
    where = io.BytesIO()
    writer = ExampleWriter(where, negatives)
    for start in range(0, examples.center_N.size, ROW_GROUP_ROWS):
        group = part(examples, start, start + ROW_GROUP_ROWS)
        writer.write_row_group(group.center_N, group.contexts_negatives_NL, group.num_contexts_N)
    writer.close()
    return where.getvalue()


def expected(examples: Examples, negatives: int) -> dict[str, npt.NDArray[Any]]:
    """The columns as the design says them, ``mask`` and ``label`` included."""
    place_L, n_N1 = np.arange(examples.contexts_negatives_NL.shape[1]), examples.num_contexts_N[:, None]
    return {
        "center": examples.center_N,
        "contexts_negatives": examples.contexts_negatives_NL,
        "mask": (place_L < n_N1.astype(np.int64) * (1 + negatives)).astype(np.int8),
        "label": (place_L < n_N1).astype(np.int8),
        "num_contexts": examples.num_contexts_N,
    }


def read(file: bytes) -> pa.Table:
    return pq.ParquetFile(pa.BufferReader(file), page_checksum_verification=True).read()


def assert_holds(table: pa.Table, examples: Examples, negatives: int) -> None:
    assert table.schema.equals(SCHEMA)
    for name, values in expected(examples, negatives).items():
        column = table[name].combine_chunks()
        if values.ndim == 2:
            lengths = np.diff(column.offsets.to_numpy())
            assert (lengths == values.shape[1]).all()
            column = column.flatten()
        found = column.to_numpy()
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values.reshape(-1))


@pytest.mark.parametrize(("window", "negatives"), [(1, 0), (1, 1), (2, 3), (5, 5), (20, 20)], ids=str)
@pytest.mark.parametrize("vocab_size", [2, 3, 300, 6719, 70_000])
def test_what_goes_in_comes_out(window: int, negatives: int, vocab_size: int) -> None:
    examples = random_examples(1000, vocab_size, window, negatives)
    assert_holds(read(encoded(examples, negatives)), examples, negatives)


@pytest.mark.parametrize("num_rows", [1, 7, 16383, 16384, 16385, 40_000])
def test_any_number_of_rows(num_rows: int) -> None:
    examples = random_examples(num_rows, 6719, 5, 5)
    file = encoded(examples, 5)
    assert_holds(read(file), examples, 5)
    metadata = pq.ParquetFile(pa.BufferReader(file)).metadata
    sizes = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    assert sizes == [ROW_GROUP_ROWS] * (num_rows // ROW_GROUP_ROWS) + [num_rows % ROW_GROUP_ROWS] * (
        num_rows % ROW_GROUP_ROWS > 0
    )


@pytest.mark.parametrize("num_contexts", range(1, 11))
def test_rows_of_equally_many_contexts(num_contexts: int) -> None:
    examples = random_examples(100, 50, 5, 5)
    rows = np.repeat(examples.contexts_negatives_NL[examples.num_contexts_N == num_contexts][:1], 100, axis=0)
    examples = Examples(examples.center_N, rows, np.full(100, num_contexts, dtype=np.int16), 0)
    assert_holds(read(encoded(examples, 5)), examples, 5)


@pytest.mark.parametrize("full", [False, True])
def test_a_large_vocabulary_is_stored_plain(monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    """The largest dictionary, and one id more."""
    monkeypatch.setattr(parquet, "MAX_DICTIONARY", 1000)
    examples = random_examples(2000, 1000 + full, 5, 5)
    file = encoded(examples, 5)
    assert_holds(read(file), examples, 5)
    column = pq.ParquetFile(pa.BufferReader(file)).metadata.row_group(0).column(1)
    assert column.has_dictionary_page is not full


def test_what_the_metadata_says_is_so() -> None:
    """Sizes and places in the footer are those of the pages; pyarrow itself declares the same columns."""
    examples = random_examples(20_000, 6719, 5, 5)
    file = encoded(examples, 5)
    metadata = pq.ParquetFile(pa.BufferReader(file)).metadata
    by_pyarrow = io.BytesIO()
    pq.write_table(read(file), by_pyarrow)
    assert metadata.schema.equals(pq.ParquetFile(by_pyarrow).metadata.schema)
    end = len(b"PAR1")
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        assert group.num_columns == len(SCHEMA)
        assert group.total_byte_size == sum(group.column(i).total_uncompressed_size for i in range(5))
        for column in map(group.column, range(5)):
            start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
            assert start == end
            end += column.total_compressed_size
            assert column.total_uncompressed_size >= column.total_compressed_size
    assert end + metadata.serialized_size + len(b"....PAR1") == len(file)


@pytest.fixture(scope="module")
def file_of_rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """A file of two row groups, and its rows as Python's own lists and numbers."""
    examples = random_examples(17_000, 6719, 5, 5)
    path = tmp_path_factory.mktemp("parquet") / "examples.parquet"
    path.write_bytes(encoded(examples, 5))
    return path, pd.DataFrame({name: values.tolist() for name, values in expected(examples, 5).items()})


def test_pandas_reads_it(file_of_rows: tuple[Path, pd.DataFrame]) -> None:
    path, rows = file_of_rows
    found = pd.read_parquet(path)
    assert found.dtypes[["center", "num_contexts"]].tolist() == [np.int32, np.int16]
    for name in rows:
        assert [np.asarray(value).tolist() for value in found[name]] == rows[name].tolist()


def test_duckdb_reads_it(file_of_rows: tuple[Path, pd.DataFrame]) -> None:
    path, rows = file_of_rows
    import duckdb

    with duckdb.connect() as connection:
        connection.execute(f"CREATE VIEW examples AS SELECT * FROM read_parquet('{path}')")
        found = connection.execute("SELECT * FROM examples").fetchall()
        assert found == list(rows.itertuples(index=False, name=None))
        sums = "list_sum(mask), list_sum(label), list_sum(contexts_negatives)"
        totals = connection.execute(
            f"SELECT count(*), {', '.join(f'sum({part})' for part in sums.split(', '))} FROM examples WHERE center > 99"
        ).fetchone()
    chosen = rows[rows.center > 99]
    assert totals == (len(chosen), *(sum(map(sum, chosen[name])) for name in ("mask", "label", "contexts_negatives")))


def test_a_flipped_byte_in_any_page_is_caught() -> None:
    file = encoded(random_examples(3000, 500, 5, 5), 5)
    group = pq.ParquetFile(pa.BufferReader(file)).metadata.row_group(0)
    places = []
    for column in map(group.column, range(5)):
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        places += [column.data_page_offset - 1] if column.has_dictionary_page else []  # the dictionary's last byte
        places += [column.data_page_offset + 60, start + column.total_compressed_size - 1]
    assert len(places) == 14
    for place in places:
        damaged = bytearray(file)
        damaged[place] ^= 4
        with pytest.raises(OSError, match=r"(?i)crc|checksum"):
            read(bytes(damaged))


def test_pieces_of_any_size_give_the_same_bytes(tmp_path: Path) -> None:
    examples = random_examples(40_000, 6719, 5, 5)
    file = encoded(examples, 5)
    (tmp_path / "generation").mkdir()
    for number, size in enumerate([40_000, 16_384, 16_385, 1000, 37]):
        with ShardFile(Location.of(tmp_path) / "generation", "train", 0, number, PipelineConfig()) as shard:
            for start, stop in itertools.pairwise([*range(0, 40_000, size), 40_000]):
                shard.append(part(examples, start, stop))
            info = shard.finish()
        assert info is not None
        assert (info.rows, info.bytes, info.sha256) == (40_000, len(file), hashlib.sha256(file).hexdigest())
        assert (tmp_path / info.path).read_bytes() == file


def test_strided_columns_are_written_the_same() -> None:
    """Rows that another array holds in another order, or with other columns between."""
    examples = random_examples(500, 300, 5, 5)
    wide = np.asfortranarray(np.repeat(examples.contexts_negatives_NL, 2, axis=1))[:, ::2]
    center = np.repeat(examples.center_N, 2)[::2]
    assert encoded(Examples(center, wide, examples.num_contexts_N, 0), 5) == encoded(examples, 5)
