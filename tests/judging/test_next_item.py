"""Laws of training.judging.next_item, with loops over dictionaries as the oracle."""

import bz2
import gzip
import json
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import oracles
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Command
from scipy.sparse import csr_array
from tiny import random_model, write_tables

from pipeline.shared.errors import InputError
from training import evaluate
from training.judging import next_item as module
from training.judging import ranking
from training.judging.next_item import METRICS, NextItemResult, NextItemTask, ScoreResult
from training.judging.ranking import Score, ranked
from training.judging.sequences import read_sequences
from training.vectors import cosine
from training.vectors.word_vectors import Tables, Vectors

Float32 = npt.NDArray[np.float32]
Lines = list[list[str]]
SCORES = ("cosine", "model", "model_popularity", "popularity", "cooccurrence")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "BLOCK_QUERIES", 8)
    monkeypatch.setattr(cosine, "CHUNK_VALUES", 8 * 8)


def vectors_of(model: Tables) -> Vectors:
    return Vectors(model.words, model.center_VD, model.counts_V)


def next_item(vectors: Vectors, file: Path, context_VD: Float32 | None = None, **settings: Any) -> NextItemResult:
    return NextItemTask(file, **settings).judged(vectors, context_VD)


def whole_numbers(num_words: int, seed: int) -> Tables:
    """Vectors of small whole numbers, so that many products are equal, and exact; some words are equally frequent."""
    model, rng = random_model(num_words, 4, seed), np.random.default_rng(seed)
    center_VD, context_VD = rng.integers(-1, 2, (2, num_words, 4)).astype(np.float32)
    center_VD[0] = context_VD[0] = 0
    center_VD[5] = 0
    return replace(model, center_VD=center_VD, context_VD=context_VD, counts_V=1 + model.counts_V // 1000)


def random_lines(words: list[str], num: int, seed: int, repeat: bool) -> Lines:
    """Sequences of 0 to 12 items, frequent ones first, some unknown."""
    rng, known = np.random.default_rng(seed), [*words[1:], "<unk>", "unknown"]
    weights = 1 / np.arange(3, len(known) + 3)
    weights /= weights.sum()
    return [rng.choice(known, rng.integers(0, 13), replace=repeat, p=weights).tolist() for _ in range(num)]


def write(file: Path, lines: Lines) -> Path:
    file.write_text("".join(" ".join(line) + "\n" for line in lines))
    return file


def result_of(found: NextItemResult, name: str) -> ScoreResult:
    result = found.scores[name]
    assert result is not None
    return result


# The oracle


def scores_by_hand(model: Tables, last: list[str], counted: Lines) -> dict[str, dict[str, float]]:
    """Of every item, given the last ones of a history."""
    center, context = (
        dict(zip(model.words, table_VD.tolist(), strict=True)) for table_VD in (model.center_VD, model.context_VD)
    )
    items = model.words[1:]
    count_of = dict(zip(items, model.counts_V[1:].tolist(), strict=True))
    containing = {item: {number for number, line in enumerate(counted) if item in line} for item in items}

    def similarity(a: str, b: str) -> float:
        both = len(containing[a] & containing[b])
        return both / math.sqrt(len(containing[a]) * len(containing[b])) if both and a != b else 0.0

    def by_cosine(item: str) -> float:
        return sum(oracles.cosine(center[item], center[other]) for other in last if any(center[other]))

    def by_model(item: str) -> float:
        return float(sum(u * v for other in last for u, v in zip(center[other], context[item], strict=True)))

    return {
        "cosine": {item: by_cosine(item) if any(center[item]) else 0.0 for item in items},
        "model": {item: by_model(item) for item in items},
        "model_popularity": {item: by_model(item) / len(last) + 0.3 * math.log(count_of[item]) for item in items},
        "popularity": count_of,
        "cooccurrence": {item: sum(similarity(item, other) for other in last) for item in items},
    }


def by_hand(
    model: Tables, lines: Lines, counted: Lines, topk: int, num_last: int
) -> tuple[dict[str, list[float]], dict[str, int]]:
    """(hit rate, NDCG, MRR, coverage) of each score, and how many sequences were used and left out."""
    known = {*model.words[1:]}
    repeats = any(max(Counter(item for item in line if item in known).values(), default=0) > 1 for line in lines)
    counts = {"sequences": 0, "unknown": 0, "too_short": 0}
    metrics = {name: [0.0, 0.0, 0.0] for name in SCORES}
    shown: dict[str, set[str]] = {name: set() for name in SCORES}
    for line in lines:
        history = [item for item in line[:-1] if item in known]
        kind = "too_short" if len(line) < 2 else "sequences" if line[-1] in known and history else "unknown"
        counts[kind] += 1
        if kind != "sequences":
            continue
        for name, exact in scores_by_hand(model, history[-num_last:], counted).items():
            score_of = {item: round(score, 9) for item, score in exact.items() if repeats or item not in history}
            in_order = sorted(score_of, key=lambda item: -score_of[item])  # stable
            shown[name] |= {*in_order[:topk]}
            ranks = [rank for rank, item in enumerate(in_order, 1) if score_of[item] == score_of[line[-1]]]
            of_ranks = [((r <= topk), (r <= topk) / math.log2(r + 1), 1 / r) for r in ranks]
            for place, values in enumerate(zip(*of_ranks, strict=True)):
                metrics[name][place] += sum(values) / len(ranks)
    return {
        name: [*(total / counts["sequences"] for total in totals), len(shown[name]) / len(known)]
        for name, totals in metrics.items()
    }, counts


def assert_agrees(
    found: NextItemResult, expected: tuple[dict[str, list[float]], dict[str, int]], names: tuple[str, ...] = SCORES
) -> None:
    metrics, counts = expected
    assert {name: getattr(found, name) for name in counts} == counts
    assert found.coverage == counts["sequences"] / (counts["sequences"] + counts["unknown"])
    for name in names:
        result = result_of(found, name)
        values = [result.hit_rate.value, result.ndcg.value, result.mrr.value, result.catalogue_coverage]
        assert values == pytest.approx(metrics[name], abs=1e-9), name


@pytest.mark.parametrize("repeat", [False, True], ids=["seen left out", "seen may be recommended"])
@pytest.mark.parametrize(("topk", "num_last"), [(1, 1), (7, 3), (24, 50)])
@pytest.mark.parametrize(
    ("make", "names"),
    [
        pytest.param(partial(random_model, 41, 5), SCORES, id="vectors of any numbers"),
        # Cosines of different vectors that are equal on paper are rounded differently.
        pytest.param(partial(whole_numbers, 41), ("model", "popularity", "cooccurrence"), id="many equal scores"),
    ],
)
def test_metrics_are_those_of_loops(
    tmp_path: Path,
    small_blocks: None,
    make: Callable[[int], Tables],
    names: tuple[str, ...],
    topk: int,
    num_last: int,
    repeat: bool,
) -> None:
    """With unknown items, sequences that are too short, a vector of zeros, and several blocks and chunks."""
    model = make(topk)
    lines = random_lines(model.words, 70, topk, repeat)
    # Two items have the same cosine to the mean of both, on paper.
    lines = [line for line in lines if len({*line[:-1]} & {*model.words[1:]}) != 2]
    found = next_item(
        vectors_of(model), write(tmp_path / "items", lines), model.context_VD, topk=topk, last=num_last, ns_exponent=0.3
    )
    assert found.seen == ("may be recommended" if repeat else "left out")
    assert_agrees(found, by_hand(model, lines, [line[:-1] for line in lines], topk, num_last), names)


def test_cooccurrences_are_those_of_the_history(tmp_path: Path) -> None:
    """Which may have items that the evaluated sequences lack, and repeat items, which changes nothing."""
    model = random_model(41, 5, 0)
    lines = random_lines(model.words, 60, 0, repeat=False)
    counted = random_lines(model.words, 200, 1, repeat=True)
    file, history = write(tmp_path / "items", lines), write(tmp_path / "history", counted)
    found = next_item(vectors_of(model), file, model.context_VD, history=history, topk=5, last=3, ns_exponent=0.3)
    assert found.seen == "left out"
    assert_agrees(found, by_hand(model, lines, counted, 5, 3))


def test_metrics_of_sequences_have_the_means_of_the_report_and_zeros_for_what_is_unknown(tmp_path: Path) -> None:
    model = random_model(41, 5, 0)
    lines = random_lines(model.words, 60, 0, repeat=False)
    vectors, known = vectors_of(model), {*model.words[1:]}
    task = NextItemTask(write(tmp_path / "items", lines), topk=5)
    long = [line for line in lines if len(line) >= 2]
    is_used = [line[-1] in known and bool({*line[:-1]} & known) for line in long]
    assert 0 < sum(is_used) < len(long)
    for name in SCORES:
        values_SM = task.metrics_of(name, vectors, model.context_VD)
        found = result_of(task.judged(vectors, model.context_VD), name)
        expected = [getattr(found, metric).value for metric in METRICS]
        assert values_SM[is_used].mean(0) == pytest.approx(expected, abs=1e-12)
        assert not values_SM[~np.array(is_used)].any()
        of_one = NextItemTask(write(tmp_path / "one", [long[is_used.index(True)]]), topk=5)
        if name != "cooccurrence":  # which counts the file
            first = of_one.metrics_of(name, vectors, model.context_VD)
            assert values_SM[is_used.index(True)] == pytest.approx(first[0])
    with pytest.raises(InputError, match="model: found no context table"):
        task.metrics_of("model", vectors)


# Laws


@pytest.mark.parametrize("repeat", [False, True])
def test_popularity_recommends_what_a_counter_does(tmp_path: Path, repeat: bool) -> None:
    model = random_model(41, 5, 0)
    lines = [line for line in random_lines(model.words[:-2], 300, 0, repeat) if len(line) > 1]
    order = [
        word for word, _ in Counter(dict(zip(model.words[1:], model.counts_V[1:].tolist(), strict=True))).most_common()
    ]
    known = [(line[:-1], line[-1]) for line in lines if line[-1] in order and {*line[:-1]} & {*order}]
    lists = [[item for item in order if repeat or item not in history][:10] for history, _ in known]
    hits = sum(target in top for (_, target), top in zip(known, lists, strict=True))
    result = result_of(next_item(vectors_of(model), write(tmp_path / "items", lines)), "popularity")
    assert result.hit_rate.value == pytest.approx(hits / len(known), abs=1e-12)
    without_counts = Vectors(model.words, model.center_VD)
    assert result_of(next_item(without_counts, tmp_path / "items"), "popularity") == result


def test_planted_vectors_are_always_right(tmp_path: Path) -> None:
    """Two sequences of 20 items each in a circle, whose centers predict the next item's context."""
    num, rng = 40, np.random.default_rng(0)
    model = random_model(num + 1, num, 0)
    model.context_VD[1:] = np.eye(num)
    model.center_VD[1:] = np.roll(np.eye(num), 1, axis=1)
    starts = rng.integers(1, num - 8, 50)
    write(tmp_path / "items", [[f"w{start + step}" for step in range(8)] for start in starts])
    found = next_item(vectors_of(model), tmp_path / "items", model.context_VD, topk=1)
    model_result = result_of(found, "model")
    for mean in (model_result.hit_rate, model_result.ndcg, model_result.mrr):
        assert (mean.value, mean.low, mean.high) == (1, 1, 1)
    assert result_of(found, "cosine").hit_rate.value < 1


def test_random_vectors_hit_as_often_as_chance(tmp_path: Path) -> None:
    """k of the items that are not in the history, to four standard errors."""
    model, rng = random_model(101, 8, 0), np.random.default_rng(1)
    lines = [rng.choice(model.words[1:], 6, replace=False).tolist() for _ in range(4000)]
    found = next_item(vectors_of(model), write(tmp_path / "items", lines), model.context_VD, last=3)
    chance = 10 / 95
    for name in ("cosine", "model", "popularity"):
        error = math.sqrt(chance * (1 - chance) / 4000)
        assert result_of(found, name).hit_rate.value == pytest.approx(chance, abs=4 * error), name
    assert result_of(found, "cosine").catalogue_coverage == 1
    assert result_of(found, "popularity").catalogue_coverage < 0.2


@pytest.mark.parametrize("value", [0.0, 0.1])
def test_equal_scores_of_all_items_are_chance(tmp_path: Path, value: float, small_blocks: None) -> None:
    """Neither ties nor how BLAS rounds may favour the target: 30 numbers 0.1 have no exact sum of squares."""
    model = random_model(61, 30, 0)
    model.center_VD[1:] = model.context_VD[1:] = value
    lines = [[f"w{1 + start % 60}", f"w{1 + (start * 7 + 1) % 60}"] for start in range(60)]
    lines = [line for line in lines if line[0] != line[1]]
    found = next_item(vectors_of(model), write(tmp_path / "items", lines), model.context_VD)
    for name in ("cosine", "model"):
        assert result_of(found, name).hit_rate.value == pytest.approx(10 / 59), name


def test_a_repeated_item_anywhere_lets_seen_items_be_recommended(tmp_path: Path) -> None:
    model = random_model(41, 5, 0)
    vectors = vectors_of(model)
    assert next_item(vectors, write(tmp_path / "a", [["w1", "w2"], ["w1", "x", "x", "w3"]])).seen == "left out"
    found = next_item(vectors, write(tmp_path / "b", [["w1", "w2"], ["w3", "w3"]]), topk=1, last=1)
    assert found.seen == "may be recommended"
    assert result_of(found, "cosine").hit_rate.value >= 0.5  # w3 is nearest to itself


def test_top_items_are_those_of_a_stable_sort(small_blocks: None) -> None:
    """Over several chunks, with many equal scores, and lists that are longer than what may be recommended."""
    rng = np.random.default_rng(0)
    scores_QI = rng.integers(0, 5, (30, 100)).astype(np.float32)
    targets_Q = np.sort(rng.integers(0, 100, 30))
    left_out_QI = rng.random((30, 100)) < 0.3
    left_out_QI[3] = True
    left_out_QI[np.arange(30), targets_Q] = False
    score = Score(lambda chunk: lambda block: scores_QI[block, chunk].copy(), 1)
    for topk in (1, 3, 20):
        found = ranked(score, targets_Q, csr_array(left_out_QI), topk)
        for row in range(30):
            allowed = [item for item in range(100) if not left_out_QI[row, item]]
            top = sorted(allowed, key=lambda item: -scores_QI[row, item])[:topk]
            assert found.top_QK[row].tolist() == top + [-1] * (topk - len(top))


def test_intervals_cover_the_mean_in_about_95_of_100_draws() -> None:
    covered = 0
    for seed in range(60):
        values_QM = (np.random.default_rng(seed).random((300, 1)) < 0.2).astype(float)
        low_M, high_M = module._interval(values_QM)
        covered += bool(low_M[0] <= 0.2 <= high_M[0])
    assert 51 <= covered < 60  # of Binomial(60, 0.95), 51 or more with a probability of 99.8 %


def test_the_interval_of_a_mean_is_nearly_that_of_the_normal_distribution() -> None:
    values_Q = np.random.default_rng(0).random(2000)
    low_M, high_M = module._interval(values_Q[:, None])
    half = 1.96 * values_Q.std() / math.sqrt(2000)
    assert (low_M[0], high_M[0]) == pytest.approx((values_Q.mean() - half, values_Q.mean() + half), abs=0.15 * half)


# Files

LINES = [["a", "b", "c"], [], ["a"], ["b", "é", "7"]]
TEXT = "a b\tc\r\n\n a \nb é 7\n"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(TEXT.encode(), id="text"),
        pytest.param(TEXT.rstrip("\n").encode(), id="no end of line"),
        pytest.param(b"\xef\xbb\xbf" + TEXT.encode(), id="byte order mark"),
        pytest.param(TEXT.replace(" ", "\u3000").encode(), id="Unicode blanks"),
        pytest.param(gzip.compress(TEXT.encode()), id="gzip"),
        pytest.param(bz2.compress(TEXT.encode()), id="bzip2"),
    ],
)
def test_sequences_are_the_same_however_they_are_written(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "items").write_bytes(content)
    found = read_sequences(tmp_path / "items", {"a": 1, "b": 2, "7": 3})
    assert (found.rows_N.tolist(), found.lengths_S.tolist()) == ([1, 2, 0, 1, 2, 0, 3], [3, 0, 1, 3])


