"""Measures prepare: tokens/s of the whole job and of its parts, peak memory, bytes; compares it with the book's code.

    python benchmarks/pipeline.py --data corpora --corpus ptb wiki17 --repeats 3   some minutes; 15 with all six

Every run is a separate process with Spark's default memory and `local[*]`. Its clock starts when prepare first looks at
the corpus and stops when the manifest is written. So the start of the session is not included, but the JVM is cold.
Peaks are VmHWM, read when the dataset is complete: the peak of the driver's Python, of the JVM (here, driver and
executor share one), and of the largest Python worker.

    ptb      Penn Treebank, 0.9 M tokens, unchanged
    wiki17   wiki100 (17 M tokens) in lines of 1,000 tokens
    wiki70   wiki17 about four times over; each copy starts at another token, so its lines differ, and has new words
    line30   wiki17 with 30 % of its tokens in one line
    oneline  wiki100 unchanged: one line of 100 MB, gzip
    vocab1m  24 M tokens with a vocabulary of 1,000,000

The book's preparation, benchmarks/rivals/plain_prepare.py, gets the first 2 M tokens of large corpora.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path, this folder does not
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np

from benchmarks.measuring.provenance import ROOT, provenance, table
from benchmarks.rivals.plain_prepare import book_rate
from pipeline.shared.cli import Parser, command, count, path

LINE = 1000


def main() -> None:
    arguments = parse()
    if arguments.one:
        print(json.dumps(one_run(*arguments.one)))
        return
    origin = provenance("pyspark", "pyarrow", "numpy")
    folder = Path(tempfile.mkdtemp(dir=arguments.scratch))
    rows, parts = [], []
    for name in arguments.corpus:
        path = CORPORA[name](arguments.data, folder)
        runs, book = [], []
        for _ in range(arguments.repeats):
            runs.append(ours(path, folder / "out"))
            if name in ("ptb", "wiki17"):  # alternately, so that a change of the machine's speed affects both
                book.append(book_rate(path))
        rows.append(row(name, runs, book))
        print(*rows[-1], file=sys.stderr)
        if name in ("ptb", "wiki17"):
            parts.append(part_rates(name, folder / "out", path))
            print(*parts[-1], file=sys.stderr)
        if path.parent == folder:
            path.unlink()
    notes = [
        "- Seconds, rates and bytes are medians over the runs; peaks are the largest values.",
        *("", *table(HEADER, rows)),
        *("", "One core, outside Spark, millions per second of processor time, medians of 5:"),
        *("", *table(PART_HEADER, parts)),
    ]
    report = "\n".join(["# Pipeline", "", *origin, *notes, ""])
    print(report)
    if arguments.report:
        arguments.report.write_text(report, encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = Parser(
        "benchmarks/pipeline.py",
        "Measures prepare, and compares it with the book's own preparation.",
        "python benchmarks/pipeline.py --data corpora --corpus ptb wiki17 --repeats 3",
    )
    files = "a folder with ptb/ptb.train.txt and wiki/wiki100.txt.gz, as far as --corpus needs them"
    parser.add_argument("--data", type=path, required=True, help=files)
    parser.add_argument(
        "--corpus",
        nargs="+",
        choices=tuple(CORPORA),
        default=["ptb", "wiki17"],
        help="texts to prepare (default: ptb wiki17)",
    )
    parser.add_argument("--repeats", type=count, default=1, help="runs of each; medians are reported")
    parser.add_argument(
        "--scratch",
        type=path,
        default=None,
        help="a folder for temporary corpora and datasets (default: the system's)",
    )
    parser.add_argument("--report", type=path, default=None, help="a Markdown file for the output too (default: none)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


# Corpora


def tokens_of_wiki(data: Path) -> list[bytes]:
    with gzip.open(data / "wiki" / "wiki100.txt.gz") as file:
        return file.read().split()


def write_lines(path: Path, tokens: list[bytes], mode: str = "wb") -> Path:
    with path.open(mode) as file:
        for start in range(0, len(tokens), LINE):
            file.write(b" ".join(tokens[start : start + LINE]) + b"\n")
    return path


def wiki70(data: Path, folder: Path) -> Path:
    tokens = tokens_of_wiki(data)
    path, left = folder / "wiki70.txt", 70_000_000
    path.touch()
    for copy in range(5):
        part = (tokens[137 * copy :] + tokens[: 137 * copy])[:left]
        if copy:
            part[::50] = [word + b"%d" % copy for word in part[::50]]
        write_lines(path, part, "ab")
        left -= len(part)
    return path


def line30(data: Path, folder: Path) -> Path:
    tokens = tokens_of_wiki(data)
    first, long = len(tokens) // 3, len(tokens) * 3 // 10
    path = write_lines(folder / "line30.txt", tokens[:first])
    with path.open("ab") as file:
        file.write(b" ".join(tokens[first : first + long]) + b"\n")
    return write_lines(path, tokens[first + long :], "ab")


def vocab1m(_: Path, folder: Path) -> Path:
    """Writes every word 10 times, and 14 M more tokens that follow Zipf's law."""
    rng = np.random.default_rng(0)
    zipf = np.minimum((1_000_000 ** rng.random(14_000_000)).astype(np.int64), 999_999)
    words = np.concatenate([np.tile(np.arange(1_000_000), 10), zipf])
    rng.shuffle(words)
    return write_lines(folder / "vocab1m.txt", [b"w%d" % word for word in words])


