"""Prints the words nearest to a word, in the book's format.

python -m training.neighbors runs/ptb chip --topk 3
"""

from pipeline.shared.cli import Parser, command, path
from pipeline.shared.errors import InputError
from training.vectors.word_vectors import SOURCES, STRICT, Vectors


def main() -> None:
    example = "python -m training.neighbors runs/ptb chip --topk 3"
    parser = Parser("python -m training.neighbors", "Prints the words nearest to a word, by cosine.", example)
    parser.add_argument("run", type=path, help=SOURCES)
    parser.add_argument("words", nargs="+", metavar="word", help="words of the vocabulary")
    parser.add_argument("--topk", type=int, default=3, help="the number of neighbours of each word")
    parser.add_argument("--strict", action="store_true", help=STRICT)
    with command():
        arguments = parser.parse_args()
        if arguments.topk < 1:
            raise InputError.flag("topk", arguments.topk, "1 or more")
        vectors = Vectors.load(arguments.run, arguments.strict)
        found = {word: vectors.most_similar(word, arguments.topk) for word in arguments.words}
        for word, neighbors in found.items():
            if len(found) > 1:
                print(f"{word}:")
            for neighbor, cosine in neighbors:
                print(f"cosine sim={cosine:.3f}: {neighbor}")


if __name__ == "__main__":
    main()
