"""gensim's skip-gram on a text; saves its vectors if asked, and prints one JSON object.

    python benchmarks/rivals/gensim_loop.py ptb.train.txt --min-count 10 --epochs 5 --workers 2     seconds

A rival that benchmarks/train.py measures, with the settings of ours: dim 100, window 5, 5 negatives, t = 1e-4. Imports
nothing of ours, so that its process starts as fast as gensim does. It has every fair chance: sentences are lists in
memory, with one string for each word, which gensim looks up some percent faster than a string for each token.
"""

import argparse
import gzip
import json
import sys
import time
from itertools import pairwise
from pathlib import Path

from gensim.models import Word2Vec

MAX_SENTENCE_LENGTH = 1000
UNKNOWN = "<unk>"


def main() -> None:
    parser = argparse.ArgumentParser(description="Trains gensim's skip-gram; prints seconds and counts as JSON.")
    parser.add_argument("text", type=Path, help="sentences, one a line; .gz is read too")
    parser.add_argument("--min-count", type=int, required=True, help="rarer words are left out")
    parser.add_argument("--epochs", type=int, required=True, help="passes")
    parser.add_argument("--workers", type=int, required=True, help="threads that train")
    parser.add_argument("--seed", type=int, default=0, help="gensim's (default: %(default)s)")
    parser.add_argument("--vectors", type=Path, help="where KeyedVectors.save writes (default: nowhere)")
    arguments = parser.parse_args()

    clock = [time.perf_counter()]
    sentences = read_sentences(arguments.text)
    clock.append(time.perf_counter())
    model = Word2Vec(
        vector_size=100,
        window=5,
        negative=5,
        sample=1e-4,
        sg=1,
        hs=0,
        min_count=arguments.min_count,
        workers=arguments.workers,
        seed=arguments.seed,
    )
    model.build_vocab(sentences)
    clock.append(time.perf_counter())
    effective, _ = model.train(sentences, total_examples=model.corpus_count, epochs=arguments.epochs)
    clock.append(time.perf_counter())
    if arguments.vectors:
        model.wv.save(str(arguments.vectors))
    clock.append(time.perf_counter())

    seconds = [after - before for before, after in pairwise(clock)]
    parts = dict(zip(("read_s", "build_vocab_s", "train_s", "save_s"), seconds, strict=True))
    print(json.dumps({"effective_words": effective, "vocab_size": len(model.wv), **parts}))


def read_sentences(text: Path) -> list[list[str]]:
    """Cut at 1,000 tokens, and without the <unk> of the text: ours does the one and never trains on the other."""
    sentences = []
    with (gzip.open if text.suffix == ".gz" else open)(text, "rt", encoding="utf-8") as lines:
        for line in lines:
            tokens = line.split()
            for start in range(0, len(tokens), MAX_SENTENCE_LENGTH):
                cut = tokens[start : start + MAX_SENTENCE_LENGTH]
                sentences.append([sys.intern(token) for token in cut if token != UNKNOWN])
    return sentences


if __name__ == "__main__":
    main()
