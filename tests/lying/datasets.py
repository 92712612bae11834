"""Lies about datasets, shard caches and checkpoints, read by training and verify."""

import hashlib
import io
import json
import os
import shutil
import signal
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import oracles
import pyarrow.parquet as pq
import pytest
import tiny
from lying import makers
from lying.cases import (
    Case,
    change,
    damage_one,
    files_of,
    honest,
    judge_report,
    nothing_wrong,
    train_flags,
    unfinished,
    vectors_are,
)
from lying.makers import Random
from ranks import at_batch
from xxhash import xxh3_64_hexdigest

from pipeline import manifest as manifest_command
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.shared.errors import InputError
from pipeline.shared.storage import Location
from training import train
from training.reading import remote
from training.runs import checkpoint, report_page

ROW_GROUP_ROWS, NEGATIVES = 100, 2


class DatasetLies:
    """A dataset, on a disk or elsewhere, read by training, verify and report."""

    def __init__(self, home: Path):
        self.data = home / "dataset"
        write_honest(self.data)
        self.vectors = {}
        for mode in ("adam", "sgd in place"):
            honest(train.main, train_flags(self.data, home / f"of {mode}", mode))
            self.vectors[mode] = (home / f"of {mode}" / "vectors.safetensors").read_bytes()
        self.trained, self.told = home / "of adam", 0

    def lie(self, place: Path, rng: Random) -> Case:
        data, output = place / "data", place / "run"
        shutil.copytree(self.data, data)
        about, is_other = lie_in_dataset(data, rng)
        mode = rng.choice(sorted(self.vectors))
        reader = rng.choices(("train", "verify", "memory", "report"), (5, 2, 2, 1))[0]
        if reader == "verify":
            damaged = about.endswith(".parquet") and "shard" in about and about.startswith("damage")
            changed = damaged and tiny.tree(data) != tiny.tree(self.data)
            wrong = (lambda _: "verify believes a damaged shard") if changed else nothing_wrong
            return Case(f"{about}, verified", manifest_command.main, ["verify", str(data)], wrong, lines=100)
        if reader == "report":
            run = shutil.copytree(self.trained, place / "run")
            config = json.loads((run / "config.json").read_bytes())
            (run / "config.json").write_text(json.dumps({**config, "data": str(data)}))
            return Case(f"{about}, reported", report_page.main, [str(run)], partial(judge_report, run))
        where: Path | str = data
        if reader == "memory":
            self.told += 1
            where = f"memory://lies{self.told}"
            for path in files_of(data):
                Location.of(f"{where}/{path.relative_to(data)}").put(path.read_bytes())
        judge = vectors_are(output, None if is_other else self.vectors[mode])
        flags = train_flags(where, output, mode)
        return Case(f"{about}, {mode}, {reader}", train.main, flags, judge, partial(unfinished, output))


def write_honest(folder: Path) -> None:
    tiny.write_tiny_dataset(
        folder, 100, epochs=2, num_shards=2, row_group_rows=ROW_GROUP_ROWS, window=2, negatives=NEGATIVES
    )


def lie_in_dataset(data: Path, rng: Random) -> tuple[str, bool]:
    """What was done, and whether the dataset may be another valid one."""
    before = content_of(data)
    match rng.choice(("damage", "damage", "manifest", "manifest", "vocab", "rows", "pages", "pages", "bodies")):
        case "damage":
            return damage_one(data, rng), False
        case "manifest":
            path = data / "manifest.json"
            document = makers.lie_in(json.loads(path.read_bytes()), rng)
            if rng.random() < 0.9:
                right_id(document)
            path.write_bytes(makers.json_text(document, rng))
            return "the manifest", content_of(data) != before
        case "vocab":
            path = next(data.rglob("vocab.parquet"))
            about = change(path, makers.lie_in_table, rng)
            if rng.random() < 0.7:
                with suppress(Exception):
                    vocab = Vocab.read(path)
                    right_manifest(data, lambda found: found.update(vocab_digest=vocab.digest(), vocab_size=len(vocab)))
            return about, False
        case kind:
            manifest = Manifest.load(data)
            index = rng.randrange(len(manifest.shards))
            path = data / manifest.shards[index].path
            if kind == "rows":
                args = (ROW_GROUP_ROWS, NEGATIVES, manifest.vocab_size)
                content = makers.lie_in_rows(path.read_bytes(), *args, rng)
            else:
                lie = makers.lie_in_pages if kind == "pages" else makers.lie_in_bodies
                content = lie(path.read_bytes(), ROW_GROUP_ROWS, NEGATIVES, rng)
            path.write_bytes(content)
            rows = manifest.shards[index].rows
            if kind == "rows" and rng.random() < 0.8:
                rows = pq.read_metadata(io.BytesIO(content)).num_rows

            def right(found: Any) -> None:
                found["counts"]["examples"] += rows - manifest.shards[index].rows
                digest = hashlib.sha256(content).hexdigest()
                found["shards"][index].update(bytes=len(content), sha256=digest, rows=rows)

            right_manifest(data, right)
            return f"{kind} of {path.name}", kind != "pages"


def content_of(data: Path) -> Any:
    """What decides the rows that training reads, of a manifest that is accepted."""
    with suppress(InputError):
        found = Manifest.load(data)
        return found.config.epochs, [(shard.path, shard.split, shard.epoch) for shard in found.shards]
    return None