@pytest.mark.parametrize(
    "column",
    [
        pytest.param(pa.array(LINES), id="lists"),
        pytest.param(pa.array(LINES, pa.large_list(pa.large_string())), id="large lists"),
        pytest.param(pa.array(LINES, pa.list_(pa.dictionary(pa.int32(), pa.string()))), id="dictionaries"),
        pytest.param(pa.array([["a", None, "b", "c"], None, ["a", ""], LINES[3]]), id="nulls"),
        pytest.param(pa.array([" ".join(line) for line in LINES]), id="strings"),
    ],
)
def test_sequences_of_parquet_are_those_of_text(tmp_path: Path, column: pa.Array) -> None:
    pq.write_table(pa.table({"other": [1, 2, 3, 4], "items": column}), tmp_path / "items")
    found = read_sequences(tmp_path / "items", {"a": 1, "b": 2, "7": 3}, "items")
    assert (found.rows_N.tolist(), found.lengths_S.tolist()) == ([1, 2, 0, 1, 2, 0, 3], [3, 0, 1, 3])


def test_integers_of_parquet_are_items(tmp_path: Path) -> None:
    pq.write_table(pa.table({"items": [[1, 22], [None, 3]]}), tmp_path / "items")
    assert read_sequences(tmp_path / "items", {"1": 1, "22": 2}, "items").rows_N.tolist() == [1, 2, 0]


