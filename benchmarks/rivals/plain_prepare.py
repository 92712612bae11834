"""The book's preparation in plain Python lists, like the book, without numpy. A rival for benchmarks/pipeline.py.

The book is Dive into Deep Learning (d2l), section 15.3; this is our rewrite of its preparation. It holds all examples
in memory, so it gets only the first 2 M tokens of large corpora.
"""

import math
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

BOOK_TOKENS = 2_000_000


def book_rate(path: Path) -> float:
    """Tokens/s of the book's preparation, from raw text to padded rows in memory."""
    started = time.perf_counter()
    with path.open() as file:
        sentences = list(first_tokens(line.split() for line in file))
    num_tokens = sum(map(len, sentences))
    counts = Counter(word for sentence in sentences for word in sentence)
    words = ["<unk>", *(word for word, count in counts.most_common() if count >= 10 and word != "<unk>")]
    ids = {word: number for number, word in enumerate(words)}
    known = [[word for word in sentence if word in ids and word != "<unk>"] for sentence in sentences]
    total = sum(map(len, known))
    kept = [
        [ids[word] for word in sentence if random.random() < math.sqrt(1e-4 / counts[word] * total)]
        for sentence in known
    ]
    centers, contexts = [], []
    for sentence in kept:
        if len(sentence) < 2:
            continue
        for at, center in enumerate(sentence):
            radius = random.randint(1, 5)
            around = [*range(max(0, at - radius), at), *range(at + 1, min(len(sentence), at + 1 + radius))]
            centers.append(center)
            contexts.append([sentence[place] for place in around])
    noise = Draws([counts[word] ** 0.75 for word in words[1:]])
    rows = []
    for center, around in zip(centers, contexts, strict=True):
        negatives: list[int] = []
        while len(negatives) < 5 * len(around):
            drawn = noise.draw()
            if drawn not in around:
                negatives.append(drawn)
        real = around + negatives
        padding = [0] * (60 - len(real))
        rows.append((center, real + padding, [1] * len(real) + padding, [1] * len(around) + [0] * (60 - len(around))))
    return num_tokens / (time.perf_counter() - started)


class Draws:
    """Draws ids from 1 by weight, 10,000 at a time."""

    def __init__(self, weights: list[float]):
        self._ids, self._weights = range(1, len(weights) + 1), weights
        self._drawn: list[int] = []

    def draw(self) -> int:
        if not self._drawn:
            self._drawn = random.choices(self._ids, self._weights, k=10_000)
        return self._drawn.pop()


def first_tokens(sentences: Iterator[list[str]]) -> Iterator[list[str]]:
    left = BOOK_TOKENS
    for sentence in sentences:
        if left <= 0:
            return
        yield sentence
        left -= len(sentence)
