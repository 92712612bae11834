"""Kinds of files to lie about: honest ones, made once by the project's own code, lies about copies, and who reads them.

Each kind's ``lie`` fills a folder and returns the command that reads it, with what may come of it.
"""

import hashlib
import io
import json
import math
import os
import re
import shutil
import signal
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lies
import lying
import numpy as np
import pyarrow.parquet as pq
import pytest
import retrain_tools
import tiny
import yaml
from lying import Random
from ranks import at_batch
from safetensors.numpy import load_file
from xxhash import xxh3_64_hexdigest

import jobs.retraining.registry
from jobs import retrain, session
from pipeline import manifest as manifest_command
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.shared.cli import command
from pipeline.shared.errors import InputError
from pipeline.shared.storage import Location
from training import evaluate, export, neighbors, train
from training.reading import remote
from training.runs import checkpoint, recorder, report_page, run_folder
from training.vectors.heldout import Heldout, losses
from training.vectors.word_vectors import Tables, Vectors

QUICK = "--dim 8 --device cpu --global-batch 64 --threads 1 --no-tensorboard"
EPOCHS = "2"
MODES = {"adam": "", "in place": "--sync-every 4 --optimizer rowwise_adagrad", "sgd in place": "--sync-every 4"}
ROW_GROUP_ROWS, NEGATIVES = 100, 2
Damage = Callable[[bytes, Random], bytes]


