"""The study of negative sampling: every way draws from the law, and what bends it is computed as counting finds it."""

import re
from fractions import Fraction
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Command
from gensim.models import Word2Vec
from tiny import write_tiny_dataset

from benchmarks import negative_sampling
from benchmarks.noise_laws import avoiding, fit, inclusion, pooled
from benchmarks.rivals.noise_ways import (
    WAYS,
    Way,
    choices,
    cumulative_table,
    noise_law,
    without_replacement,
    zipf_counts,
)
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab

COUNTS_V = zipf_counts(50, top=5000)
WITH_REPLACEMENT = [way for way in WAYS if not way.reads_all]


@pytest.mark.parametrize("way", WITH_REPLACEMENT, ids=lambda way: way.name)
def test_every_way_with_replacement_draws_from_the_law_and_from_no_other(way: Way) -> None:
    words = way.set_up(COUNTS_V, 3)(100_000)
    assert (words.min(), words.max(), words.size) == (1, 50, 100_000)
    counts_V = np.bincount(words - 1, minlength=50)
    assert fit(counts_V, noise_law(COUNTS_V)).p > 1e-4
    for wrong in (noise_law(COUNTS_V, 0.72), np.roll(noise_law(COUNTS_V), 1)):
        assert fit(counts_V, wrong).p < 1e-4


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.name)
def test_a_seed_draws_the_same_and_a_second_call_others(way: Way) -> None:
    draw, again, other = way.set_up(COUNTS_V, 3), way.set_up(COUNTS_V, 3), way.set_up(COUNTS_V, 4)
    first = draw(1000).tolist()
    assert first == again(1000).tolist()
    assert first != draw(1000).tolist()
    assert first != other(1000).tolist()


def test_choices_go_on_in_the_middle_of_what_is_cached() -> None:
    in_one, in_parts = choices(COUNTS_V, 0), choices(COUNTS_V, 0)
    assert in_one(25_000).tolist() == [word for num in (9_999, 2, 14_999) for word in in_parts(num).tolist()]


def test_the_cumulative_table_is_gensims() -> None:
    model = Word2Vec(min_count=1)
    model.build_vocab_from_freq({f"w{word}": int(count) for word, count in enumerate(COUNTS_V)})
    assert cumulative_table(COUNTS_V).tolist() == model.cum_table.tolist()


def test_draws_without_replacement_are_different_words_and_do_not_fit_the_law() -> None:
    words_NK = without_replacement(COUNTS_V, 0)(25_000).reshape(-1, 5)
    assert all(len(set(row)) == 5 for row in words_NK.tolist())
    counts_V = np.bincount(words_NK.ravel() - 1, minlength=50)
    assert fit(counts_V, noise_law(COUNTS_V)).p < 1e-20
    assert fit(counts_V, inclusion(noise_law(COUNTS_V), 5) / 5).p > 1e-4


def test_one_word_without_replacement_is_from_the_law() -> None:
    law_V = noise_law(COUNTS_V)
    words = without_replacement(COUNTS_V, 0, num_negatives=1)(10_000)
    assert fit(np.bincount(words - 1, minlength=50), law_V).p > 1e-4
    np.testing.assert_allclose(inclusion(law_V, 1), law_V, rtol=1e-9)


@pytest.mark.parametrize(
    ("law", "num_negatives"), [([8, 4, 2, 1], 2), ([8, 4, 2, 1], 3), ([1, 1, 1, 1], 2), ([90, 6, 3, 2, 1], 4)]
)
def test_inclusion_is_that_of_every_order_of_draws(law: list[int], num_negatives: int) -> None:
    chances = [Fraction(0)] * len(law)
    for order in permutations(range(len(law)), num_negatives):
        left, chance = Fraction(sum(law)), Fraction(1)
        for word in order:
            chance *= law[word] / left
            left -= law[word]
        for word in order:
            chances[word] += chance
    found = inclusion(np.array(law) / sum(law), num_negatives)
    np.testing.assert_allclose(found, [float(chance) for chance in chances], rtol=1e-8)
    assert sum(chances) == num_negatives


def test_inclusion_of_many_words_sums_to_k_and_is_even_for_an_even_law() -> None:
    assert inclusion(noise_law(zipf_counts(400)), 5).sum() == pytest.approx(5, rel=1e-9)
    np.testing.assert_allclose(inclusion(np.full(200, 1 / 200), 3), 3 / 200, rtol=1e-9)


ROWS = [[1, 2, 1, 0], [3, 0, 0, 0], [2, 1, 4, 3], [2, 2, 2, 2]]


