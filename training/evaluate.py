"""Evaluates vectors on scored word pairs and on analogies, and prints the results as JSON.

python -m training.evaluate runs/ptb --pairs wordsim353.txt --analogies questions-words.txt
"""

import json
from dataclasses import asdict

from pipeline.shared.cli import Parser, command, path
from pipeline.shared.errors import InputError
from training.judging.evaluation import RESTRICT_VOCAB, analogies, word_pairs
from training.vectors.word_vectors import SOURCES, STRICT, Vectors


def main() -> None:
    parser = Parser(
        "python -m training.evaluate",
        "Evaluates vectors on scored word pairs and on analogies, and prints JSON.",
        "python -m training.evaluate runs/ptb --pairs wordsim353.txt --analogies questions-words.txt",
    )
    parser.add_argument("run", type=path, help=SOURCES)
    parser.add_argument(
        "--pairs",
        type=path,
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="lines of two words and a score",
    )
    parser.add_argument("--analogies", type=path, metavar="FILE", help="lines of four words, in sections (': name')")
    parser.add_argument(
        "--restrict-vocab",
        type=int,
        default=RESTRICT_VOCAB,
        metavar="N",
        help="use only the N most frequent words, as gensim does; word2vec.c's scripts use 30000",
    )
    parser.add_argument("--strict", action="store_true", help=STRICT)
    with command():
        arguments = parser.parse_args()
        if not arguments.pairs and not arguments.analogies:
            raise InputError("found neither --pairs nor --analogies, expected files to evaluate on; name one")
        if arguments.restrict_vocab < 1:
            raise InputError.flag("restrict_vocab", arguments.restrict_vocab, "1 or more")
        vectors, restrict_vocab = Vectors.load(arguments.run, arguments.strict), arguments.restrict_vocab
        report = {
            "restrict_vocab": restrict_vocab,
            "pairs": [
                {"file": str(file), **asdict(word_pairs(vectors, file, restrict_vocab))} for file in arguments.pairs
            ],
            "analogies": None,
        }
        if file := arguments.analogies:
            report["analogies"] = {"file": str(file), **asdict(analogies(vectors, file, restrict_vocab))}
        print(json.dumps(report, indent=1, allow_nan=False))


if __name__ == "__main__":
    main()
