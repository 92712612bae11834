"""A dataset after a power cut: readers find the old one whole or the new one whole, and prepare replaces it."""

import hashlib
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from power_cuts import recorded, restore, survived
from tiny import random_rows, write_tiny_dataset

from pipeline.dataset.manifest_file import FILE_NAME, Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.sampling.sample import Examples
from pipeline.shared.storage import Location
from pipeline.spark.generation import PREFIX, current_generation, new_generation, publish
from pipeline.spark.shard_writer import ShardFile


def prepare(output: Path, template: Manifest, num_words: int) -> Manifest:
    """What the driver and its tasks write, in their order, of random examples; returns the manifest."""
    config, where, shards = template.config, Location.of(output), []
    words = pa.array([f"w{number}" for number in range(num_words)])
    vocab = Vocab.from_counts(words, pa.array(range(num_words, 0, -1), pa.int64()), num_words**2, None)
    with new_generation(where) as generation:
        before = current_generation(where)
        vocab.write(generation / "vocab.parquet")
        for number in range(2):
            rows = random_rows(200, num_words, config.max_contexts // 2, config.negatives, seed=number, num_contexts=2)
            center_N, targets_NL, num_contexts_N = (column.numpy() for column in rows)
            with ShardFile(generation, "train", 0, number, config) as file:
                file.append(Examples(center_N, targets_NL, num_contexts_N, 0))
                info = file.finish()
            assert info is not None
            shards.append(info)
        counts = replace(template.counts, examples=400)
        manifest = replace(template, generation=Path(generation.path).name, counts=counts, shards=tuple(shards))
        manifest = replace(manifest, vocab_size=len(vocab), vocab_digest=vocab.digest())
        publish(manifest, where, before)
    return manifest


def whole(dataset: Path) -> str:
    """The id of a dataset of which every byte is as its manifest says."""
    manifest = Manifest.load(dataset)
    manifest.check_files(dataset)
    for shard in manifest.shards:
        assert hashlib.sha256((dataset / shard.path).read_bytes()).hexdigest() == shard.sha256, shard.path
    assert Vocab.read(dataset / manifest.vocab_path).digest() == manifest.vocab_digest
    return manifest.dataset_id


@pytest.mark.parametrize("is_first", [True, False])
def test_readers_find_a_whole_dataset_after_a_power_cut(
    is_first: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = write_tiny_dataset(tmp_path / "template", num_sequences=50, num_shards=2)
    machine = tmp_path / "machine"
    machine.mkdir()
    old = None if is_first else prepare(machine / "data", template, 20).dataset_id
    with recorded(machine) as recording:
        new = prepare(machine / "data", template, 30).dataset_id

    def survives(restored: Path) -> str | None:
        dataset = restored / "data"
        if old or (dataset / FILE_NAME).exists():
            assert whole(dataset) in (old, new)
        prepare(dataset, template, 30)
        left = [path.name for path in dataset.iterdir() if path.name.startswith(PREFIX)]
        assert len(left) == 1, f"{left} are left"
        return None if whole(dataset) == new else "prepare has made another dataset"

    report = survived(recording, survives, tmp_path)
    for crash, image in recording.now().items():
        assert whole(restore(image, tmp_path / crash) / "data") == new, crash
    with capsys.disabled():
        print(f"\nprepare, {'the first' if is_first else 'a second'} dataset: {report}")
