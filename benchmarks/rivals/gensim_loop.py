"""Trains gensim's skip-gram on a text, saves the vectors if asked, and prints one JSON object.

    python benchmarks/rivals/gensim_loop.py ptb.train.txt --min-count 10 --epochs 5 --workers 2     seconds

benchmarks/train.py measures this rival with our settings: dim 100, window 5, 5 negatives, t = 1e-4. The script imports
nothing of this project, so that its process starts as fast as gensim does. The comparison is fair to gensim: sentences
are lists in memory, with one string object per word, which gensim looks up some percent faster than one per token.
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
    parser.add_argument("text", type=Path, help="a text with one sentence per line, plain or .gz")
    parser.add_argument("--min-count", type=int, required=True, help="the minimum count of a word")
    parser.add_argument("--epochs", type=int, required=True, help="epochs")
    parser.add_argument("--workers", type=int, required=True, help="training threads")
    parser.add_argument("--seed", type=int, default=0, help="gensim's seed (default: %(default)s)")
    parser.add_argument("--vectors", type=Path, help="the output file of KeyedVectors.save (default: none)")
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
    """The sentences, cut at 1,000 tokens like ours, and without the text's <unk>, on which ours never trains."""
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
