"""Slow, obvious versions of what the project does fast. Python integers and loops; nothing is shared with the code
under test but the formulas and the numbers of the purposes."""

import math
from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

MASK = (1 << 64) - 1


def fold(state: int, part: int) -> int:
    """Output number ``part`` of SplitMix64 seeded with ``state``."""
    z = (state + (part + 1) * 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def fold_all(state: int, *parts: int) -> int:
    for part in parts:
        state = fold(state, part & MASK)
    return state


def sequences(lines: Iterable[str], max_length: int) -> list[list[str]]:
    """Token sequences of a corpus, cut; the empty ones left out."""
    tokens = [line.split() for line in lines]
    return [words[i : i + max_length] for words in tokens for i in range(0, len(words), max_length)]


def vocabulary(pieces: list[list[str]], min_count: int, max_vocab: int | None = None) -> list[tuple[str, int]]:
    """(word, count) in order of id."""
    counts = Counter(word for piece in pieces for word in piece)
    known = [(word, n) for word, n in counts.items() if n >= min_count and word != "<unk>"]
    known.sort(key=lambda pair: (-pair[1], pair[0]))
    known = known[:max_vocab]
    unknown = sum(counts.values()) - sum(n for _, n in known)
    return [("<unk>", unknown), *known]


def word_hash(word: str) -> int:
    data, multiplier = word.encode(), 0xFF51AFD7ED558CCD
    state = len(data) * multiplier & MASK
    for at in range(0, len(data), 8):
        state = (state ^ int.from_bytes(data[at : at + 8], "little")) * multiplier & MASK
        state = (state ^ state >> 32) * multiplier & MASK
        state ^= state >> 32
    return state


def sequence_key(words: Sequence[str]) -> int:
    total = 0
    for position, word in enumerate(words):
        total += fold(word_hash(word), position)
    return fold(fold_all(0, 7), total & MASK)


def keep_threshold(count: int, total: int, sample: float, rule: str) -> float:
    """2^32 times the keep probability."""
    if sample == 0:
        return 2**32
    ratio = sample * total / count
    return min(1.0, math.sqrt(ratio) + (ratio if rule == "word2vec" else 0)) * 2**32


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """What of a manifest's config is part of its dataset's id."""
    before = {"window_kind": "dynamic", "window_side": "both", "preset": config.get("preset")}
    return {name: value for name, value in config.items() if name not in before or value != before[name]}


def windows(ids: Sequence[int], radius: Sequence[int], side: str = "both") -> list[list[int]]:
    """The contexts of every token of one sequence."""
    return [
        [
            ids[j]
            for j in range(i - radius[i], i + radius[i] + 1)
            if j != i and 0 <= j < len(ids) and not (side == "left" and j > i) and not (side == "right" and j < i)
        ]
        for i in range(len(ids))
    ]


def sample_of(found: Sequence[int], size: int, stream: int) -> list[int]:
    """``size`` of the elements, or all if there are no more, in their order, by Floyd's algorithm."""
    places: set[int] = set()
    for slot, last in enumerate(range(max(0, len(found) - size), len(found))):
        place = (fold(stream, slot) >> 32) * (last + 1) >> 32
        places.add(last if place in places else place)
    return [found[place] for place in sorted(places)]


class NoiseTables(NamedTuple):
    """The contents of ``Noise``: of each slot the threshold and the alias, of each word the weight."""

    threshold: Sequence[int]
    alias: Sequence[int]
    weights: Sequence[int]

    @classmethod
    def of(cls, ends: Sequence[int], slots: Sequence[int]) -> "NoiseTables":
        weights = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
        return cls([slot >> 32 for slot in slots], [slot % 2**32 for slot in slots], weights)


def alias_word(bits: int, tables: NoiseTables) -> int:
    """The noise word of 64 random bits: high bits a slot, low 32 bits its coin."""
    slot_bits = (len(tables.alias) - 1).bit_length()
    slot = bits >> (64 - slot_bits)
    return slot if bits % 2**32 < tables.threshold[slot] else tables.alias[slot]


def allowed_word(bits: int, weights: Sequence[int], forbidden: set[int]) -> int:
    """A word of the noise law without the forbidden ones, by walking its cumulative sum."""
    x = bits % sum(weight for word, weight in enumerate(weights) if word not in forbidden)
    for word, weight in enumerate(weights):
        if word in forbidden:
            continue
        if x < weight:
            return word
        x -= weight
    raise AssertionError("x is below the sum")


def examples(
    lines: Iterable[str],
    *,
    min_count: int,
    window: int | str,
    negatives: int,
    keep: Sequence[int],
    tables: NoiseTables,
    kind: str = "dynamic",
    side: str = "both",
    seed: int = 0,
    epoch: int = 0,
    max_length: int = 1000,
) -> list[tuple[int, tuple[int, ...], int]]:
    """Every row (center, contexts then negatives, number of contexts) of one epoch, in no particular order."""
    pieces = sequences(lines, max_length)
    word_ids = {word: i for i, (word, _) in enumerate(vocabulary(pieces, min_count))}
    seen: Counter[tuple[str, ...]] = Counter()
    rows = []
    for words in pieces:
        ids = [word_ids[word] for word in words if word_ids.get(word, 0) > 0]
        if len(ids) < 2:
            continue
        repeat = seen[tuple(words)]
        seen[tuple(words)] += 1
        key = sequence_key(words)

        def draw(purpose: int, position: int, key: int = key, repeat: int = repeat) -> int:
            return fold_all(seed, purpose, epoch, key, repeat, position)

        kept = [p for p, word in enumerate(ids) if draw(1, p) >> 32 < keep[word]]
        largest = len(kept) if isinstance(window, str) else window
        radius = [1 + ((draw(2, p) >> 32) * largest >> 32) if kind == "dynamic" else largest for p in kept]
        for p, others in zip(kept, windows([ids[p] for p in kept], radius, side), strict=True):
            contexts = sample_of(others, 50, draw(2, p)) if isinstance(window, str) else others
            if not contexts:
                continue
            stream, noise = draw(3, p), []
            for slot in range(len(contexts) * negatives):
                for redraw in range(17):
                    bits = fold(stream, slot + (redraw << 16))
                    word = alias_word(bits, tables)
                    if redraw == 16:
                        word = allowed_word(bits, tables.weights, set(contexts))
                    if word not in contexts:
                        break
                noise.append(word)
            rows.append((ids[p], (*contexts, *noise), len(contexts)))
    return rows


def row_loss(scores: Sequence[float], num_contexts: int, negatives: int) -> float:
    """Mean binary cross-entropy with logits over the real places of one row."""
    real = num_contexts * (1 + negatives)
    losses = [math.log1p(math.exp(-s if j < num_contexts else s)) for j, s in enumerate(scores[:real])]
    return sum(losses) / max(1, real)


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """v·w / (|v|·|w|)."""
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def shared_loss(
    rows: Iterable[tuple[int, Sequence[int], int]],
    words: Sequence[str],
    model: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    other: Container[str],
) -> tuple[float, int, int]:
    """The mean loss of ``model`` (word to center and context vector) over what ``other`` knows too; rows, places.

    A row is a center, its targets (0 where there is none), and how many of them, the first ones, are contexts.
    """
    losses, places = [], 0
    for center, targets, num_contexts in rows:
        known = [t > 0 and words[t] in model and words[t] in other for t in targets]
        if words[center] not in model or words[center] not in other or not any(known[:num_contexts]):
            continue
        v = model[words[center]][0]
        costs = []
        for place in (place for place in range(len(targets)) if known[place]):
            score = sum(a * b for a, b in zip(v, model[words[targets[place]]][1], strict=True))
            costs.append(math.log1p(math.exp(-score if place < num_contexts else score)))
        losses.append(sum(costs) / len(costs))
        places += len(costs)
    return sum(losses) / len(losses), len(losses), places


def overlap(
    first: Mapping[str, Sequence[float]], second: Mapping[str, Sequence[float]], asked: Sequence[str], topk: int
) -> float:
    """The mean share of the ``topk`` words nearest to each of ``asked`` that are so in both, of words in both."""
    shared = [word for word in first if word in second]
    total = 0.0
    for word in asked:
        found = []
        for model in (first, second):
            cosines = sorted(((cosine(model[word], model[w]), w) for w in shared if w != word), reverse=True)
            found.append({w for _, w in cosines[:topk]})
        total += len(found[0] & found[1]) / topk
    return total / len(asked)


def train_in_place(
    rows: Iterable[tuple[int, Sequence[int], int]],
    tables: tuple[list[list[float]], list[list[float]]],
    negatives: int,
    lr: float,
    optimizer: str,
    state: Sequence[list[float]],
) -> list[float]:
    """Trains both tables, row after row (center, targets, number of contexts); returns the rows' mean losses.

    In word2vec.c's order: a row's scores first, then its context vectors one after the other, then its center, once.
    ``state`` is the optimizer's, of centers and of contexts: none for SGD; for Adagrad, a vector's one sum of mean
    squares.
    """
    (center, context), losses = tables, []

    def move(table: int, word: int, gradient: list[float]) -> None:
        rate = lr
        if optimizer == "rowwise_adagrad":
            state[table][word] += sum(number * number for number in gradient) / len(gradient)
            rate /= math.sqrt(state[table][word]) + 1e-10
        for d, number in enumerate(gradient):
            tables[table][word][d] -= rate * number

    for word, padded, num_contexts in rows:
        targets = padded[: num_contexts * (1 + negatives)]
        v = list(center[word])
        scores = [sum(a * b for a, b in zip(v, context[target], strict=True)) for target in targets]
        losses.append(row_loss(scores, num_contexts, negatives))
        slopes = [1 / (1 + math.exp(-score)) - (j < num_contexts) for j, score in enumerate(scores)]
        total = [sum(s * context[t][d] for s, t in zip(slopes, targets, strict=True)) for d in range(len(v))]
        for slope, target in zip(slopes, targets, strict=True):
            move(1, target, [slope * number for number in v])
        if targets:
            move(0, word, total)
    return losses