@contextmanager
def quick() -> Iterator[None]:
    """Without what takes time and has nothing to do with lies: pages, syncs, commits and networks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "write_pages", lambda *_: None)
        patch.setattr(run_folder, "_commit", lambda: None)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(remote, "FIRST_PAUSE_S", 0.001)
        retrain_tools.install(_Tools(), patch.setattr)
        patch.setattr(jobs.retraining.registry, "Registry", _Registry)
        yield


class _Tools(retrain_tools.Tools):
    """Children that refuse what they cannot do in one line."""

    def call(self, arguments: list[str], log: Path, lock: int | None) -> None:
        try:
            super().call(arguments, log, lock)
        except Exception as error:
            raise InputError(f"a child failed: {type(error).__name__}") from None


class _Registry(retrain_tools.FileRegistry):
    """A registry that refuses a version that is not whole."""

    def record(self, run_id: str, cycle: Path, vectors: Path) -> str:
        if not (vectors / "summary.json").is_file():
            raise InputError("the registry found no summary")
        return super().record(run_id, cycle, vectors)


def nothing_wrong(_: lies.Ended) -> str | None:
    return None


@dataclass(frozen=True)
class Case:
    """A lie that was told, in words; the command that reads it; and what is wrong with its success, if anything."""

    about: str
    main: Callable[[], None]
    arguments: list[str]
    judge: Callable[[lies.Ended], str | None] = nothing_wrong
    refused: Callable[[], str | None] = lambda: None
    codes: tuple[int, ...] = (0, 2)
    lines: int = 1
    """The most lines of error."""
    may_warn: bool = False


def change(path: Path, lie: Damage, rng: Random) -> str:
    path.write_bytes(lie(path.read_bytes(), rng))
    return f"{getattr(lie, '__name__', 'damage')} in {path.name}"


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage_one(folder: Path, rng: Random) -> str:
    """Damages a file, or swaps or removes files."""
    path, other = rng.choice(files_of(folder)), rng.choice(files_of(folder))
    match rng.choice(("bytes", "bytes", "bytes", "bytes", "swap", "remove", "folder")):
        case "swap":
            content = path.read_bytes()
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
            return f"{path.name} and {other.name} swapped"
        case "remove":
            path.unlink()
            return f"{path.name} removed"
        case "folder":
            path.unlink()
            path.mkdir()
            return f"{path.name} is a folder"
    return change(path, lying.damage, rng)


# Training


def train_flags(data: Path | str, output: Path, mode: str, *more: str) -> list[str]:
    return ["--data", str(data), "--output", str(output), *f"{QUICK} {MODES[mode]}".split(), "--epochs", EPOCHS, *more]


def honest(main: Callable[[], None], arguments: list[str], code: int = 0) -> str:
    ended = lies.call(main, arguments)
    assert ended.code == code, ended
    return ended.stdout


def vectors_are(output: Path, expected: bytes | None) -> Callable[[lies.Ended], str | None]:
    """The judge of a run: these vectors; or, if None, any that are finite."""

    def judge(_: lies.Ended) -> str | None:
        found = output / "vectors.safetensors"
        if expected is not None:
            return None if found.read_bytes() == expected else "other vectors"
        finite = all(np.isfinite(table).all() for table in load_file(found).values())
        return None if finite and (output / "summary.json").exists() else "vectors that are no numbers"

    return judge


def unfinished(output: Path) -> str | None:
    return "refused, and a finished run" if (output / "summary.json").exists() else None


class DatasetLies:
    """A dataset, read by training and verify."""

    def __init__(self, home: Path):
        self.data = home / "dataset"
        self.make()
        self.vectors = {}
        for mode in ("adam", "sgd in place"):
            honest(train.main, train_flags(self.data, home / f"of {mode}", mode))
            self.vectors[mode] = (home / f"of {mode}" / "vectors.safetensors").read_bytes()
        self.told = 0

    def make(self) -> None:
        write_honest(self.data)

    def lie(self, place: Path, rng: Random) -> Case:
        data, output = place / "data", place / "run"
        shutil.copytree(self.data, data)
        about, is_other = lie_in_dataset(data, rng)
        mode = rng.choice(sorted(self.vectors))
        reader = rng.choice(("train", "train", "verify", "memory"))
        if reader == "verify":
            damaged = about.endswith(".parquet") and "shard" in about and about.startswith("damage")
            changed = damaged and tiny.tree(data) != tiny.tree(self.data)
            wrong = (lambda _: "verify believes a damaged shard") if changed else nothing_wrong
            return Case(f"{about}, verified", manifest_command.main, ["verify", str(data)], wrong, lines=100)
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
            document = lying.lie_in(json.loads(path.read_bytes()), rng)
            if rng.random() < 0.9:
                right_id(document)
            path.write_bytes(lying.json_text(document, rng))
            return "the manifest", content_of(data) != before
        case "vocab":
            path = next(data.rglob("vocab.parquet"))
            about = change(path, lying.lie_in_table, rng)
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
                content = lying.lie_in_rows(path.read_bytes(), *args, rng)
            else:
                lie = lying.lie_in_pages if kind == "pages" else lying.lie_in_bodies
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
            "config": document["config"],
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
            content = lying.damage(path.read_bytes()[:-4], rng)
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
                self._write(folder, partial(lying.lie_in, rng=rng))
            case "tensors":
                about, is_other = change(folder / checkpoint.STATE, lying.lie_in_tensors, rng), True
                digest = xxh3_64_hexdigest((folder / checkpoint.STATE).read_bytes())
                self._write(folder, lambda body: {**body, "state_xxh3": digest})
            case "latest":
                odd = rng.choice((*lying.ODD_WORDS, "step-00000000", "../latest", "step-" + "9" * 300, "step-00000004"))
                about = f"latest names {odd[:50]!r}"
                (run / "checkpoints" / "latest").write_text(odd + rng.choice(("", "\n", "\n\n")))
            case _:
                about = change(run / "metrics.jsonl", lying.lie_in_json_lines, rng)
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


# Finished runs, and other files of vectors

PAIRS = "".join(f"w{a} w{b} {score}\n" for a, b, score in ((1, 2, 7.5), (3, 4, 1.25), (5, 6, 3), (2, 9, 9.5)))
ANALOGIES = ": first\nw1 w2 w3 w4\nw5 w6 w7 w8\n: second\nw2 w4 w6 w8\n"


def read_vectors(source: Path, place: Path, rng: Random) -> tuple[Callable[[], None], list[str], Any, Any]:
    """A command that reads vectors, its arguments, and its judges."""
    (place / "pairs").write_text(PAIRS)
    (place / "analogies").write_text(ANALOGIES)
    match rng.choice(("neighbors", "evaluate", "export")):
        case "neighbors":
            return neighbors.main, [str(source), "w1", "w2"], judge_neighbors, lambda: None
        case "evaluate":
            return evaluate.main, evaluate_flags(source, place), judge_evaluation, lambda: None
    form, output = rng.choice(("word2vec", "word2vec-binary", "projector")), place / "exported"
    flags = [str(source), "--format", form, "--output", str(output)]

    def judge(_: lies.Ended) -> str | None:
        if form == "projector":
            return None if output.stat().st_size else "an empty file"
        try:
            return None if len(Vectors.load(output)) else "no words"
        except InputError as error:
            return f"its export is refused: {error}"

    return export.main, flags, judge, lambda: "refused, and a file" if output.exists() else None


def evaluate_flags(source: Path, place: Path) -> list[str]:
    return [str(source), "--pairs", str(place / "pairs"), "--analogies", str(place / "analogies")]


def judge_neighbors(ended: lies.Ended) -> str | None:
    cosines = [float(found) for found in re.findall(r"cosine sim=(\S+): ", ended.stdout)]
    return None if cosines and all(abs(cosine) <= 1.001 for cosine in cosines) else "cosines that are none"


def judge_evaluation(ended: lies.Ended) -> str | None:
    found = json.loads(ended.stdout)
    rates = [found["analogies"]["accuracy"], *(abs(pair["spearman"]) for pair in found["pairs"])]
    return None if all(isinstance(rate, float) and 0 <= rate <= 1.001 for rate in rates) else "rates that are none"


class RunLies:
    """A finished run, read by all commands that take one."""

    def __init__(self, home: Path):
        self.data, self.run = home / "trained dataset", home / "finished"
        write_honest(self.data)
        honest(train.main, train_flags(self.data, self.run, "adam", "--log-every", "3"))
        shutil.rmtree(self.run / "checkpoints")

    def lie(self, place: Path, rng: Random) -> Case:
        run = shutil.copytree(self.run, place / "lying")
        makers: dict[str, Damage] = {
            "summary.json": lying.lie_in_json,
            "config.json": lying.lie_in_json,
            "metrics.jsonl": lying.lie_in_json_lines,
            "vectors.safetensors": lying.lie_in_tensors,
            "vocab.parquet": lying.lie_in_table,
        }
        if rng.random() < 0.3:
            about = damage_one(run, rng)
        else:
            name = rng.choice(sorted(makers))
            about = change(run / name, makers[name], rng)
        reader = rng.choice(("vectors", "vectors", "vectors", "report", "init"))
        if reader == "vectors":
            return Case(about, *read_vectors(run, place, rng))
        if reader == "report":
            return Case(about, report_page.main, [str(run), "--probe", "w1"], partial(judge_report, run))
        output = place / "run"
        flags = train_flags(self.data, output, "adam", "--init-from", str(run))
        return Case(about, train.main, flags, vectors_are(output, None), partial(unfinished, output))


def judge_report(run: Path, _: lies.Ended) -> str | None:
    page = (run / "report.html").read_text(encoding="utf-8")
    return "a page that is none" if len(page) < 10_000 or re.search(r"\bNaN\b", page) else None


class Word2vecLies:
    """word2vec's files."""

    def __init__(self, home: Path):
        self.files = {form: home / f"vectors.{form}" for form in ("word2vec", "word2vec-binary")}
        tables = tiny.random_model(40, 8, 0)
        tiny.write_tables(home / "to export", tables)
        for form, file in self.files.items():
            honest(export.main, [str(home / "to export"), "--format", form, "--output", str(file)])

    def lie(self, place: Path, rng: Random) -> Case:
        form = rng.choice(sorted(self.files))
        file = Path(shutil.copy(self.files[form], place / "vectors"))
        makers = (lying.damage, lying.lie_in_text, self.head) if form == "word2vec" else (lying.damage, self.head)
        about = change(file, rng.choice(makers), rng)
        return Case(f"{about} of {form}", *read_vectors(file, place, rng))

    @staticmethod
    def head(content: bytes, rng: Random) -> bytes:
        """Another first line."""
        numbers = [rng.choice((*map(str, lying.ODD_INTS), *lying.ODD_WORDS[:13], "40", "8")) for _ in range(2)]
        return " ".join(numbers).encode() + b"\n" + content.partition(b"\n")[2]


