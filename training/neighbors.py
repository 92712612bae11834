"""The words nearest to a word, printed as the book does.

python -m training.neighbors runs/ptb chip --topk 3
"""

import sys

from pipeline.errors import InputError, Parser, path
from training.vectors import SOURCES, Vectors


def main() -> None:
    parser = Parser("python -m training.neighbors", "The words nearest to a word.")
    parser.add_argument("run", type=path, help=SOURCES)
    parser.add_argument("words", nargs="+", metavar="word")
    parser.add_argument("--topk", type=int, default=3, help="how many (default: %(default)s)")
    try:
        arguments = parser.parse_args()
        if arguments.topk < 1:
            raise InputError.flag("topk", arguments.topk, "1 or more")
        vectors = Vectors.load(arguments.run)
        found = {word: vectors.most_similar(word, arguments.topk) for word in arguments.words}
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    for word, neighbors in found.items():
        if len(found) > 1:
            print(f"{word}:")
        for neighbor, cosine in neighbors:
            print(f"cosine sim={cosine:.3f}: {neighbor}")


if __name__ == "__main__":
    main()