# The command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_tables(tmp_path / "run", random_model(21, 5, 0))
    return tmp_path / "run"


def test_the_report_has_next_items_beside_the_rest(call: Command, run: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "items", [["w1", "w2", "w3"], ["w4", "w5"], ["w6"], ["w7", "x"], ["x", "w7"], []])
    ended = call(evaluate.main, run, "--next-item", file, "--topk", 3, "--last", 2)
    assert (ended.code, ended.stderr) == (0, "")
    report = json.loads(ended.stdout)
    assert (report["pairs"], report["analogies"]) == ([], None)
    found = report["next_item"]
    scores = found.pop("scores")
    assert found == {
        "file": str(file),
        "topk": 3,
        "last": 2,
        "items": 20,
        "seen": "left out",
        "sequences": 2,
        "unknown": 2,
        "too_short": 2,
        "coverage": 0.5,
    }
    assert tuple(scores) == SCORES
    for score in scores.values():
        assert [*score] == ["hit_rate", "ndcg", "mrr", "catalogue_coverage"]
        assert all(0 <= score[name]["low"] <= score[name]["value"] <= score[name]["high"] <= 1 for name in [*score][:3])
    again = call(evaluate.main, run, "--next-item", file, "--topk", 3, "--last", 2)
    assert again.stdout == ended.stdout


