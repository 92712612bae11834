"""The trainer's decoder of shards: the same rows as pyarrow's, and damage never passes for data."""

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_parquet import encoded, part, random_examples

from pipeline.dataset import encode as parquet
from pipeline.dataset import thrift
from pipeline.dataset.decode import UNREADABLE, Layout, RowGroup, ShardError
from pipeline.dataset.packing import levels
from pipeline.dataset.thrift import i32
from pipeline.dataset.unpacking import Rows
from pipeline.sampling.sample import Examples
from pipeline.shared import randomness
from pipeline.shared.storage import Location
from pipeline.spark.shard_writer import ROW_GROUP_ROWS
from training.reading.permutation import permutation

FIRST = np.arange(3, dtype=np.int32)


def read_rows(path: Path, row_group: int, num_rows: int, layout: Layout, rows: npt.NDArray[np.int32]) -> Rows:
    return RowGroup.read(Location.of(path).reader(), pq.read_metadata(path), row_group, num_rows, layout).rows(rows)


def assert_gives(path: Path, row_group: int, examples: Examples, negatives: int) -> None:
    """All rows in a random order, and few of them."""
    num_rows, max_len = examples.contexts_negatives_NL.shape
    layout = Layout(max_len, 1 + negatives, 70_000)
    order = np.random.default_rng(1).permutation(num_rows).astype(np.int32)
    for rows in (order, order[:3], order[:0]):
        center, targets, num_contexts = read_rows(path, row_group, num_rows, layout, rows)
        assert [str(column.dtype) for column in (center, targets, num_contexts)] == ["int32", "int32", "int16"]
        np.testing.assert_array_equal(center, examples.center_N[rows])
        np.testing.assert_array_equal(targets, examples.contexts_negatives_NL[rows])
        np.testing.assert_array_equal(num_contexts, examples.num_contexts_N[rows])


@pytest.mark.parametrize(("window", "negatives"), [(1, 0), (2, 3), (5, 5), (20, 20)], ids=str)
@pytest.mark.parametrize("vocab_size", [2, 3, 300, 6719, 70_000])
def test_rows_are_those_that_were_written(tmp_path: Path, window: int, negatives: int, vocab_size: int) -> None:
    examples = random_examples(1001, vocab_size, window, negatives)
    (tmp_path / "shard").write_bytes(encoded(examples, negatives))
    assert_gives(tmp_path / "shard", 0, examples, negatives)


@pytest.mark.parametrize("num_rows", range(1, 12))
@pytest.mark.parametrize(("window", "negatives"), [(1, 0), (1, 2)], ids=str)
def test_columns_of_a_few_bytes_are_read(tmp_path: Path, num_rows: int, window: int, negatives: int) -> None:
    examples = random_examples(num_rows, 3, window, negatives)
    (tmp_path / "shard").write_bytes(encoded(examples, negatives))
    assert_gives(tmp_path / "shard", 0, examples, negatives)


def test_every_row_group_is_found(tmp_path: Path) -> None:
    examples = random_examples(40_000, 6719, 5, 5)
    (tmp_path / "shard").write_bytes(encoded(examples, 5))
    for row_group in range(3):
        start = row_group * ROW_GROUP_ROWS
        assert_gives(tmp_path / "shard", row_group, part(examples, start, start + ROW_GROUP_ROWS), 5)


def test_plain_ids_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_DICTIONARY", 100)
    examples = random_examples(500, 300, 5, 5)
    (tmp_path / "shard").write_bytes(encoded(examples, 5))
    assert_gives(tmp_path / "shard", 0, examples, 5)


