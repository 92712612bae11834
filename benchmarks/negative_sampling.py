"""Compares ways to draw negatives: their speed, how well they fit count ** 0.75, and what biases the draws.

    python benchmarks/negative_sampling.py --data data/ptb --plot benchmarks/reports/negative-sampling.png

takes about three minutes. Word counts follow Zipf's law. The ways alternate, so that a change of the machine's speed
affects all of them. Times are processor time of one thread. For negatives that avoid contexts, the script uses the
contexts of the dataset's real rows.
"""

import io
import os
import statistics
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from matplotlib.figure import Figure

from benchmarks.measuring.provenance import provenance, table
from benchmarks.noise_laws import Fit, avoiding, fit, inclusion
from benchmarks.rivals.noise_ways import WAYS, Law, Way, noise_law, zipf_counts
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.shared.cli import Parser, command, count, path

TIMED = 50_000
STEPS = 10**7
"""A way that reads all words for each example may read this many words in total; 20 times as many for the fit."""
SIZES = (100, 10_000, 1_000_000)
WITHOUT = [(100, 5), (10_000, 5), (100, 50), (10_000, 50)]
"""V and K of the examples drawn without replacement; in the book, a row of 10 contexts has 50 negatives."""
EXAMPLES = 10_000
RANKS = (1, 2, 3, 5, 10, 30, 100, 1000, 5000)


