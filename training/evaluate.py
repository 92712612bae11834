"""Evaluates vectors on scored word pairs, on analogies and on next items, and prints the results as JSON.

python -m training.evaluate runs/ptb --pairs wordsim353.txt --analogies questions-words.txt
python -m training.evaluate runs/shop --next-item sessions.txt
"""

import json
import os
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from pipeline.shared.cli import Parser, command, path
from pipeline.shared.errors import InputError
from training.judging.evaluation import RESTRICT_VOCAB, analogies, word_pairs
from training.judging.next_item import LAST, NS_EXPONENT, TOPK, NextItemTask
from training.vectors.word_vectors import SOURCES, STRICT, Tables, Vectors


def main() -> None:
    parser = Parser(
        "python -m training.evaluate",
        "Evaluates vectors on scored word pairs, on analogies and on next items, and prints JSON.",
        "python -m training.evaluate runs/ptb --pairs wordsim353.txt --analogies questions-words.txt",
        "python -m training.evaluate runs/shop --next-item sessions.txt",
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
        help="for pairs and analogies, use only the N most frequent words, as gensim does; word2vec.c's scripts use "
        "30000",
    )
    next_items = parser.group("next items (docs/next-item.md)")
    next_items.add_argument(
        "--next-item", type=path, metavar="FILE", help="sequences of items; the last one of each is to be predicted"
    )
    next_items.add_argument("--topk", type=int, default=TOPK, help="the length of a list of recommendations")
    next_items.add_argument("--last", type=int, default=LAST, help="how many items before the last one predict it")
    next_items.add_argument(
        "--history", type=path, metavar="FILE", help="sequences to count co-occurrences in, instead of those of FILE"
    )
    next_items.add_argument(
        "--ns-exponent", type=float, default=NS_EXPONENT, help="that of prepare, for the score model_popularity"
    )
    next_items.add_argument("--column", metavar="NAME", help="the files are Parquet, with the sequences in this column")
    parser.add_argument("--strict", action="store_true", help=STRICT)
    with command():
        arguments = parser.parse_args()
        _check(arguments)
        print(json.dumps(_report(arguments), indent=1, allow_nan=False))


def _check(arguments: Namespace) -> None:
    if not arguments.pairs and not arguments.analogies and not arguments.next_item:
        raise InputError("found none of --pairs, --analogies and --next-item, expected files to evaluate on; name one")
    for name in ("restrict_vocab", "topk", "last"):
        if getattr(arguments, name) < 1:
            raise InputError.flag(name, getattr(arguments, name), "1 or more")
    if not -4 <= arguments.ns_exponent <= 4:  # as in prepare; a number that is none is refused, too
        raise InputError.flag("ns_exponent", arguments.ns_exponent, "a number from -4 to 4")
    for name in ("history", "column"):
        if getattr(arguments, name) is not None and not arguments.next_item:
            raise InputError.flag(name, getattr(arguments, name), "it together with --next-item; name that file too")


def _report(arguments: Namespace) -> dict[str, Any]:
    restrict_vocab = arguments.restrict_vocab
    if arguments.next_item and not os.path.isfile(arguments.run):
        tables = Tables.load(arguments.run)
        vectors, context_VD = Vectors(tables.words, tables.center_VD, tables.counts_V), tables.context_VD
    else:
        vectors, context_VD = Vectors.load(arguments.run, arguments.strict), None
    report: dict[str, Any] = {
        "restrict_vocab": restrict_vocab,
        "pairs": [{"file": str(file), **asdict(word_pairs(vectors, file, restrict_vocab))} for file in arguments.pairs],
        "analogies": None,
        "next_item": None,
    }
    if file := arguments.analogies:
        report["analogies"] = {"file": str(file), **asdict(analogies(vectors, file, restrict_vocab))}
    if file := arguments.next_item:
        task = NextItemTask(
            file,
            history=arguments.history,
            column=arguments.column,
            topk=arguments.topk,
            last=arguments.last,
            ns_exponent=arguments.ns_exponent,
        )
        found = task.judged(vectors, context_VD)
        report["next_item"] = {"file": str(file), **asdict(found)}
    return report


if __name__ == "__main__":
    main()
