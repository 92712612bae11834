"""Laws of subsampling, windows and negatives: pipeline.sampling.subsample, noise, negatives and sample."""

import math
import random
from collections import Counter
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import oracles
import pytest
from scipy import stats

from pipeline.pipeline_config import PRESETS, PipelineConfig
from pipeline.sampling.negatives import draw_negatives, redraw_contexts
from pipeline.sampling.noise import Noise, build_noise, noise_weights
from pipeline.sampling.sample import Examples, Slice, Tables, sample
from pipeline.sampling.subsample import CERTAIN, keep_thresholds
from pipeline.sampling.window import copy_contexts, mean_contexts
from pipeline.shared.errors import InputError
from pipeline.shared.randomness import Purpose, fold, stream

ZIPF_V = np.array([500, *(10_000 // rank for rank in range(1, 200))], dtype=np.int64)


def piece_of(sequences: list[list[int]], repeats: list[int] | None = None) -> Slice:
    lengths = np.array([len(ids) for ids in sequences], dtype=np.int64)
    keys = fold(stream(5, Purpose.DEMO), np.arange(len(sequences)))
    ids = np.array([i for ids in sequences for i in ids], dtype=np.int32)
    return Slice(ids, lengths, keys, np.array(repeats or [0] * len(sequences), dtype=np.int64))


def noise_words(noise: Noise, stream: int, num: int) -> npt.NDArray[np.int32]:
    """Draws 0 .. num-1 of a stream, with no context to avoid."""
    words = np.empty(num, dtype=np.int32)
    assert not draw_negatives(words, words[:0], np.uint64(stream), noise)
    return words


def zipf_piece(num_sequences: int = 400, length: int = 50) -> Slice:
    tables = Tables.build(ZIPF_V, PipelineConfig(ns_exponent=1.0))
    ids = noise_words(tables.noise, stream(1, Purpose.DEMO), num_sequences * length)
    return piece_of(ids.reshape(num_sequences, length).tolist())


@pytest.mark.parametrize("rule", ["paper", "word2vec"])
@pytest.mark.parametrize("t", [0, 1e-4, 1e-2, 1])
def test_keep_thresholds_are_the_formulas(rule: str, t: float) -> None:
    total = int(ZIPF_V[1:].sum())
    found = keep_thresholds(ZIPF_V, t, rule)
    expected = [oracles.keep_threshold(int(count), total, t, rule) for count in ZIPF_V[1:]]
    assert found[0] == 0
    assert np.abs(found[1:].astype(np.float64) - expected).max() <= 2
    assert found.max() <= CERTAIN


@pytest.mark.parametrize("rule", ["paper", "word2vec"])
def test_kept_tokens_fit_the_keep_probability(rule: Literal["paper", "word2vec"]) -> None:
    config = PipelineConfig(sample=1e-2, subsample_rule=rule)
    tables = Tables.build(ZIPF_V, config)
    seen, kept = Counter[int](), Counter[int]()
    pieces = [piece_of([[word] * 2000 for word in (1, 2, 5, 20, 100)])]
    for piece in pieces:
        found = sample(piece, tables, config, 0)
        kept.update(found.center_N.tolist())
        seen.update(piece.ids.tolist())
    for word, n in seen.items():
        p = tables.keep_V[word] / CERTAIN
        assert abs(kept[word] - n * p) <= 1 + 5 * math.sqrt(n * p * (1 - p))
    assert found.num_subsampled == sum(seen.values()) - sum(kept.values())


def test_windows_of_the_books_toy() -> None:
    """d2l 15.3.3: two sentences of 7 and 3 words; nothing crosses from one to the other."""
    ids = np.arange(10, dtype=np.int32)
    radius = [2, 1, 2, 2, 1, 1, 2, 1, 1, 2]
    found = []
    for start, stop in [(0, 7), (7, 10)]:
        for token in range(start, stop):
            begin, end = max(start, token - radius[token]), min(stop, token + 1 + radius[token])
            row = np.empty(end - begin - 1, dtype=np.int32)
            copy_contexts(ids, begin, token, end, row)
            found.append(row.tolist())
    expected = oracles.windows(list(range(7)), radius[:7]) + oracles.windows([7, 8, 9], radius[7:])
    assert expected[0] == [1, 2]
    assert expected[8] == [7, 9]
    assert found == expected


@pytest.mark.parametrize(
    ("num_words", "settings"),
    [
        (3, {"window": 1, "negatives": 1}),
        (11, {}),  # contexts often leave so few words that sixteen redraws do not suffice
        (20, {"window": 2, "negatives": 3, "ns_exponent": 4.0}),  # one word has nearly all the mass
        (45, {"window": 20, "negatives": 2}),
        (300, {"sample": 0.01}),
        (300, {"sample": 0.001, "window": 20, "negatives": 20, "ns_exponent": -0.5}),
        (1000, {"sample": 0.1, "window": 1, "negatives": 1, "ns_exponent": 1.0}),
        (30, {"window": 3, "window_kind": "fixed"}),
        (30, {"window": 3, "window_side": "left"}),
        (300, {"sample": 0.01, "window": 3, "window_side": "right"}),
        (300, {"sample": 0.01, "window": 3, "window_kind": "fixed", "window_side": "left"}),
        (60, {"window": "sequence", "negatives": 2}),
        (300, {"sample": 0.01, "window": "sequence", "window_side": "left"}),
        (300, {"window": "sequence", "window_side": "right", "negatives": 1}),
    ],
    ids=str,
)
@pytest.mark.parametrize("epoch", [0, 3])
def test_a_slice_gives_the_oracles_examples(num_words: int, settings: dict[str, Any], epoch: int) -> None:
    config = PipelineConfig(**{"sample": 0, "seed": -9} | settings)
    chance = random.Random(num_words)
    words, weights = [f"w{i}" for i in range(num_words)], [1 / (1 + i) for i in range(num_words)]
    sequences = [chance.choices(words, weights, k=chance.choice([2, 3, 5, 20, 90])) for _ in range(25)]
    sequences += [words, sequences[0], sequences[1], sequences[0]]
    known = oracles.vocabulary(sequences, 1)
    word_ids = {word: i for i, (word, _) in enumerate(known)}
    keys = [oracles.sequence_key(sequence) for sequence in sequences]
    piece = Slice(
        ids=np.array([word_ids[word] for sequence in sequences for word in sequence], dtype=np.int32),
        lengths=np.array([len(sequence) for sequence in sequences]),
        keys=np.array(keys, dtype=np.uint64),
        repeats=np.array([keys[:i].count(key) for i, key in enumerate(keys)]),
    )
    tables = Tables.build(np.array([count for _, count in known]), config)
    expected = oracles.examples(
        [" ".join(sequence) for sequence in sequences],
        min_count=1,
        window=config.window,
        kind=config.window_kind,
        side=config.window_side,
        negatives=config.negatives,
        keep=tables.keep_V.tolist(),
        tables=oracles.NoiseTables.of(tables.noise.ends_V.tolist(), tables.noise.slots_S.tolist()),
        seed=-9 & oracles.MASK,
        epoch=epoch,
    )
    found = sample(piece, tables, config, epoch)
    rows = [row + [0] * (config.max_len - len(row)) for _, real, _ in expected for row in [list(real)]]
    assert found.center_N.tolist() == [center for center, _, _ in expected]
    assert found.num_contexts_N.tolist() == [n for _, _, n in expected]
    assert found.contexts_negatives_NL.tolist() == rows
    assert len(rows) > 100


@pytest.mark.parametrize("side", ["both", "left", "right"])
def test_a_slice_of_nothing_gives_nothing(side: Literal["both", "left", "right"]) -> None:
    config = PipelineConfig(sample=0, window_side=side)
    tables = Tables.build(ZIPF_V, config)
    for piece in (piece_of([]), piece_of([[1], [5], [9]])):
        found = sample(piece, tables, config, 0)
        nothing = (0, (0, config.max_len), 0)
        assert (found.center_N.size, found.contexts_negatives_NL.shape, found.num_subsampled) == nothing


def test_a_sample_of_a_long_sequence_is_uniform_and_in_order() -> None:
    """Of 60 words, the first of which is the center, each is among the 50 contexts equally often, and so is each pair
    of neighbours."""
    config = PipelineConfig(sample=0, window="sequence", negatives=1)
    found = sample(piece_of([list(range(1, 61))] * 1000), Tables.build(ZIPF_V, config), config, 0)
    contexts = found.contexts_negatives_NL[found.center_N == 1, :50]
    assert (np.diff(contexts) > 0).all()
    assert contexts.min() == 2
    chosen = (contexts[:, :, None] == np.arange(2, 61)).any(axis=1)
    both = chosen[:, 1:] & chosen[:, :-1]
    for hits, share in ((chosen, 50 / 59), (both, 50 / 59 * 49 / 58)):
        errors = (hits.sum(axis=0) - 1000 * share) / math.sqrt(1000 * share * (1 - share))
        assert np.abs(errors).max() < 4.5


def test_radii_are_uniform() -> None:
    config = PipelineConfig(sample=0, window=5)
    middle = [list(range(1, 12))] * 4000
    found = sample(piece_of(middle), Tables.build(ZIPF_V, config), config, 0)
    radius = found.num_contexts_N[found.center_N == 6] // 2
    counts = np.bincount(radius, minlength=6)[1:]
    assert counts.sum() == 4000
    assert stats.chisquare(counts).pvalue > 1e-4


@pytest.mark.parametrize("side", ["both", "left", "right"])
@pytest.mark.parametrize("kind", ["dynamic", "fixed"])
@pytest.mark.parametrize("window", [1, 2, 5, 20, "sequence"])
def test_a_center_far_from_the_ends_has_the_mean_number_of_contexts(
    window: Any, kind: Literal["dynamic", "fixed"], side: Literal["both", "left", "right"]
) -> None:
    """``mean_contexts`` follows from the law of the radius; the forecast of a dataset's size uses it."""
    kind = "fixed" if window == "sequence" else kind
    config = PipelineConfig(sample=0, window=window, window_kind=kind, window_side=side, negatives=1)
    long = [[1 + token % 190 for token in range(20_000)]]
    found = sample(piece_of(long), Tables.build(ZIPF_V, config), config, 0)
    num_contexts = found.num_contexts_N[config.max_contexts : -config.max_contexts]
    assert abs(num_contexts.mean() - mean_contexts(config)) <= 5 * num_contexts.std() / math.sqrt(20_000)


@pytest.mark.parametrize("exponent", [0.75, 1.0, 0.0, -0.5, -1.0])
def test_noise_weights_are_the_law_and_the_alias_table_is_exact(exponent: float) -> None:
    weights = noise_weights(ZIPF_V, exponent)
    law = ZIPF_V[1:].astype(np.float64) ** exponent
    np.testing.assert_allclose(weights[1:] / weights.sum(), law / law.sum(), rtol=1e-6)
    noise = build_noise(weights)
    found = oracles.NoiseTables.of(noise.ends_V.tolist(), noise.slots_S.tolist())
    assert found.weights == weights.tolist()
    mass = [0] * noise.slots_S.size
    for slot, (threshold, alias) in enumerate(zip(found.threshold, found.alias, strict=True)):
        mass[slot] += threshold if alias != slot else 2**32
        mass[alias] += 2**32 - threshold if alias != slot else 0
    assert mass[: ZIPF_V.size] == weights.tolist()
    assert not any(mass[ZIPF_V.size :])


def test_noise_frequencies_fit_the_law() -> None:
    noise = build_noise(noise_weights(ZIPF_V, 0.75))
    words = noise_words(noise, stream(3, Purpose.NEGATIVE), 500_000)
    counts = np.bincount(words, minlength=ZIPF_V.size)
    assert counts[0] == 0
    law = ZIPF_V[1:] ** 0.75
    assert stats.chisquare(counts[1:], law / law.sum() * counts.sum()).pvalue > 1e-4


def test_noise_words_equal_the_oracle() -> None:
    noise = build_noise(noise_weights(ZIPF_V, 0.75))
    bits = fold(stream(3, Purpose.NEGATIVE), np.arange(500))
    tables = oracles.NoiseTables.of(noise.ends_V.tolist(), noise.slots_S.tolist())
    found = noise_words(noise, stream(3, Purpose.NEGATIVE), 500)
    assert found.tolist() == [oracles.alias_word(b, tables) for b in bits.tolist()]


def conditional_law(weights: npt.NDArray[np.int64], forbidden: list[int]) -> npt.NDArray[np.float64]:
    allowed = weights.astype(np.float64)
    allowed[forbidden] = 0
    return np.asarray(allowed / allowed.sum())


@pytest.mark.parametrize("counts", [[0, 9, 5, 3, 2, 1], [0, 10**9, 10**9, 1, 1, 1]], ids=["redraws", "last resort"])
def test_negatives_follow_the_law_without_the_contexts(counts: list[int]) -> None:
    """Also where the contexts take all but a millionth of the mass, so that sixteen redraws do not suffice."""
    weights = noise_weights(np.array(counts), 1.0)
    noise, contexts_n = build_noise(weights), np.array([2, 1, 2], dtype=np.int32)
    drawn, num_hit = np.empty((1000, 15), dtype=np.int32), 0
    for row, stream_of_row in zip(drawn, fold(stream(0, Purpose.NEGATIVE), np.arange(1000)), strict=True):
        if draw_negatives(row, contexts_n, stream_of_row, noise):
            redraw_contexts(row, contexts_n, stream_of_row, noise)
            num_hit += 1
    assert num_hit > 975
    found = np.bincount(drawn.ravel(), minlength=6)
    law = conditional_law(weights, [0, 1, 2])
    assert not found[law == 0].any()
    assert stats.chisquare(found[law > 0], law[law > 0] * found.sum()).pvalue > 1e-4


WINDOWS = pytest.mark.parametrize(
    "window",
    [
        {"window": 3},
        {"window": 3, "window_kind": "fixed", "window_side": "left"},
        {"window": "sequence"},
        {"window": "sequence", "window_side": "right"},
    ],
    ids=str,
)


@WINDOWS
def test_every_row_has_n_contexts_and_n_k_negatives_that_are_no_contexts(window: dict[str, Any]) -> None:
    config = PipelineConfig(negatives=4, sample=1e-2, **window)
    found = sample(zipf_piece(60, 200), Tables.build(ZIPF_V, config), config, 0)
    assert found.center_N.size > 5000
    for row, n in zip(found.contexts_negatives_NL, found.num_contexts_N, strict=True):
        real = row[: n * 5]
        assert 1 <= n <= config.max_contexts
        assert (real > 0).all()
        assert not row[n * 5 :].any()
        assert not set(real[:n]) & set(real[n:])


@WINDOWS
def test_slices_may_be_cut_anywhere_between_sequences(window: dict[str, Any]) -> None:
    config = PipelineConfig(sample=1e-2, **window)
    tables, whole = Tables.build(ZIPF_V, config), zipf_piece(30, 200)
    parts = [whole.where(np.arange(whole.lengths.size) % 2 == side) for side in (0, 1)]
    rows = [
        sorted((c, tuple(r)) for p in pieces for e in [sample(p, tables, config, 1)] for c, r in rows_of(e))
        for pieces in ([whole], parts)
    ]
    assert rows[0] == rows[1]


def rows_of(found: Examples) -> list[tuple[int, list[int]]]:
    return list(zip(found.center_N.tolist(), found.contexts_negatives_NL.tolist(), strict=True))


@pytest.mark.parametrize("change", ["seed", "epoch", "repeat"])
def test_another_seed_epoch_or_repeat_is_another_sampling(change: str) -> None:
    tables, piece = Tables.build(ZIPF_V, PipelineConfig(sample=0)), zipf_piece(50)
    one = sample(piece, tables, PipelineConfig(sample=0), 0)
    seed, epoch = int(change == "seed"), int(change == "epoch")
    repeats = np.full_like(piece.repeats, change == "repeat")
    other_piece = Slice(piece.ids, piece.lengths, piece.keys, repeats)
    other = sample(other_piece, tables, PipelineConfig(sample=0, seed=seed), epoch)
    assert (one.contexts_negatives_NL == other.contexts_negatives_NL).mean() < 0.6


def test_tables_of_an_arbitrary_vocabulary_are_golden() -> None:
    """Pinned: were these to change, every dataset would, without anyone having asked for it."""
    tables = Tables.build(np.array([7, 1000, 333, 20, 20, 1]), PipelineConfig(sample=1e-2))
    assert tables.keep_V.tolist() == GOLDEN_KEEP
    assert np.diff(tables.noise.ends_V, prepend=0).tolist() == GOLDEN_WEIGHTS


GOLDEN_KEEP = [0, 503446385, 872431044, 3559903535, 3559903535, 4294967296]
GOLDEN_WEIGHTS = [0, 22162545684, 9715224013, 1178669759, 1178669758, 124629154]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_is_usual_values_and_what_is_given_wins(preset: Literal["words", "items"]) -> None:
    found = PipelineConfig(preset=preset)
    assert found.identity == PipelineConfig(**PRESETS[preset]).identity
    given = {"window": 9, "window_kind": "dynamic", "min_count": 3, "sample": 0.5, "ns_exponent": 1.0}
    assert given.keys() == PRESETS[preset].keys()
    for name, value in given.items():
        changed: Any = {name: value}
        assert asdict(PipelineConfig(preset=preset, **changed)) == {**asdict(found), **changed}


@pytest.mark.parametrize(
    "bad",
    [
        {"window": 0}, {"negatives": 0}, {"min_count": -1}, {"sample": -1e-4}, {"sample": math.nan}, {"epochs": 0},
        {"max_sentence_length": 1}, {"subsample_rule": "mine"}, {"ns_exponent": math.inf}, {"holdout": 0.9},
        {"num_shards": 0}, {"max_vocab": 0}, {"window": 20_000}, {"window": "wide"}, {"window": 2.5},
        {"window_kind": "dynamic", "window": "sequence"}, {"window_side": "up"},
        {"window": "sequence", "negatives": 655},
    ],
    ids=str,
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused_by_name(bad: dict[str, Any]) -> None:
    name = next(iter(bad)).replace("_", "-")
    with pytest.raises(InputError, match=f"^--{name}: found .*, expected "):
        PipelineConfig(**bad)
