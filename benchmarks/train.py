r"""Compares training with the book's plain loop and with gensim: speed, losses, quality, and from text to vectors.

    python benchmarks/train.py --ptb ptb.train.txt                                         minutes
    python benchmarks/train.py --ptb ptb.train.txt --wiki wiki100.txt.gz --pairs wordsim353.txt \
        --analogies questions-words.txt --repeats 3 --report report.md                     about half an hour

Every training run is a separate process, one at a time. Ours is `training/train.py` as a user runs it, reading Parquet.
The loops take turns, --repeats times, so that other load on the machine affects all of them. The number of the turn is
the seed of training (ours and gensim's) and of the sampling of Wikipedia. Datasets and runs are written to --scratch
and removed afterwards.

A token is one example (one center that subsampling kept), as in the book; gensim calls it an effective word.
"""

import argparse
import shlex
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

if __name__ == "__main__":  # run as a script: the project's root belongs on the path, this folder does not
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np
import torch
from gensim.models import KeyedVectors

from benchmarks.measuring.provenance import provenance
from benchmarks.measuring.train_runs import OURS, Bench
from benchmarks.measuring.train_tables import (
    Run,
    Runs,
    Target,
    end_to_end_table,
    loss_table,
    ptb_targets,
    quality_table,
    speed_table,
    target_table,
    wiki_targets,
)
from pipeline.shared.cli import Parser, count, path
from pipeline.shared.errors import InputError
from training.judging.evaluation import analogies, word_pairs
from training.judging.questions import read_analogies, read_pairs
from training.model.limits import num_cores
from training.vectors.word_vectors import Vectors

BOOKS_RECIPE = ("plain", "ours-1", "ours-4", "ours-1-reference")
SGD = ("gensim", "in-place-1", "in-place-4")
PTB_MIN_COUNT, PTB_EPOCHS = 10, 5
WIKI_MIN_COUNT, WIKI_EPOCHS = 5, 3
OTHER_RATE = "--lr=0.0125"
"""A setting that a user might try next on an existing dataset."""

PACKAGES = ("torch", "gensim", "numba", "numpy", "pyarrow", "pyspark")


def main() -> None:
    """Measures what the flags select, and prints the report."""
    try:
        arguments = parse()
        check(arguments)
        report = "\n".join([*report_lines(arguments), ""])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; there is no report", file=sys.stderr)
        sys.exit(130)
    print(report, end="")
    if arguments.report:
        arguments.report.write_text(report, encoding="utf-8")


def absolute(text: str) -> Path:
    """An absolute path from an argument, because the child processes start in the project's root."""
    return path(text).absolute()