class QuestionLies:
    """Files of word pairs and of analogies, read by evaluate."""

    def __init__(self, home: Path):
        self.run = home / "asked"
        tiny.write_tables(self.run, tiny.random_model(40, 8, 0))

    def lie(self, place: Path, rng: Random) -> Case:
        (place / "pairs").write_text(PAIRS)
        (place / "analogies").write_text(ANALOGIES)
        about = change(place / rng.choice(("pairs", "analogies")), rng.choice((lying.damage, lying.lie_in_text)), rng)
        return Case(about, evaluate.main, evaluate_flags(self.run, place), judge_evaluation)


class EvaluationLies:
    """What evaluate has printed, read by report."""

    def __init__(self, home: Path):
        self.trained = RunLies(home / "evaluated")
        (home / "pairs").write_text(PAIRS)
        (home / "analogies").write_text(ANALOGIES)
        self.printed = honest(evaluate.main, evaluate_flags(self.trained.run, home))

    def lie(self, place: Path, rng: Random) -> Case:
        run, file = shutil.copytree(self.trained.run, place / "run"), place / "evaluation.json"
        file.write_text(self.printed)
        about = change(file, rng.choice((lying.damage, lying.lie_in_json, lying.lie_in_json)), rng)
        return Case(about, report_page.main, [str(run), "--evaluation", str(file)], partial(judge_report, run))