def test_a_file_of_vectors_has_no_score_of_the_model(call: Command, tmp_path: Path) -> None:
    (tmp_path / "vectors").write_text("3 2\na 1 0\nb 1 1\nc 0 1\n")
    file = write(tmp_path / "items", [["a", "b"], ["c", "a"]])
    ended = call(evaluate.main, tmp_path / "vectors", "--next-item", file, "--topk", 1)
    scores: dict[str, Any] = json.loads(ended.stdout)["next_item"]["scores"]
    assert [name for name, score in scores.items() if score is None] == ["model", "model_popularity"]


def test_parquet_is_read_on_both_sides(call: Command, run: Path, tmp_path: Path) -> None:
    lines = [["w1", "w2", "w3"], ["w4", "w5"]]
    pq.write_table(pa.table({"items": lines}), tmp_path / "items.parquet")
    file = write(tmp_path / "items", lines)
    column = "--next-item", tmp_path / "items.parquet", "--history", tmp_path / "items.parquet", "--column", "items"
    found = [
        json.loads(call(evaluate.main, run, *flags).stdout)
        for flags in (column, ("--next-item", file, "--history", file))
    ]
    for report in found:
        del report["next_item"]["file"]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"", "0 of 0 sequences 20 items expected 1", id="empty"),
        pytest.param(b"w1\n\nw2\n", "0 of 0 sequences", id="too short"),
        pytest.param(b"a b\nc w1\nw1 <unk>\n", "0 of 3 sequences known corpus", id="all unknown"),
        pytest.param(b"w1 w2\nw1 w\xfc\n", ":2: not UTF-8 convert", id="Latin-1"),
        pytest.param("w1 w2\n".encode("utf-16"), "UTF-16 iconv", id="UTF-16"),
        pytest.param(gzip.compress(b"w1 w2\n" * 99)[:-9], "cannot be decompressed", id="cut gzip"),
        pytest.param(b"PK\3\4", "zip unpack", id="zip"),
        pytest.param(b"PAR1\x15\4", "Parquet --column", id="Parquet"),
    ],
)
@pytest.mark.parametrize("flag", ["--next-item", "--history"])
def test_files_without_sequences_are_refused(
    call: Command, run: Path, tmp_path: Path, content: bytes, words: str, flag: str
) -> None:
    (tmp_path / "bad").write_bytes(content)
    good = ["--next-item", write(tmp_path / "good", [["w1", "w2"]])] if flag == "--history" else []
    ended = call(evaluate.main, run, *good, flag, tmp_path / "bad")
    if flag == "--history" and "0 of" in words:  # a history may be empty: it is a baseline's
        assert ended.code == 0
    else:
        ended.assert_refused(str(tmp_path / "bad"), *words.replace("known", "").split())
        assert ended.stdout == ""