CORPORA: dict[str, Callable[[Path, Path], Path]] = {
    "ptb": lambda data, _: data / "ptb" / "ptb.train.txt",
    "wiki17": lambda data, folder: write_lines(folder / "wiki17.txt", tokens_of_wiki(data)),
    "wiki70": wiki70,
    "line30": line30,
    "oneline": lambda data, _: data / "wiki" / "wiki100.txt.gz",
    "vocab1m": vocab1m,
}


# Ours


def ours(path: Path, output: Path) -> dict[str, float]:
    command = [sys.executable, str(Path(__file__).resolve()), f"--data={path.parent}", "--one", str(path), str(output)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def one_run(path: str, output: str) -> dict[str, float]:
    sys.path.insert(0, str(ROOT / "jobs"))
    from jobs.session import build_session
    from pipeline.pipeline_config import PipelineConfig
    from pipeline.stages import prepare
    from pipeline.text.corpus import text

    spark = build_session("benchmark")
    before = cpu_seconds()
    started = time.perf_counter()
    manifest = prepare(spark, text(Path(path)), PipelineConfig(), output)
    seconds = time.perf_counter() - started
    processes = descendants()
    found = {
        "seconds": seconds,
        "cpu": cpu_seconds() - before,
        "tokens": manifest.counts.tokens,
        "examples": manifest.counts.examples,
        "vocab": manifest.vocab_size,
        "bytes_a_row": sum(shard.bytes for shard in manifest.shards) / manifest.counts.examples,
        "driver_mb": peak_mb(os.getpid()),
        "jvm_mb": max(peak_mb(pid) for pid, command in processes if command.startswith("java")),
        "worker_mb": max(peak_mb(pid) for pid, command in processes if command.startswith("python")),
    }
    spark.stop()
    return found


def descendants() -> list[tuple[int, str]]:
    """(pid, name) of every process below this one."""
    children: dict[int, list[tuple[int, str]]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, fields = stat.read_text().partition(" (")[2].rsplit(") ", 1)
        except OSError:  # the process has ended
            continue
        children.setdefault(int(fields.split()[1]), []).append((int(stat.parent.name), name))
    found: list[tuple[int, str]] = []
    todo = [os.getpid()]
    while todo:
        for pid, name in children.get(todo.pop(), []):
            found.append((pid, name))
            todo.append(pid)
    return found


def peak_mb(pid: int) -> float:
    """The largest resident set size of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def cpu_seconds() -> float:
    """Processor time of this process and of all its descendants that are still running or were waited for."""
    ticks = 0
    for pid in [os.getpid(), *(pid for pid, _ in descendants())]:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def part_rates(name: str, output: Path, path: Path) -> list[str]:
    """Rates of one core, outside Spark: tokenising and counting, encoding, sampling, writing."""
    import pyarrow as pa

    from pipeline.dataset.manifest_file import Manifest
    from pipeline.dataset.vocab import Vocab
    from pipeline.pipeline_config import PipelineConfig
    from pipeline.sampling.sample import Examples, Slice, Tables, sample
    from pipeline.shared.storage import Location
    from pipeline.spark.shard_writer import ShardFile
    from pipeline.text.tokens import Tokenized, tokenized
    from pipeline.text.word_counts import Totals
    from pipeline.text.word_index import Encoded, WordIndex, encode

    pa.set_cpu_count(1)
    config = PipelineConfig()
    vocab = Vocab.read(output / Manifest.load(output).vocab_path)
    with path.open("rb") as file:
        lines = pa.array(file.read(12_000_000).splitlines()[:-1], pa.binary())
    index, tables = WordIndex(vocab.words), Tables.build(vocab.counts_V, config)

    def counting() -> int:
        totals = Totals()
        for found in tokenized(lines, config):
            totals.add(found)
        totals.batch()
        return totals.seen["tokens"]

    encodings: list[tuple[Tokenized, Encoded]] = []

    def encoding() -> int:
        encodings[:] = [(found, encode(found.words, found.lengths, index)) for found in tokenized(lines, config)]
        return sum(len(found.words) for found, _ in encodings)

    examples: list[Examples] = []

    def sampling() -> int:
        examples[:] = [
            sample(Slice(e.ids, e.lengths, e.keys, np.zeros(e.lengths.size, np.int64)), tables, config, 0)
            for _, e in encodings
        ]
        return sum(found.center_N.size for found in examples)

    def writing() -> int:
        with (
            tempfile.TemporaryDirectory() as folder,
            ShardFile(Location.of(folder), "train", 0, 0, config) as shard,
        ):
            for found in examples:
                shard.append(found)
            shard.finish()
        return shard.num_rows

    rates = [f"{best_rate(part) / 1e6:.2f}" for part in (counting, encoding, sampling, writing)]
    return [name, *rates]


def best_rate(part: Callable[[], int]) -> float:
    """Items per second of processor time: the median of five runs, after one that compiles."""
    part()
    rates = []
    for _ in range(5):
        started = time.process_time()
        rates.append(part() / (time.process_time() - started))
    return statistics.median(rates)


# The report

HEADER = (
    "corpus",
    "tokens",
    "V",
    "seconds",
    "tokens/s",
    "CPU us per token",
    "the book's tokens/s",
    "ratio",
    "worker MB",
    "JVM MB",
    "driver's Python MB",
    "bytes per row",
)
PART_HEADER = ("corpus", "tokenise and count, tokens", "tokenise and encode, tokens", "sample, examples", "write, rows")


def row(name: str, runs: list[dict[str, float]], book: list[float]) -> list[str]:
    def median(key: str) -> float:
        return statistics.median(run[key] for run in runs)

    rate = statistics.median(run["tokens"] / run["seconds"] for run in runs)
    beside = statistics.median(book) if book else 0
    return [
        name,
        f"{median('tokens'):,.0f}",
        f"{median('vocab'):,.0f}",
        f"{median('seconds'):.1f}",
        f"{rate:,.0f}",
        f"{1e6 * statistics.median(run['cpu'] / run['tokens'] for run in runs):.2f}",
        f"{beside:,.0f}" if beside else "",
        f"{rate / beside:.1f}" if beside else "",
        *(f"{max(run[key] for run in runs):.0f}" for key in ("worker_mb", "jvm_mb", "driver_mb")),
        f"{median('bytes_a_row'):.1f}",
    ]


if __name__ == "__main__":
    with command():
        main()