def test_avoiding_contexts_is_the_sum_of_the_rows_conditional_laws() -> None:
    weights = [0, 7, 4, 3, 2, 1]
    expected = [Fraction(0)] * len(weights)
    for row in ROWS:
        contexts = {word for word in row if word}
        left = sum(weight for word, weight in enumerate(weights) if word not in contexts)
        for word, weight in enumerate(weights):
            if word not in contexts:
                expected[word] += Fraction(weight, left) * sum(word > 0 for word in row) * 5
    found = avoiding(np.array(weights) / sum(weights), np.array(ROWS), 5)
    np.testing.assert_allclose(found, [float(count) for count in expected], rtol=1e-12)
    assert sum(expected) == 5 * 12


def test_a_datasets_negatives_are_those_of_avoiding_and_not_of_the_law(tmp_path: Path) -> None:
    manifest = write_tiny_dataset(tmp_path / "data", num_sequences=1000)
    contexts_RC, counts_V = negative_sampling.contexts_and_negatives(tmp_path / "data", manifest)
    assert contexts_RC.shape == (manifest.counts.examples, 10)
    assert ((contexts_RC > 0).sum(), counts_V.sum()) == (manifest.counts.pairs, 5 * manifest.counts.pairs)
    counts = Vocab.read(tmp_path / "data" / manifest.vocab_path).counts_V
    law_V = np.concatenate([[0], noise_law(counts[1:])])
    expected_V = avoiding(law_V, contexts_RC, 5)
    assert expected_V.sum() == pytest.approx(counts_V.sum())
    assert fit(counts_V[1:], expected_V[1:] / expected_V.sum()).p > 1e-4
    assert fit(counts_V[1:], law_V[1:]).p < 1e-100


def test_pooled_cells_expect_enough_and_lose_nothing() -> None:
    observed, expected = pooled(np.array([9, 1, 2, 3, 1, 1]), np.array([8.0, 2.0, 2.0, 2.0, 1.0, 2.0]))
    assert (observed.tolist(), expected.tolist()) == ([9, 8], [8.0, 9.0])


def test_multinomial_has_a_limit() -> None:
    assert negative_sampling.limit_of_multinomial().endswith("number of categories cannot exceed 2^24.")


@pytest.mark.parametrize(
    "way", [way for way in WITH_REPLACEMENT if way.name != "random.choices"], ids=lambda way: way.name
)
def test_a_running_sum_of_a_million_float32_bends_the_law(way: Way) -> None:
    """Each step of the sum is rounded: whole tenths of the vocabulary come some percent too often or too seldom."""
    counts_V = zipf_counts(1_000_000)
    drawn_V = np.bincount(way.set_up(counts_V, 0)(1_000_000) - 1, minlength=counts_V.size)
    off = np.abs(negative_sampling.tenths(drawn_V, noise_law(counts_V)) - 1).max()
    assert (off > 0.04) == (way.name == "torch.multinomial, with, float32")
    assert off < 0.1


def test_the_benchmark_reports_every_way(tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_dataset(tmp_path / "data")
    monkeypatch.setattr(negative_sampling, "WITHOUT", [(100, 5), (10, 9)])
    monkeypatch.setattr(negative_sampling, "TIMED", 1000)
    threads = torch.get_num_threads()
    flags = ["--sizes", 50, 200, "--draws", 20_000, "--repeats", 1, "--plot", tmp_path / "plot.png"]
    ended = call(negative_sampling.main, "--data", tmp_path / "data", *flags)
    torch.set_num_threads(threads)
    assert (ended.code, ended.stderr) == (0, "")
    for way in WAYS:
        assert ended.stdout.count(f"| {way.name} |") == 3  # times, and the fit of two vocabularies
    assert "![observed against expected counts](plot.png)" in ended.stdout
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    manifest = Manifest.load(tmp_path / "data")
    assert f"{manifest.counts.examples:,} rows of {manifest.vocab_size - 1:,} words" in ended.stdout


def test_the_page_has_the_reports_numbers() -> None:
    page = (ROOT / "docs" / "negative-sampling.md").read_text(encoding="utf-8")
    report = (ROOT / "benchmarks" / "reports" / "negative-sampling.md").read_text(encoding="utf-8")
    number = r"[+-]?\d[\d,.]*(?:e-\d+)?"
    tables = [line for line in page.splitlines() if line.startswith("|")]
    figures = {figure for line in tables for figure in re.findall(number, re.sub(r"float\d+", "", line))}
    assert len(figures) > 80
    assert {figure.rstrip(",") for figure in figures} - set(re.findall(number, report)) == set()