@pytest.mark.parametrize(
    ("column", "words"),
    [
        pytest.param({"other": [["w1", "w2"]]}, "--column items not in other", id="no such column"),
        pytest.param({"items": [1.5]}, "--column items double lists of strings", id="numbers"),
        pytest.param({"items": [[1.5]]}, "--column items list double", id="lists of floats"),
        pytest.param({"items": [{"a": 1}]}, "--column items struct", id="structs"),
        pytest.param({"items": [7]}, "--column items int64", id="integers without lists"),
        pytest.param(None, "cannot be read as Parquet leave --column out", id="text"),
    ],
)
def test_parquet_without_sequences_is_refused(
    call: Command, run: Path, tmp_path: Path, column: dict[str, list[Any]] | None, words: str
) -> None:
    file = tmp_path / "items"
    if column is None:
        file.write_text("w1 w2\n")
    else:
        pq.write_table(pa.table(column), file)
    call(evaluate.main, run, "--next-item", file, "--column", "items").assert_refused(str(file), *words.split())


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--topk 0", "--topk found 0 1 or more"),
        ("--last 0", "--last found 0 1 or more"),
        ("--topk 20", "--topk found 20 fewer than the 20 items"),
        ("--topk ten", "--topk ten"),
        ("--ns-exponent 5", "--ns-exponent found 5 a number from -4 to 4"),
        ("--ns-exponent nan", "--ns-exponent found nan"),
    ],
)
def test_numbers_that_cannot_be_are_refused(call: Command, run: Path, tmp_path: Path, flags: str, words: str) -> None:
    file = write(tmp_path / "items", [["w1", "w2"]])
    call(evaluate.main, run, "--next-item", file, *flags.split()).assert_refused(*words.split())


