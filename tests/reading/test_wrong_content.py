"""Shards of wrong content with right checksums and digests: whatever reads them refuses them, in one line.

The encoder writes them, of rows or dictionaries that no prepare makes; the manifest lists what was written.
"""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from ranks import train_apart

from pipeline.dataset import packing
from pipeline.dataset.encode import ExampleWriter
from pipeline.dataset.manifest_file import Manifest, ManifestError
from pipeline.dataset.verify import problems
from pipeline.shared.errors import InputError
from pipeline.shared.storage import Location
from training.judging.heldout import HELDOUT, SCHEMA, Heldout
from training.model.kernels.threads import Team
from training.reading.device_feed import KeptRows
from training.reading.petastorm_stream import petastorm_epochs
from training.reading.plan import plan_epoch
from training.reading.stream import ArrowStream, read_epochs
from training.runs.report_data import read_sampled

Int32 = npt.NDArray[np.int32]
NUM_WORDS = 61
"""V of the dataset, with <unk>."""
ROW = 70
"""The wrong row: of the first shard's first row group of 100."""


def as_it_is(ids: Int32, places: Int32) -> tuple[Int32, Int32]:
    return ids, places


def naming(wrong: int) -> Callable[[Int32, Int32], tuple[Int32, Int32]]:
    """A dictionary that says ``wrong`` in place of its rarest word."""

    def change(ids: Int32, places: Int32) -> tuple[Int32, Int32]:
        return np.where(ids == ids[-1], np.int32(wrong), ids), places

    return change


def short(ids: Int32, places: Int32) -> tuple[Int32, Int32]:
    """Without its last word, to which an index still points."""
    return ids[:-1], places


def no_dictionary(ids: Int32, places: Int32) -> tuple[Int32, Int32]:
    return np.zeros(1 << 20, np.int32), places


def target(wrong: int) -> Callable[..., None]:
    def change(center_N: Int32, targets_NL: Int32, num_contexts_N: Int32) -> None:
        targets_NL[ROW, 0] = wrong

    return change


def center(wrong: int) -> Callable[..., None]:
    def change(center_N: Int32, targets_NL: Int32, num_contexts_N: Int32) -> None:
        center_N[ROW] = wrong

    return change


def nothing(*_: Int32) -> None:
    pass


IDS = {"1e9": 10**9, "-5e6": -5_000_000, "V": NUM_WORDS, "V + 100": NUM_WORDS + 100, "-1": -1, "0": 0}
LIES = {
    **{f"a center of {name}": (center(wrong), as_it_is) for name, wrong in IDS.items()},
    **{f"a target of {name}": (nothing, naming(wrong)) for name, wrong in IDS.items()},
    **{f"a plain target of {name}": (target(wrong), no_dictionary) for name, wrong in IDS.items()},
    "an index beyond the dictionary": (nothing, short),
}


@pytest.fixture(scope="module", params=LIES)
def lie(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory, lie: str) -> Path:
    return wrong_dataset(tmp_path_factory.mktemp("data") / "data", lie)


def wrong_dataset(folder: Path, lie: str) -> Path:
    """A dataset whose first shard of each epoch has the lie; the second sampled epoch is held out."""
    change, of_dictionary = LIES[lie]
    manifest = tiny.write_held_out(folder)
    assert manifest.vocab_size == NUM_WORDS

    def dictionary(ids_NL: Int32, num_real_N: Int32) -> tuple[Int32, Int32]:
        known_NL = np.where((ids_NL > 0) & (ids_NL < NUM_WORDS), ids_NL, np.int32(0))
        return of_dictionary(*packing.dictionary(known_NL, num_real_N))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.dataset.encode.dictionary", dictionary)
        shards = list(manifest.shards)
        for split in ("train", "heldout"):
            index = next(number for number, shard in enumerate(shards) if shard.split == split)
            content = rewritten(folder / shards[index].path, manifest, change)
            digest = hashlib.sha256(content).hexdigest()
            shards[index] = dataclasses.replace(shards[index], bytes=len(content), sha256=digest)
    dataclasses.replace(manifest, shards=tuple(shards)).save(folder)
    return folder


def rewritten(path: Path, manifest: Manifest, change: Callable[..., None]) -> bytes:
    table = pq.read_table(path)
    columns = [np.array(table[name].to_pylist()) for name in ("center", "contexts_negatives", "num_contexts")]
    center_N, targets_NL, num_contexts_N = (
        column.astype(kind) for column, kind in zip(columns, ("i4", "i4", "i2"), strict=True)
    )
    change(center_N, targets_NL, num_contexts_N)
    where = io.BytesIO()
    writer = ExampleWriter(where, manifest.config.negatives)
    for first in range(0, len(center_N), manifest.row_group_rows):
        rows = slice(first, first + manifest.row_group_rows)
        writer.write_row_group(center_N[rows], targets_NL[rows], num_contexts_N[rows])
    writer.close()
    path.write_bytes(where.getvalue())
    return where.getvalue()


def stream_of(where: Path | str, manifest: Manifest) -> ArrowStream:
    shards = manifest.select(0)
    plan = plan_epoch(shards, manifest.row_group_rows, 0, 0, lanes=4, global_batch=32)
    return ArrowStream(where, manifest, shards, plan)


WAYS = ["thread", "team", "kept rows", "remote", *(["petastorm"] if pa.__version__.startswith("14.") else [])]