def parse() -> argparse.Namespace:
    parser = Parser(
        "benchmarks/train.py",
        "Compares training with the book's plain loop and with gensim.",
        "python benchmarks/train.py --ptb ptb.train.txt",
    )
    parser.add_argument("--ptb", type=absolute, metavar="FILE", help="Penn Treebank's training text: speed and losses")
    parser.add_argument(
        "--wiki",
        type=absolute,
        metavar="FILE",
        help="a large text, such as wiki100.txt.gz: speed, quality, text to vectors",
    )
    parser.add_argument("--pairs", type=absolute, metavar="FILE", help="WordSim-353, for the quality of --wiki")
    parser.add_argument("--analogies", type=absolute, metavar="FILE", help="analogies, for the quality of --wiki")
    parser.add_argument("--repeats", type=count, default=1, help="number of turns, each with its own seed (default: 1)")
    parser.add_argument(
        "--loops",
        nargs="+",
        choices=(*BOOKS_RECIPE, *SGD),
        default=[*BOOKS_RECIPE, *SGD],
        metavar="NAME",
        help=f"the loops to measure on --ptb (default: {' '.join((*BOOKS_RECIPE, *SGD))})",
    )
    parser.add_argument(
        "--workers",
        type=count,
        default=None,
        help="threads of gensim, of the plain loop, and of all our processes together (default: cores)",
    )
    parser.add_argument(
        "--scratch",
        type=absolute,
        default=None,
        metavar="PATH",
        help="a folder for temporary files; --wiki needs 4 GB (default: the system's)",
    )
    parser.add_argument("--report", type=path, default=None, help="a Markdown file for the output too (default: none)")
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for input that would otherwise fail after minutes of measuring."""
    if not (arguments.ptb or arguments.wiki):
        raise InputError("found neither --ptb nor --wiki, expected texts to train on; name one")
    for name in ("ptb", "wiki"):
        file = getattr(arguments, name)
        if file and not file.is_file():
            raise InputError.flag(name, file, "a text that is there; `make run` downloads PTB to data/cache")
    if not shutil.which("spark-submit"):
        raise InputError("found no spark-submit on the PATH, expected this environment's; source .venv/bin/activate")
    if bool(arguments.pairs) != bool(arguments.analogies) or (arguments.pairs and not arguments.wiki):
        raise InputError("found one of --wiki, --pairs, --analogies without the others; quality needs all three")
    if arguments.pairs:
        read_pairs(arguments.pairs)
        read_analogies(arguments.analogies)
    if arguments.scratch and not arguments.scratch.is_dir():
        raise InputError.flag("scratch", arguments.scratch, "a folder that is there")
    report = arguments.report
    if report and (report.is_dir() or not report.parent.is_dir()):
        raise InputError.flag("report", report, "a file in a folder that is there")


def measure_ptb(arguments: argparse.Namespace) -> Runs:
    """Runs the chosen loops on PTB in turns: on one sampling, as in the book, and on a new sampling per epoch."""
    runs: Runs = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="shardvec-bench-", dir=arguments.scratch) as folder:
        bench = Bench(Path(folder), arguments.workers)
        book, _ = bench.prepare(arguments.ptb, 0, "paper", PTB_MIN_COUNT, epochs=1)
        fresh, _ = bench.prepare(arguments.ptb, 0, "word2vec", PTB_MIN_COUNT, PTB_EPOCHS)
        for seed in range(arguments.repeats):
            for loop in arguments.loops:
                if loop == "plain":
                    run = bench.plain(book, PTB_EPOCHS, seed)
                elif loop == "gensim":
                    run, _ = bench.gensim(arguments.ptb, fresh, PTB_MIN_COUNT, PTB_EPOCHS, seed)
                else:
                    run, _ = bench.ours(loop, fresh if loop in SGD else book, PTB_EPOCHS, seed)
                runs[loop].append(run)
                say("PTB", seed, loop, run)
    return runs


def measure_wiki(arguments: argparse.Namespace) -> tuple[Runs, list[float]]:
    """Runs and judges SGD's loops and ``once-more`` on a large text, in turns; also returns the seconds of prepare."""
    runs: Runs = defaultdict(list)
    prepare_s = []
    for seed in range(arguments.repeats):
        with tempfile.TemporaryDirectory(prefix="shardvec-bench-", dir=arguments.scratch) as folder:
            bench = Bench(Path(folder), arguments.workers)
            dataset, seconds = bench.prepare(arguments.wiki, seed, "word2vec", WIKI_MIN_COUNT, WIKI_EPOCHS)
            prepare_s.append(seconds)
            for loop in (*SGD, "once-more"):
                if loop == "gensim":
                    run, file = bench.gensim(arguments.wiki, dataset, WIKI_MIN_COUNT, WIKI_EPOCHS, seed)
                    run = judged(run, gensim_vectors(file), arguments)
                elif loop == "once-more":
                    run, _ = bench.ours("in-place-1", dataset, WIKI_EPOCHS, seed, OTHER_RATE)
                else:
                    run, output = bench.ours(loop, dataset, WIKI_EPOCHS, seed)
                    run = judged(run, Vectors.load(output), arguments)
                runs[loop].append(run)
                say("Wikipedia", seed, loop, run)
    return runs, prepare_s


def judged(run: Run, vectors: Vectors, arguments: argparse.Namespace) -> Run:
    """``run`` with the quality of its vectors, if the arguments name files to measure it."""
    if not arguments.pairs:
        return run
    pairs, found = word_pairs(vectors, arguments.pairs), analogies(vectors, arguments.analogies)
    return replace(run, pairs=pairs, analogies=found)


def gensim_vectors(file: Path) -> Vectors:
    """gensim's vectors in our layout: a row of zeros for <unk>, then words by falling count."""
    found = KeyedVectors.load(str(file))
    return Vectors(["<unk>", *found.index_to_key], np.vstack([np.zeros_like(found.vectors[:1]), found.vectors]))