@pytest.mark.parametrize("first", [0, *(pytest.param(bit, marks=pytest.mark.long) for bit in range(1, 8))])
def test_no_flipped_bit_of_the_read_columns_changes_a_row(tmp_path: Path, first: int) -> None:
    """Every byte in turn, one of its bits: of pages the checksum sees it; in a header it is an error or of no
    consequence. The long cases flip the other bits.
    """
    examples = random_examples(40, 30, 1, 2)
    file = encoded(examples, 2)
    group = pq.ParquetFile(pa.BufferReader(file)).metadata.row_group(0)
    num_caught, num_tried = 0, 0
    for column in map(group.column, (0, 1, 4)):
        start = column.dictionary_page_offset if column.has_dictionary_page else column.data_page_offset
        for place in range(start, start + column.total_compressed_size):
            damaged = bytearray(file)
            damaged[place] ^= 1 << (first + place) % 8
            (tmp_path / "shard").write_bytes(damaged)
            num_tried += 1
            try:
                assert_gives(tmp_path / "shard", 0, examples, 2)
            except (OSError, pa.ArrowException, ShardError):
                num_caught += 1
    assert num_caught > 0.9 * num_tried


@pytest.mark.parametrize("kept", [0.3, 0.9, 0.999])
def test_a_cut_file_is_refused(tmp_path: Path, kept: float) -> None:
    file = encoded(random_examples(1000, 300, 5, 5), 5)
    (tmp_path / "shard").write_bytes(file[: int(len(file) * kept)])
    with pytest.raises((OSError, pa.ArrowException)):
        read_rows(tmp_path / "shard", 0, 1000, Layout(60, 6, 300), FIRST)


@pytest.mark.parametrize(
    ("row_group", "num_rows", "max_len", "message"),
    [
        (0, 999, 60, "row group 0 has 1000 rows, the manifest implies 999"),
        (1, 1000, 60, "it has 1 row groups"),
        (0, 1000, 59, "one data page of 59000 values expected"),
    ],
)
def test_what_the_manifest_does_not_imply_is_refused(
    tmp_path: Path, row_group: int, num_rows: int, max_len: int, message: str
) -> None:
    (tmp_path / "shard").write_bytes(encoded(random_examples(1000, 300, 5, 5), 5))
    with pytest.raises(ShardError, match=message):
        read_rows(tmp_path / "shard", row_group, num_rows, Layout(max_len, 6, 300), FIRST)


def test_more_targets_than_there_are_places_are_refused(tmp_path: Path) -> None:
    """Or machine code would write behind its row: a file can be whole and yet another dataset's."""
    (tmp_path / "shard").write_bytes(encoded(random_examples(1000, 300, 5, 5), 5))
    read_rows(tmp_path / "shard", 0, 1000, Layout(60, 6, 300), FIRST)
    with pytest.raises(ShardError, match=r"num_contexts: .* 60 targets"):
        read_rows(tmp_path / "shard", 0, 1000, Layout(60, 7, 300), FIRST)


def test_another_writers_file_is_refused(tmp_path: Path) -> None:
    """Parquet that holds the same rows, but in runs of its own."""
    by_pyarrow = io.BytesIO()
    ours = pq.read_table(pa.BufferReader(encoded(random_examples(1000, 300, 5, 5), 5)))
    checksums = {} if pa.__version__.startswith("14.") else {"write_page_checksum": True}  # which 14 cannot write
    pq.write_table(ours, by_pyarrow, **checksums)
    (tmp_path / "shard").write_bytes(by_pyarrow.getvalue())
    with pytest.raises(ShardError, match="center"):
        read_rows(tmp_path / "shard", 0, 1000, Layout(60, 6, 300), FIRST)


def with_page_header(file: bytes, column: int, header: bytes) -> tuple[bytes, pq.FileMetaData]:
    """The file with another header of a column's first page, over the bytes of the old one and the page."""
    metadata = pq.read_metadata(pa.BufferReader(file))
    chunk = metadata.row_group(0).column(column)
    start = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    header = header[: chunk.total_compressed_size]
    return file[:start] + header + file[start + len(header) :], metadata