class HeldoutLies:
    """Held-out examples, of a published version and of a dataset."""

    def __init__(self, home: Path):
        self.data, self.published = home / "held out", home / "held out of"
        write_honest(self.data)
        right_manifest(
            self.data,
            lambda found: [
                shard.update(split="train" if shard["epoch"] else "heldout", epoch=0) for shard in found["shards"]
            ],
        )
        heldout = Heldout.of_dataset(self.data)
        tiny.write_tables(self.published, tiny.random_model(len(heldout.words), 8, 0))
        shutil.copy(next(self.data.rglob("vocab.parquet")), self.published / "vocab.parquet")
        heldout.write(self.published)

    def lie(self, place: Path, rng: Random) -> Case:
        tables = Tables.load(self.published)
        if rng.random() < 0.5:
            data = shutil.copytree(self.data, place / "data")
            about, _ = lie_in_dataset(data, rng)
            return Case(about, partial(self._losses, tables, Heldout.of_dataset, data), [])
        published = shutil.copytree(self.published, place / "published")
        if rng.random() < 0.3:
            about = damage_one(published, rng)
        else:
            name = rng.choice(("heldout.parquet", "heldout.parquet", "vocab.parquet"))
            about = change(published / name, lying.lie_in_table, rng)
        return Case(about, partial(self._losses, tables, Heldout.load, published), [])

    @staticmethod
    def _losses(tables: Tables, read: Callable[[Path], Heldout], where: Path) -> None:
        with command():
            found = losses(read(where), tables, tables)
            assert found is None or (math.isfinite(found.first) and found.first == found.second)


# Retraining