@pytest.fixture(params=WAYS)
def read(request: pytest.FixtureRequest) -> Callable[[Path], Iterator[object]]:
    """The batches of an epoch, in each of the ways in which training gets them."""

    def batches(folder: Path) -> Iterator[object]:
        manifest, where = Manifest.load(folder), str(folder)
        if request.param == "remote":
            where = f"memory://wrong{folder}"
            for path in filter(Path.is_file, folder.rglob("*")):
                Location.of(f"memory://wrong{path}").put(path.read_bytes())
        if request.param == "petastorm":
            with closing(petastorm_epochs(folder, manifest, 0, range(1), 32, 0, 1)) as epochs:
                for epoch in epochs:
                    yield from epoch
            return
        stream = stream_of(where, manifest)
        if request.param == "kept rows":
            kept = KeptRows(stream.read, stream.shards, manifest.row_group_rows, manifest.max_len, torch.device("cpu"))
            yield from kept.batches(stream.plan, 0, 1)
            return
        team = Team(2) if request.param == "team" else None
        with closing(read_epochs(lambda _: stream, range(1), 0, 1, team=team)) as epochs:
            for epoch in epochs:
                for batch in epoch:
                    if team:
                        team.run(lambda _: None)
                    yield batch

    return batches


def test_every_way_of_reading_names_the_shard_before_a_wrong_row(
    dataset: Path, read: Callable[[Path], Iterator[object]]
) -> None:
    name = Path(Manifest.load(dataset).select(0)[0].path).name
    with pytest.raises(ManifestError, match=rf"{name}: damaged or unreadable .*expected.*; run prepare again"):
        assert_right(read(dataset))


def assert_right(batches: Iterator[Any]) -> None:
    """All ids are those of words, or of empty places."""
    for batch in batches:
        center_B, targets_BL, num_contexts_B = (column.numpy() for column in batch.tensors())
        is_real_BL = np.arange(targets_BL.shape[1]) < num_contexts_B[:, None] * 6
        assert 0 <= center_B.min() <= center_B.max() < NUM_WORDS
        assert (targets_BL[is_real_BL] > 0).all()
        assert targets_BL.max() < NUM_WORDS


def test_the_held_out_reader_names_the_shard(dataset: Path) -> None:
    name = Path(Manifest.load(dataset).select(0, "heldout")[0].path).name
    with pytest.raises(ManifestError, match=rf"{name}: cannot be read .*expected"):
        Heldout.of_dataset(dataset)


def test_verify_names_the_shard(dataset: Path) -> None:
    lines = list(problems(str(dataset), Manifest.load(dataset)))
    shards = Manifest.load(dataset).shards
    for split in ("train", "heldout"):
        path = next(shard.path for shard in shards if shard.split == split)
        assert [line for line in lines if path in line]
    assert all(len(line.splitlines()) == 1 for line in lines)


def test_the_report_says_that_rows_could_not_be_read_or_counts_those_that_are_right(dataset: Path, lie: str) -> None:
    manifest = Manifest.load(dataset)
    sampled = read_sampled(str(dataset), manifest.dataset_id)
    if lie.startswith("a center"):
        assert "could not be read" in str(sampled.missing)
    else:  # it does not read targets
        assert sampled.rows


@pytest.mark.parametrize("mode", [(), ("--sync-every", "4")], ids=["adam", "in place"])
@pytest.mark.parametrize(
    "lie",
    [
        "a center of 1e9",
        "a target of V",
        *(pytest.param(lie, marks=pytest.mark.long) for lie in LIES if lie not in ("a center of 1e9", "a target of V")),
    ],
)
def test_training_ends_with_one_line(tmp_path: Path, lie: str, mode: tuple[str, ...]) -> None:
    """In a process of its own: machine code that believes such ids kills it."""
    data = wrong_dataset(tmp_path / "data", lie)
    flags = "--data", data, "--output", tmp_path / "run", "--dim", 8, "--epochs", 1, "--device", "cpu", "--threads", 1
    ended = train_apart(*flags, *mode, logs=tmp_path)
    ended.assert_refused("shard-0000", "expected", "run prepare again")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_published_heldout_file_of_other_content_is_refused(tmp_path: Path) -> None:
    """Ids, lists that do not fit their counts, nulls, other types, other columns."""
    tiny.write_tables(tmp_path / "run", tiny.random_model(20, 4, 0))
    good = {"center": [1, 2], "contexts_negatives": [[1, 2], [3, 4]], "num_contexts": [1, 1]}
    pq.write_table(pa.table(good, schema=SCHEMA), tmp_path / "run" / HELDOUT)
    Heldout.load(tmp_path / "run")
    tables = [
        pa.table({**good, "center": [1, 0]}, schema=SCHEMA),
        pa.table({**good, "center": [1, 20]}, schema=SCHEMA),
        pa.table({**good, "center": [1, None]}, schema=SCHEMA),
        pa.table({**good, "contexts_negatives": [[1, -1], [3, 4]]}, schema=SCHEMA),
        pa.table({**good, "contexts_negatives": [[1, None], [3, 4]]}, schema=SCHEMA),
        pa.table({**good, "contexts_negatives": [None, [3, 4]]}, schema=SCHEMA),
        pa.table({**good, "contexts_negatives": [[1] * 40_000, [3, 4]]}, schema=SCHEMA),
        pa.table({**good, "num_contexts": [3, 1]}, schema=SCHEMA),
        pa.table({**good, "num_contexts": [-1, 1]}, schema=SCHEMA),
        pa.table({**good, "center": ["a", "b"]}),
        pa.table({"center": [1]}),
    ]
    for table in tables:
        pq.write_table(table, tmp_path / "run" / HELDOUT)
        with pytest.raises(InputError, match=r"heldout.parquet: cannot be read .*; bring it back"):
            Heldout.load(tmp_path / "run")