@pytest.mark.parametrize("flag", ["--history", "--column"])
def test_flags_without_effect_are_refused(call: Command, run: Path, flag: str) -> None:
    call(evaluate.main, run, "--pairs", "x", flag, "y").assert_refused(flag, "found y", "--next-item")


@pytest.mark.parametrize("flag", ["--next-item", "--history"])
@pytest.mark.parametrize(("name", "words"), [("none", "No such file"), ("", "Is a directory"), ("x" * 300, "too long")])
def test_files_that_cannot_be_read_are_named(
    call: Command, run: Path, tmp_path: Path, flag: str, name: str, words: str
) -> None:
    good = ["--next-item", write(tmp_path / "good", [["w1", "w2"]])] if flag == "--history" else []
    call(evaluate.main, run, *good, flag, tmp_path / name).assert_refused(str(tmp_path / name), words)


def test_products_that_do_not_fit_into_float32_are_refused(call: Command, tmp_path: Path) -> None:
    model = random_model(21, 5, 0)
    write_tables(
        tmp_path / "long", replace(model, center_VD=model.center_VD * 1e30, context_VD=model.context_VD * 1e30)
    )
    file = write(tmp_path / "items", [["w1", "w2"]])
    call(evaluate.main, tmp_path / "long", "--next-item", file).assert_refused("too long", "scale the vectors")


def test_a_history_of_other_items_is_refused(call: Command, tmp_path: Path) -> None:
    """A baseline that knows none of the items would look poor."""
    run = tmp_path / "run"
    write_tables(run, random_model(21, 4, 0))
    files = [write(tmp_path / name, [words]) for name, words in (("good", ["w1", "w2"]), ("other", ["x", "y"]))]
    ended = call(evaluate.main, run, "--next-item", files[0], "--history", files[1])
    ended.assert_refused(str(files[1]), "none of the 20 items")
