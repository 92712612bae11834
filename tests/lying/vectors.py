"""Lies about finished runs, other files of vectors, and what they are evaluated on."""

import json
import math
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lies
import tiny
from lying import makers
from lying.cases import Case, Damage, change, damage_one, honest, judge_report, train_flags, unfinished, vectors_are
from lying.datasets import lie_in_dataset, right_manifest, write_honest
from lying.makers import Random

from pipeline.shared.cli import command
from pipeline.shared.errors import InputError
from training import evaluate, export, neighbors, train
from training.judging.heldout import Heldout, losses
from training.runs import report_page
from training.vectors.word_vectors import Tables, Vectors

PAIRS = "".join(f"w{a} w{b} {score}\n" for a, b, score in ((1, 2, 7.5), (3, 4, 1.25), (5, 6, 3), (2, 9, 9.5)))
ITEMS = "w1 w2 w3\nw4 w5 w6 w7\nw8 w9 w1\n"
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


def judge_next_items(ended: lies.Ended) -> str | None:
    scores = json.loads(ended.stdout)["next_item"]["scores"].values()
    rates = [score[name]["value"] for score in scores for name in ("hit_rate", "ndcg", "mrr")]
    return judge_evaluation(ended) if all(0 <= rate <= 1 for rate in rates) else "rates that are none"


class RunLies:
    """A finished run, read by all commands that take one."""

    def __init__(self, home: Path):
        self.data, self.run = home / "trained dataset", home / "finished"
        write_honest(self.data)
        honest(train.main, train_flags(self.data, self.run, "adam", "--log-every", "3"))
        shutil.rmtree(self.run / "checkpoints")

    def lie(self, place: Path, rng: Random) -> Case:
        run = shutil.copytree(self.run, place / "lying")
        ways: dict[str, Damage] = {
            "summary.json": makers.lie_in_json,
            "config.json": makers.lie_in_json,
            "metrics.jsonl": makers.lie_in_json_lines,
            "vectors.safetensors": makers.lie_in_tensors,
            "vocab.parquet": makers.lie_in_table,
        }
        if rng.random() < 0.3:
            about = damage_one(run, rng)
        else:
            name = rng.choice(sorted(ways))
            about = change(run / name, ways[name], rng)
        reader = rng.choices(("vectors", "init", "report"), (5, 2, 1))[0]  # a report takes a fifth of a second
        if reader == "vectors":
            return Case(about, *read_vectors(run, place, rng))
        if reader == "report":
            return Case(about, report_page.main, [str(run), "--probe", "w1"], partial(judge_report, run))
        output = place / "run"
        flags = train_flags(self.data, output, "adam", "--init-from", str(run))
        return Case(about, train.main, flags, vectors_are(output, None), partial(unfinished, output))


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
        ways = (makers.damage, self.head, *((makers.lie_in_text,) if form == "word2vec" else ()))
        about = change(file, rng.choice(ways), rng)
        # Words with bytes that are not UTF-8 are read, and a warning tells their number.
        return Case(f"{about} of {form}", *read_vectors(file, place, rng), may_warn=True)

    @staticmethod
    def head(content: bytes, rng: Random) -> bytes:
        """Another first line."""
        numbers = [rng.choice((*map(str, makers.ODD_INTS), *makers.ODD_WORDS[:13], "40", "8")) for _ in range(2)]
        return " ".join(numbers).encode() + b"\n" + content.partition(b"\n")[2]


class QuestionLies:
    """Files of word pairs, of analogies and of sequences, read by evaluate."""

    def __init__(self, home: Path):
        self.run = home / "asked"
        tiny.write_tables(self.run, tiny.random_model(40, 8, 0))

    def lie(self, place: Path, rng: Random) -> Case:
        texts = {"pairs": PAIRS, "analogies": ANALOGIES, "items": ITEMS}
        for name, text in texts.items():
            (place / name).write_text(text)
        about = change(place / rng.choice(sorted(texts)), rng.choice((makers.damage, makers.lie_in_text)), rng)
        flags = [*evaluate_flags(self.run, place), "--next-item", str(place / "items")]
        return Case(about, evaluate.main, flags, judge_next_items)


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
        about = change(file, rng.choice((makers.damage, makers.lie_in_json, makers.lie_in_json)), rng)
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
            about = change(published / name, makers.lie_in_table, rng)
        return Case(about, partial(self._losses, tables, Heldout.load, published), [])

    @staticmethod
    def _losses(tables: Tables, read: Callable[[Path], Heldout], where: Path) -> None:
        with command():
            found = losses(read(where), tables, tables)
            assert found is None or (math.isfinite(found.first) and found.first == found.second)