class ConfigLies:
    """Retraining's settings, read by status."""

    YAML = (
        "name: words\nworkspace: w\ncorpus:\n  input: [corpus.txt]\n  changed_by: content\nprepare: &p\n  window: 5\n"
        "  holdout: 0.01\ntrain: {dim: 8, epochs: 3, lr: 0.01}\nwarm_start:\n  epochs: 2\ngates:\n  overlap: 0.5\n"
        "  pairs: [pairs.txt]\nregistry:\n  if_unreachable: fail\nspark_submit: [--master, yarn]\nkeep: 3\n"
    )

    def __init__(self, home: Path):
        pass

    def lie(self, place: Path, rng: Random) -> Case:
        inner = place / "a" / "b" / "c"
        inner.mkdir(parents=True)
        os.chdir(inner)
        file = inner / "c.yaml"
        if rng.random() < 0.5:
            file.write_text(self.YAML)
            about = change(file, rng.choice((lying.damage, lying.lie_in_text, lying.lie_in_text)), rng)
        else:
            document = lying.lie_in(yaml.safe_load(self.YAML), rng)
            about = "a setting"
            file.write_bytes(rng.choice((as_yaml, lying.json_text))(document, rng))
        return Case(about, run_retrain, ["status", "--config", str(file)])


def as_yaml(document: Any, _: Random) -> bytes:
    with suppress(RecursionError):
        return yaml.safe_dump(document).encode(errors="replace")
    return b"[" * 5000


def run_retrain() -> None:
    session.run(retrain.main)


class WorkspaceLies:
    """A workspace with a published version, and a cycle that was judged and not published."""

    def __init__(self, home: Path):
        self.folder, place = home / "workspace", home / "place"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        os.chdir(place)
        config = {
            **{"name": "words", "workspace": "w", "corpus": {"input": "corpus.txt"}, "prepare": {"holdout": 0}},
            **{"train": {"dim": retrain_tools.DIM, "epochs": 3}},
            "gates": {"heldout_increase": None, "overlap": 0.5, "frequent_words": 20},
        }
        Path("c.yaml").write_text(yaml.safe_dump(config))
        Path("corpus.txt").write_text(("word " * 600)[:600])
        flags = ["--config", "c.yaml"]
        honest(run_retrain, ["run", *flags])
        Path("corpus.txt").write_text(("word " * 640)[:640])
        for step in ("plan", "prepare", "train", "evaluate"):
            honest(run_retrain, [step, *flags])
        shutil.copytree(place, self.folder, symlinks=True)

    def lie(self, place: Path, rng: Random) -> Case:
        shutil.copytree(self.folder, place, symlinks=True, dirs_exist_ok=True)
        workspace = place / "w"
        records = sorted(workspace.glob("cycles/*/*.json"))
        records += [workspace / "cycle.json", *workspace.glob("published/*/summary.json")]
        if rng.random() < 0.3:
            database = (workspace / "mlflow.db").rename(place / "mlflow.db")  # MLflow's own
            about = damage_one(workspace, rng)
            database.rename(workspace / "mlflow.db")
        else:
            path = rng.choice(records)
            about = f"{change(path, rng.choice((lying.damage, lying.lie_in_json, lying.lie_in_json)), rng)}"
        step = rng.choice(("status", "run", "run", "plan", "evaluate", "publish", "rollback"))
        codes = {"status": (0, 2), "run": (0, 1, 2, 4), "plan": (0, 2, 3), "evaluate": (0, 1, 2, 4)}

        def judge(ended: lies.Ended) -> str | None:
            if step in ("run", "publish") and ended.code == 0:
                try:
                    Tables.load(workspace / "current")
                except InputError as error:
                    return f"a version that cannot be read is published: {error}"
            return None

        return Case(
            f"{about}, {step}", run_retrain, [step, "--config", "c.yaml"], judge, codes=codes.get(step, (0, 1, 2))
        )


KINDS: dict[str, Callable[[Path], Any]] = {
    "dataset": DatasetLies,
    "checkpoint": CheckpointLies,
    "run": RunLies,
    "word2vec": Word2vecLies,
    "questions": QuestionLies,
    "evaluation": EvaluationLies,
    "heldout": HeldoutLies,
    "config": ConfigLies,
    "workspace": WorkspaceLies,
    "cache": CacheLies,
}
assert KINDS.keys() == lies.WEIGHTS.keys()
