"""Writes word vectors to files for other programs.

python -m training.export runs/ptb --format word2vec --output ptb.txt          for gensim and others: a word a line
python -m training.export runs/ptb --format word2vec-binary --output ptb.bin   the same, a third of the size
python -m training.export runs/ptb --format projector --output ptb.tsv         and ptb.metadata.tsv, for TensorBoard
"""

from pipeline.shared.cli import Parser, command, path
from training.vectors.export_formats import FORMATS, export
from training.vectors.word_vectors import SOURCES, STRICT


def main() -> None:
    example = "python -m training.export runs/ptb --format word2vec --output ptb.txt"
    parser = Parser("python -m training.export", "Writes word vectors to files for other programs.", example)
    parser.add_argument("run", type=path, help=SOURCES)
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="text or binary form of word2vec.c and gensim; TensorBoard's"
    )
    parser.add_argument("--output", type=path, required=True, metavar="FILE", help="a file outside the run's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file")
    parser.add_argument("--strict", action="store_true", help=STRICT)
    with command():
        arguments = parser.parse_args()
        print(export(arguments.run, arguments.format, arguments.output, arguments.overwrite, arguments.strict))


if __name__ == "__main__":
    main()