def right_manifest(data: Path, lie: Callable[[Any], object]) -> None:
    document = json.loads((data / "manifest.json").read_bytes())
    lie(document)
    right_id(document)
    (data / "manifest.json").write_text(json.dumps(document))


def right_id(document: Any) -> None:
    """Makes the manifest's digest of itself right, if it has what goes into it."""
    with suppress(KeyError, TypeError, IndexError, AttributeError):
        identity = {
            "format_version": document["format_version"],
            "config": oracles.identity(document["config"]),
            "vocab": document["vocab_digest"],
            "shards": [[shard[name] for name in ("split", "epoch", "rows", "sha256")] for shard in document["shards"]],
        }
        document["dataset_id"] = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class CacheLies:
    """A shard cache, read by training on a remote dataset."""

    def __init__(self, home: Path):
        self.data, self.cache, data = "memory://cached", home / "cache", home / "to cache"
        write_honest(data)
        for path in files_of(data):
            Location.of(f"{self.data}/{path.relative_to(data)}").put(path.read_bytes())
        flags = train_flags(self.data, home / "of cache", "adam", "--shard-cache", str(self.cache))
        honest(train.main, flags)
        self.vectors = (home / "of cache" / "vectors.safetensors").read_bytes()

    def lie(self, place: Path, rng: Random) -> Case:
        shutil.copytree(self.cache, place / "cache")
        remote.remote_shards.cache_clear()
        if rng.random() < 0.5:
            about = damage_one(place / "cache", rng)
        else:
            path = rng.choice(files_of(place / "cache"))
            content = makers.damage(path.read_bytes()[:-4], rng)
            path.write_bytes(content + zlib.crc32(content).to_bytes(4, "little"))
            about = f"{path.name} with the right CRC"
        flags = train_flags(self.data, place / "run", "adam", "--shard-cache", str(place / "cache"))
        return Case(about, train.main, flags, vectors_are(place / "run", self.vectors))


class CheckpointLies:
    """A run that was stopped, read by --resume."""

    def __init__(self, home: Path):
        self.data = home / "resumed dataset"
        write_honest(self.data)
        before = home / "before"
        honest(train.main, train_flags(self.data, before, "adam"))
        self.runs: dict[str, tuple[str, list[str], bytes, Path]] = {}
        warm = ["--init-from", str(before), "--freeze-epochs", "1"]
        for name, mode, begin in (("adam", "adam", []), ("in place", "in place", []), ("warm", "adam", warm)):
            whole, stopped = home / f"whole {name}", home / f"stopped {name}"
            honest(train.main, train_flags(self.data, whole, mode, "--log-every", "3", *begin))
            more = [*begin[2:], "--log-every", "3", "--checkpoint-every", "4"]
            with pytest.MonkeyPatch.context() as patch:
                at_batch(11, 0, partial(os.kill, os.getpid(), signal.SIGTERM), patch)
                start = train_flags(self.data, stopped, mode, *more, *begin[:2])
                honest(train.main, start, code=143)
            assert len(checkpoint.steps(stopped)) == 2
            self.runs[name] = mode, more, (whole / "vectors.safetensors").read_bytes(), stopped

    def lie(self, place: Path, rng: Random) -> Case:
        name = rng.choice(sorted(self.runs))
        mode, more, expected, stopped = self.runs[name]
        run = shutil.copytree(stopped, place / "run")
        steps = checkpoint.steps(run)
        step = rng.choice((steps[-1], steps[-1], steps[-1], steps[0]))
        folder = run / "checkpoints" / checkpoint.name_of(step)
        is_other = False
        match rng.choice(("damage", "record", "record", "tensors", "tensors", "latest", "metrics")):
            case "damage":
                about = damage_one(run, rng)
            case "record":
                about = "the record"
                self._write(folder, partial(makers.lie_in, rng=rng))
            case "tensors":
                about, is_other = change(folder / checkpoint.STATE, makers.lie_in_tensors, rng), True
                digest = xxh3_64_hexdigest((folder / checkpoint.STATE).read_bytes())
                self._write(folder, lambda body: {**body, "state_xxh3": digest})
            case "latest":
                odd = rng.choice(
                    (*makers.ODD_WORDS, "step-00000000", "../latest", "step-" + "9" * 300, "step-00000004")
                )
                about = f"latest names {odd[:50]!r}"
                (run / "checkpoints" / "latest").write_text(odd + rng.choice(("", "\n", "\n\n")))
            case _:
                about = change(run / "metrics.jsonl", makers.lie_in_json_lines, rng)
        resume = rng.choice((["--resume"], ["--resume", "auto"], [f"--resume={step}"]))
        flags = train_flags(self.data, run, mode, *more, *resume)
        judge = vectors_are(run, None if is_other else expected)
        return Case(
            f"{about} of {name}, step {step} of {steps}, {' '.join(resume)}",
            *(train.main, flags, judge, partial(unfinished, run)),
            may_warn="auto" in resume or name == "warm",  # there is no new word to train
        )

    @staticmethod
    def _write(folder: Path, lie: Callable[[Any], Any]) -> None:
        body = json.loads((folder / checkpoint.RECORD).read_bytes())
        body.pop("xxh3")
        body = lie(body)
        if isinstance(body, dict):
            body["xxh3"] = checkpoint._digest(body)
        (folder / checkpoint.RECORD).write_text(checkpoint._text(body))