def say(corpus: str, seed: int, loop: str, run: Run) -> None:
    quality = f", {run.pairs.spearman:.3f}, {run.analogies.accuracy:.1%}" if run.pairs and run.analogies else ""
    clock = time.strftime("%H:%M:%S")
    print(
        f"{clock} {corpus}, turn {seed + 1}, {loop}: {run.tokens_per_s:,.0f} tokens/s, {run.wall_s:.1f} s{quality}",
        file=sys.stderr,
    )


# The report


def report_lines(arguments: argparse.Namespace) -> list[str]:
    """Measures, and returns the report in Markdown."""
    origin = provenance(*PACKAGES, hardware=torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    targets: list[Target] = []
    sections: list[str] = []
    if arguments.ptb:
        runs = measure_ptb(arguments)
        targets += ptb_targets(runs)
        sections += ptb_sections(runs)
    if arguments.wiki:
        runs, prepare_s = measure_wiki(arguments)
        targets += wiki_targets(runs, prepare_s)
        sections += wiki_sections(runs, prepare_s)
    wanted = ["", "## Targets", "", *target_table(targets)]
    return ["# Training", "", *origin, *explained(arguments), *wanted, *sections]


def ptb_sections(runs: Runs) -> list[str]:
    books, sgd = ({name: found for name, found in runs.items() if name in names} for names in (BOOKS_RECIPE, SGD))
    lines = []
    if books:
        lines += ["", "## PTB, the book's recipe: speed", "", *speed_table(books, "plain")]
        lines += ["", "## PTB, the book's recipe: loss", "", *loss_table(books, "plain")]
    if sgd:
        lines += ["", "## PTB, SGD in place: speed", "", *speed_table(sgd, "gensim"), ""]
    if "gensim" in runs:
        seconds = median(run.parts_s["build_vocab_s"] for run in runs["gensim"])
        lines += [f"Before training, gensim's build_vocab takes {seconds:.2f} s."]
    return lines


def wiki_sections(runs: Runs, prepare_s: Sequence[float]) -> list[str]:
    sgd = {name: runs[name] for name in SGD}
    lines = ["", "## Wikipedia, SGD in place: speed", "", *speed_table(sgd, "gensim")]
    pairs, questions = runs["gensim"][0].pairs, runs["gensim"][0].analogies
    if pairs and questions:
        lines += ["", "## Wikipedia: quality", "", *quality_table(sgd, "gensim"), ""]
        lines.append(
            f"training.evaluate measures all loops; {pairs.pairs:,} pairs and {questions.questions:,} analogies have "
            "words of the vocabulary only. A spread is the standard deviation over the seeds, pooled over both loops."
        )
    lines += ["", "## Wikipedia: from text to vectors", "", *end_to_end_table(runs, prepare_s), ""]
    lines.append(
        "Our figures are whole processes: `spark-submit jobs/prepare.py`, including the start of its session, and "
        "training/train.py (in-place-1). *once more* is only training/train.py, on the same dataset with "
        f"`{OTHER_RATE}`; gensim would start from scratch."
    )
    return lines


def explained(arguments: argparse.Namespace) -> list[str]:
    """Markdown: how the figures were measured, and what the names in the tables mean."""
    threads = arguments.workers or num_cores()
    loops = {
        "plain": f"the book's loop, eager PyTorch, Adam, batches of 512, {threads} threads, its padded rows in memory",
        "gensim": f"skip-gram, {threads} workers, sentences in memory as lists, cut at 1,000 tokens like ours; dim "
        "100, window 5, 5 negatives, t = 1e-4. With more than one worker, its result differs from run to run, whatever "
        "the seed",
    }
    for name, (nproc, flags) in OURS.items():
        loops[name] = f"`training/train.py {shlex.join((f'--nproc={nproc}', *flags))}`"
    ran = {*(arguments.loops if arguments.ptb else ()), *(SGD if arguments.wiki else ())}
    return [
        f"- Medians of {arguments.repeats} turn(s); the number of a turn is its seed. A ratio is the median of the "
        "turns' ratios. Each training run is a separate process.",
        "- Centers are those that subsampling kept (gensim: effective words), over all epochs; tokens/s are centers "
        "per second of training. That time excludes the start of the process, gensim's build_vocab and reading of its "
        "text, and the plain loop's reading of its examples. It includes our reading of Parquet.",
        "- dot products/s: tokens/s times the mean number of targets of a center, (1 + K) per pair, in our dataset; "
        "gensim draws from the same law.",
        *(f"- *{name}*: {text}." for name, text in loops.items() if name in ran),
    ]


if __name__ == "__main__":
    main()