def main() -> None:
    parser = Parser(
        "benchmarks/negative_sampling.py",
        "Compares ways to draw negatives: times, fit to the noise law, and biases.",
        "python benchmarks/negative_sampling.py --data data/ptb",
    )
    parser.add_argument("--data", type=path, default=Path("data/ptb"), help="a dataset")
    parser.add_argument(
        "--sizes",
        type=count,
        nargs="+",
        default=SIZES,
        help="sizes of the vocabularies (default: 100, 10,000, 1,000,000)",
    )
    parser.add_argument("--draws", type=count, default=2_000_000, help="draws for the fit")
    parser.add_argument("--repeats", type=count, default=7, help="runs of each timing")
    parser.add_argument("--plot", type=path, help="a PNG file for the plot of the fit (default: none)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    beside = f"one thread; load average of the machine {os.getloadavg()[0]:.1f}"
    lines = ["# Ways to draw negatives", "", *provenance("torch", "numpy", "scipy", hardware=beside)]

    lines += times(arguments.sizes, arguments.repeats)
    drawn = [
        drawn_by(way, size, num)
        for size in arguments.sizes
        for way in WAYS
        if (num := num_draws(way, size, arguments.draws, 20 * STEPS)) >= size
    ]
    lines += fits(drawn)
    if arguments.plot:
        arguments.plot.write_bytes(plot(drawn))
        lines += ["", f"![observed against expected counts]({arguments.plot.name})"]
    lines += without()
    lines += avoided(arguments.data)
    print("\n".join(lines))


# --- times ---


def times(sizes: list[int], repeats: int) -> list[str]:
    """Markdown: milliseconds for 50,000 draws and for set-up, for each way and vocabulary."""
    taken: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for way in WAYS:
        way.set_up(zipf_counts(10), 0)(5)  # compiles, and performs late imports
    for repeat in range(repeats):
        for size in sizes:
            for way in WAYS:
                taken[way.name, size].append(timed(way, size, seed=repeat))
    rows = []
    for way in WAYS:
        medians = [[statistics.median(column) for column in zip(*taken[way.name, size], strict=True)] for size in sizes]
        rows.append((way.name, *(f"{1e3 * cost[part]:,.2f}" for part in (1, 0) for cost in medians)))
    header = ["way", *(f"{what}, V = {size:,}" for what in ("draws", "set-up") for size in sizes)]
    note = (
        f"Milliseconds for {TIMED:,} draws with K = 5, and for set-up; medians of {repeats}. Without replacement, if"
        f" {TIMED:,} draws would read more than {STEPS:,} words, fewer are drawn and the time is scaled up."
        f"\n{limit_of_multinomial()}"
    )
    return ["", "## Time", "", *table(header, rows), "", note]


def timed(way: Way, size: int, seed: int) -> tuple[float, float]:
    """Seconds for set-up and for 50,000 draws."""
    counts_V = zipf_counts(size)
    num = num_draws(way, size, TIMED, STEPS)
    started = time.process_time()
    draw = way.set_up(counts_V, seed)
    set_up_s = time.process_time() - started
    started = time.process_time()
    draw(num)
    return set_up_s, (time.process_time() - started) * TIMED / num


def num_draws(way: Way, size: int, wanted: int, steps: int) -> int:
    """``wanted``, or as many draws as ``steps`` allow, in whole examples of 5."""
    return wanted if not way.reads_all else max(1, min(wanted // 5, steps // size)) * 5


def limit_of_multinomial() -> str:
    try:
        torch.multinomial(torch.ones(2**24 + 1), 1, replacement=True)
    except RuntimeError as error:
        return f"torch.multinomial of {2**24 + 1:,} words: {str(error).splitlines()[0]}."
    return f"torch.multinomial accepts {2**24 + 1:,} words."


# --- the fit ---


@dataclass(frozen=True)
class Drawn:
    """How often each word was drawn, and the law."""

    way: Way
    counts_V: npt.NDArray[np.int64]
    law_V: Law


def drawn_by(way: Way, size: int, num: int) -> Drawn:
    counts_V = zipf_counts(size)
    words = way.set_up(counts_V, 1)(num)
    return Drawn(way, np.bincount(words - 1, minlength=size), noise_law(counts_V))


def fits(drawn: list[Drawn]) -> list[str]:
    """Markdown: the chi-square tests of all ways."""
    rows = []
    for one in drawn:
        off = max(tenths(one.counts_V, one.law_V) - 1, key=abs)
        numbers = f"{one.law_V.size:,}", f"{one.counts_V.sum():,}", *cells(fit(one.counts_V, one.law_V)), f"{off:+.1%}"
        rows.append((one.way.name, *numbers))
    header = ("way", "V", "draws", "chi-square", "degrees of freedom", "p", "furthest tenth")
    note = (
        "Every cell expects at least 5 draws. *Furthest tenth*: of the ten tenths of the vocabulary, by rank, the one"
        " whose draws differ most from the law. Ways with fewer draws than words are not tested."
    )
    return ["", "## Fit to the law", "", *table(header, rows), "", note]


def tenths(counts_V: npt.NDArray[np.int64], law_V: Law) -> Law:
    """The ratio of drawn to expected counts for each tenth of the words, shape (10,)."""
    edges = np.linspace(0, law_V.size, 11).astype(int)[:-1]
    return np.asarray(np.add.reduceat(counts_V, edges) / (np.add.reduceat(law_V, edges) * counts_V.sum()))


def cells(found: Fit) -> tuple[str, str, str]:
    p = f"{found.p:.3f}" if found.p >= 1e-3 else f"{found.p:.0e}" if found.p else "below 1e-300"
    return f"{found.statistic:,.0f}", f"{found.freedom:,}", p


def plot(drawn: list[Drawn]) -> bytes:
    """A PNG with a panel per way and a color per vocabulary."""
    figure = Figure(figsize=(10, 6.4), dpi=100, layout="constrained")
    sizes = sorted({one.law_V.size for one in drawn}, reverse=True)
    for axes, way in zip(figure.subplots(2, 3, sharex=True, sharey=True).flat, WAYS, strict=True):
        for one in sorted((one for one in drawn if one.way is way), key=lambda one: -one.law_V.size):
            expected_V = one.law_V * one.counts_V.sum()
            shown = np.unique(np.geomspace(1, expected_V.size, 1500).astype(int)) - 1  # as many points for every V
            color = f"C{sizes.index(one.law_V.size)}"
            label = f"V = {one.law_V.size:,}"
            axes.plot(expected_V[shown], one.counts_V[shown], ".", markersize=3, color=color, label=label)
        axes.set(xscale="log", yscale="log")
        axes.set_xlim(left=0.1)
        axes.set_title(way.name, fontsize="medium")
        axes.axline((1, 1), (10, 10), color="black", linewidth=0.7)  # on log scales, through two points
        axes.grid(alpha=0.3)
        axes.legend(markerscale=3, loc="upper left", fontsize="small")
    figure.supxlabel("expected count of a word", fontsize="medium")
    figure.supylabel("drawn count of the word", fontsize="medium")
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


# --- what biases the draws ---


def without() -> list[str]:
    """Markdown: expected counts of words when drawn without replacement, compared with K times the law."""
    rows = []
    for size, num_negatives in WITHOUT:
        law_V = noise_law(zipf_counts(size))
        chances_V = inclusion(law_V, num_negatives)
        for rank in sorted({1, 2, 10, 100, size} & set(range(1, size + 1))):
            with_them, found = num_negatives * law_V[rank - 1], chances_V[rank - 1]
            counts = (f"{EXAMPLES * chance:,.1f}" for chance in (with_them, found))
            rows.append((f"{size:,}", f"{num_negatives}", f"{rank:,}", *counts, f"{found / with_them - 1:+.1%}"))
    header = ("V", "K", "rank of the word", "expected with", "expected without", "difference")
    note = f"Expected counts in {EXAMPLES:,} examples, exact."
    return ["", "## Without replacement", "", *table(header, rows), "", note]


def avoided(data: Path) -> list[str]:
    """Markdown: expected counts of words if negatives avoid contexts, compared with the counts in the dataset."""
    manifest = Manifest.load(data)
    vocab = Vocab.read(data / manifest.vocab_path)
    contexts_RC, counts_V = contexts_and_negatives(data, manifest)
    weights_V = noise_law(vocab.counts_V[1:], manifest.config.ns_exponent)
    law_V = np.concatenate([[0], weights_V])
    expected_V = avoiding(law_V, contexts_RC, manifest.config.negatives)
    plain_V = law_V * counts_V.sum()
    rows = []
    for rank in [rank for rank in (*RANKS, law_V.size - 1) if rank < law_V.size]:
        counts = (f"{count:,.0f}" for count in (plain_V[rank], expected_V[rank], counts_V[rank]))
        bent = (f"{count / plain_V[rank] - 1:+.2%}" for count in (expected_V[rank], counts_V[rank]))
        rows.append((f"`{vocab.words[rank]}`", f"{rank:,}", *counts, *bent))
    header = ("word", "rank", "the law", "avoiding contexts", "in the dataset", "expected", "found")
    against = [
        (name, *cells(fit(counts_V[1:], law[1:] / law.sum())))
        for name, law in (("the law", law_V), ("the law that avoids contexts", expected_V))
    ]
    note = (
        f"{len(contexts_RC):,} rows of {manifest.vocab_size - 1:,} words, {counts_V.sum():,} negatives; *expected* and"
        " *found* are differences from the law.\n"
    )
    fits = table(("the dataset's negatives compared with", "chi-square", "degrees of freedom", "p"), against)
    return ["", "## Avoiding a row's contexts", "", *table(header, rows), "", note, *fits]


def contexts_and_negatives(data: Path, manifest: Manifest) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """The contexts of each row of the first sampled epoch (R, max_contexts), 0-padded; counts of negatives (V,)."""
    contexts, counts_V = [], np.zeros(manifest.vocab_size, dtype=np.int64)
    for shard in manifest.select(0):
        columns = pq.read_table(data / shard.path, columns=["contexts_negatives", "label", "mask"])
        ids, label, mask = (
            column.combine_chunks().flatten().to_numpy().reshape(shard.rows, -1) for column in columns.columns
        )
        contexts.append(np.where(label, ids, 0)[:, : manifest.config.max_contexts].astype(np.int32))
        counts_V += np.bincount(ids[(mask == 1) & (label == 0)], minlength=counts_V.size)
    return np.concatenate(contexts), counts_V


if __name__ == "__main__":
    with command():
        main()
