"""Laws of the manifest: one that was not written by prepare is refused in one line, even if its digests fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracles
import pytest
from tiny import write_tiny_dataset

from pipeline.dataset.manifest_file import FILE_NAME, Manifest, ManifestError
from pipeline.pipeline_config import PipelineConfig

Lie = Callable[[dict[str, Any]], object]


def rewrite(dataset: Path, lie: Lie) -> None:
    """Changes the manifest, and makes its digest right again."""
    path = dataset / FILE_NAME
    found = json.loads(path.read_bytes())
    lie(found)
    shards = [shard for shard in found["shards"] if shard] if isinstance(found["shards"], list) else []
    identity = {
        "format_version": found["format_version"],
        "config": oracles.identity(found["config"]),
        "vocab": found["vocab_digest"],
        "shards": [[shard[name] for name in ("split", "epoch", "rows", "sha256") if name in shard] for shard in shards],
    }
    found["dataset_id"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]
    path.write_text(json.dumps(found))


def of_shard(**change: object) -> Lie:
    return lambda found: found["shards"][1].update(change)


def of_counts(**change: object) -> Lie:
    return lambda found: found["counts"].update(change)


def top(**change: object) -> Lie:
    return lambda found: found.update(change)


def rows_that_fit_the_counts(rows: int) -> Lie:
    def lie(found: dict[str, Any]) -> None:
        found["counts"]["examples"] += rows - found["shards"][0]["rows"]
        found["shards"][0]["rows"] = rows

    return lie


LIES: dict[str, Lie] = {
    "no shards": top(shards=[]),
    "shards are a number": top(shards=3),
    "a shard is null": lambda found: found["shards"].append(None),
    "a shard twice": lambda found: found["shards"].append(found["shards"][0]),
    "one shard less": lambda found: found["shards"].pop(),
    "only held-out shards": lambda found: [shard.update(split="heldout") for shard in found["shards"]],
    "no rows": of_shard(rows=0),
    "negative rows": of_shard(rows=-1),
    "rows as text": of_shard(rows="12"),
    "rows as a float": of_shard(rows=5.0),
    "rows as a boolean": of_shard(rows=True),
    "a million million rows": of_shard(rows=10**12),
    "as many rows as int64 has": of_shard(rows=2**63 - 1),
    "a million million rows, and as many examples": rows_that_fit_the_counts(10**12),
    "one row more": lambda found: found["shards"][0].update(rows=found["shards"][0]["rows"] + 1),
    "no bytes": of_shard(bytes=0),
    "negative bytes": of_shard(bytes=-5),
    "another split": of_shard(split="test"),
    "an epoch that was not sampled": of_shard(epoch=1),
    "a negative epoch": of_shard(epoch=-1),
    "a digest that is none": of_shard(sha256="x"),
    "a path out of the dataset": of_shard(path="../other/shard.parquet"),
    "a path out of the generation": of_shard(path="gen-tiny/../other/shard.parquet"),
    "a path in another generation": of_shard(path="gen-other/train/epoch=0/shard-00001.parquet"),
    "an absolute path": of_shard(path="/etc/passwd"),
    "a path with NUL": of_shard(path="gen-tiny/a\0b"),
    "a path of two lines": of_shard(path="gen-tiny/a\nb"),
    "a URI": of_shard(path="s3://other/shard.parquet"),
    "a path with a query": of_shard(path="gen-tiny/a?x=1"),
    "an empty path": of_shard(path=""),
    "a generation outside": top(generation=".."),
    "a generation with a slash": top(generation="a/b"),
    "row groups of no rows": top(row_group_rows=0),
    "row groups of negative rows": top(row_group_rows=-1),
    "row groups of one row": top(row_group_rows=1),
    "row groups as text": top(row_group_rows="100"),
    "a vocabulary of one": top(vocab_size=1),
    "a negative vocabulary": top(vocab_size=-7),
    "a vocabulary beyond int32": top(vocab_size=2**31),
    "other lists": top(max_len=7),
    "another count of examples": of_counts(examples=1),
    "a negative count": of_counts(nulls=-1),
    "a count too many": of_counts(more=1),
    "no counts": top(counts=None),
    "an unknown setting": lambda found: found["config"].update(colour="red"),
    "a setting beyond its limits": lambda found: found["config"].update(window=0),
    "an unknown field": top(colour="red"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_with_the_right_digest_is_refused(tmp_path: Path, name: str) -> None:
    write_tiny_dataset(tmp_path, num_sequences=40)
    Manifest.load(tmp_path)
    rewrite(tmp_path, LIES[name])
    with pytest.raises(ManifestError) as caught:
        Manifest.load(tmp_path)
    line = str(caught.value)
    assert line.startswith(str(tmp_path))
    assert "\n" not in line
    assert len(line.removeprefix(str(tmp_path))) < 300
    assert "run prepare again" in line


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"3", b'{"format_version": 2, "format_version": 2}', b"[" * 10**5, b"\xff\xfe"],
)
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(ManifestError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("version", [None, 1, 3, "2", 2.5, [2], 10**40])
def test_another_format_version_is_refused(tmp_path: Path, version: object) -> None:
    write_tiny_dataset(tmp_path, num_sequences=40)
    rewrite(tmp_path, top(format_version=version))
    with pytest.raises(ManifestError, match="format version"):
        Manifest.load(tmp_path)


BEFORE = {
    **{"tokenizer": "whitespace", "lowercase": False, "window": 5, "negatives": 5, "min_count": 10, "max_vocab": None},
    **{"sample": 0.0001, "subsample_rule": "paper", "ns_exponent": 0.75, "num_shards": None, "epochs": 1},
    **{"holdout": 0.0, "max_sentence_length": 1000, "seed": 0},
}
"""The config in a manifest that was written before window_kind and window_side existed."""


def with_config(config: dict[str, Any], dataset_id: str, max_len: int = 60) -> dict[str, Any]:
    """A manifest of made-up contents."""
    nothing = dict.fromkeys(("nulls", "invalid_utf8_lines", "too_short", "long_tokens"), 0)
    counts = {"lines": 3, "sequences": 3, "tokens": 30, "unknown": 1, "subsampled": 2, "examples": 20, "pairs": 100}
    shard = {"path": "gen-0/s", "split": "train", "epoch": 0, "rows": 20, "bytes": 2000, "sha256": "b" * 64}
    return {
        **{"dataset_id": dataset_id, "generation": "gen-0", "config": config, "source_state": []},
        **{"counts": {**nothing, **counts}, "vocab_size": 9, "vocab_digest": "a" * 64, "max_len": max_len},
        **{"row_group_rows": 16384, "versions": {"numpy": "2.0"}, "shards": [shard], "format_version": 2},
    }


ID_BEFORE = "fabdc9f22dddec29c3730daffaa05d7d"


def test_a_dataset_keeps_its_id_when_settings_are_added(tmp_path: Path) -> None:
    """This one was computed before. If it changes, somebody's runs and vectors have lost their dataset."""
    (tmp_path / FILE_NAME).write_text(json.dumps(with_config(BEFORE, ID_BEFORE)))
    manifest = Manifest.load(tmp_path)
    assert manifest.dataset_id == ID_BEFORE
    assert manifest.config == PipelineConfig()
    manifest.save(tmp_path)
    assert Manifest.load(tmp_path) == manifest


@pytest.mark.parametrize("change", [{"window_kind": "fixed"}, {"window_side": "left"}, {"window": "sequence"}], ids=str)
def test_an_added_setting_changes_the_id_where_it_has_another_value(tmp_path: Path, change: dict[str, Any]) -> None:
    max_len = PipelineConfig(**change).max_len
    (tmp_path / FILE_NAME).write_text(json.dumps(with_config({**BEFORE, **change}, ID_BEFORE, max_len)))
    with pytest.raises(ManifestError, match="dataset_id does not fit"):
        Manifest.load(tmp_path)
