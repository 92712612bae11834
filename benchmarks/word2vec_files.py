"""Compares reading of word2vec files with gensim: random vectors, text and binary, both readers alternately.

python benchmarks/word2vec_files.py --words 70000 --dim 100 --repeats 3          a minute
"""

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import pyarrow as pa
from gensim.models import KeyedVectors

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from benchmarks.measuring.provenance import provenance
from pipeline.shared.cli import Parser, command, count
from training.vectors.export_formats import write_word2vec, write_word2vec_binary
from training.vectors.word_vectors import Vectors


def main() -> None:
    parser = Parser(
        "benchmarks/word2vec_files.py",
        "Compares reading of word2vec files with gensim.",
        "python benchmarks/word2vec_files.py --words 70000 --dim 100",
    )
    parser.add_argument("--words", type=count, default=70_000, help="number of words")
    parser.add_argument("--dim", type=count, default=100, help="dimensions of a vector")
    parser.add_argument("--repeats", type=count, default=3, help="how often each file is read; the medians are shown")
    arguments = parser.parse_args()
    print("\n".join(["# Reading word2vec's files", "", *provenance("gensim", "pyarrow", "numpy"), ""]))
    rows_VD = np.random.default_rng(0).standard_normal((arguments.words, arguments.dim), dtype=np.float32)
    words = pa.array([f"word{row}" for row in range(arguments.words)])
    with tempfile.TemporaryDirectory() as folder:
        for form, write in (("text", write_word2vec), ("binary", write_word2vec_binary)):
            path = Path(folder) / form
            with path.open("wb") as file:
                write(file, words, rows_VD)
            compare(form, path, arguments.repeats)


def compare(form: str, path: Path, repeats: int) -> None:
    """Prints the medians of both readers, in seconds."""
    readers: dict[str, Callable[[], object]] = {
        "ours": lambda: Vectors.load(path),
        "gensim": lambda: KeyedVectors.load_word2vec_format(path, binary=form == "binary"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(repeats):
        for name, read in readers.items():
            began = perf_counter()
            read()
            seconds[name].append(perf_counter() - began)
    shown = ", ".join(f"{name} {median(times):.2f} s" for name, times in seconds.items())
    print(f"- {form}, {path.stat().st_size / 1e6:.0f} MB: {shown}")


if __name__ == "__main__":
    with command():
        main()