HEADERS = {
    "4,000 levels": b"\x1c" * 4000,
    "a number without an end": b"\x15" + b"\xff" * 4000,
    "2 GB from 64 bytes": thrift.struct(i32(1, 0), i32(2, 2**31 - 1), i32(3, 64), i32(4, 0)),
    "a page of -1 bytes": thrift.struct(i32(1, 0), i32(2, 8), i32(3, -1), i32(4, 0)),
    "more bytes than there are": thrift.struct(i32(1, 0), i32(2, 8), i32(3, 2**31 - 1), i32(4, 0)),
    "no fields": b"\0",
    "structs for numbers": thrift.struct(*(thrift.nested(number, i32(1, 1)) for number in range(1, 6))),
}


@pytest.mark.parametrize("column", [0, 1, 4])
@pytest.mark.parametrize("name", HEADERS)
def test_a_page_header_of_any_content_is_an_error_that_takes_no_memory(name: str, column: int) -> None:
    file, metadata = with_page_header(encoded(random_examples(1000, 300, 5, 5), 5), column, HEADERS[name])
    before = pa.default_memory_pool().max_memory()
    with pytest.raises(ShardError, match=metadata.row_group(0).column(column).path_in_schema):
        RowGroup.read(lambda at, size: file[at : at + size], metadata, 0, 1000, Layout(60, 6, 300))
    assert pa.default_memory_pool().max_memory() < before + 10**7


@pytest.mark.parametrize("codec", [8, 100, -1, 2**31 - 1])
def test_a_footer_with_an_unknown_codec_does_not_end_the_process(codec: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As pyarrow does when it is asked for it. The codecs are those that the encoder chooses."""
    examples = random_examples(40, 30, 1, 2)
    monkeypatch.setattr(parquet._Chunk, "codec", property(lambda _: codec, lambda *_: None), raising=False)
    file = encoded(examples, 2)
    monkeypatch.undo()
    metadata = pq.read_metadata(pa.BufferReader(file))
    group = RowGroup.read(lambda at, size: file[at : at + size], metadata, 0, 40, Layout(6, 3, 30))
    np.testing.assert_array_equal(group.rows(np.arange(40, dtype=np.int32)).targets_NL, examples.contexts_negatives_NL)


def test_levels_of_lists_of_other_lengths_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many values, but for pyarrow in other rows."""
    monkeypatch.setattr(parquet, "levels", lambda rows, length: levels(rows * 2, length // 2))
    file = encoded(random_examples(1000, 300, 5, 5), 5)
    metadata = pq.read_metadata(pa.BufferReader(file))
    with pytest.raises(ShardError, match=r"contexts_negatives.*levels are not those of lists of 60"):
        RowGroup.read(lambda at, size: file[at : at + size], metadata, 0, 1000, Layout(60, 6, 300))


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 10))])
def test_a_footer_of_other_content_is_an_error_or_of_no_consequence(seed: int) -> None:
    """500 of them with one to four other bytes: it has no checksum."""
    rng = np.random.default_rng(seed)
    examples = random_examples(40, 30, 1, 2)
    file = encoded(examples, 2)
    start = len(file) - 8 - int.from_bytes(file[-8:-4], "little")
    for _ in range(500):
        lie = bytearray(file)
        for place in rng.integers(start, len(file), rng.integers(1, 5)):
            lie[place] = rng.integers(256)
        try:
            metadata = pq.read_metadata(pa.BufferReader(bytes(lie)))
            group = RowGroup.read(lambda at, size: bytes(lie[at : at + size]), metadata, 0, 40, Layout(6, 3, 30))  # noqa: B023
            found = group.rows(np.arange(40, dtype=np.int32))
        except UNREADABLE:
            continue
        np.testing.assert_array_equal(found.center_N, examples.center_N)
        np.testing.assert_array_equal(found.targets_NL, examples.contexts_negatives_NL)
        np.testing.assert_array_equal(found.num_contexts_N, examples.num_contexts_N)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 1000, 16_384, 16_385])
def test_the_permutation_is_that_of_randomness(n: int) -> None:
    for stream in (0, 1, 1 << 63, (1 << 64) - 1):
        np.testing.assert_array_equal(permutation(stream, n), randomness.permutation(stream, n))
