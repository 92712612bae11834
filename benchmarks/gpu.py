"""Shows what holds on a GPU, rung by rung, within some minutes, and leaves a report.

    python benchmarks/gpu.py                          8 minutes of a GPU; the report is runs/gpu.md
    python benchmarks/gpu.py --minutes 25             more of the rungs that come last
    python benchmarks/gpu.py --interpret              the same way with tiny sizes on a CPU: minutes

The report is written anew after every rung, so nothing is lost if the GPU goes. Everything else lies in the folder of
the report's name: datasets, which are made on the spot by the laws of real corpora and kept for the next climb, and
what each rung printed. Neither Spark, Java nor a network is needed.
"""

import argparse
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":  # run as a script: the project's root belongs on the path, this folder does not
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

PACKAGES = ("numpy", "pyarrow", "pydantic", "numba", "xxhash", "safetensors", "tenacity", "tqdm", "torch", "triton")
"""What training needs, but for its pages. Images of PyTorch have some of them."""


def main() -> None:
    if lacking := missing():
        print(f"error: {lacking}", file=sys.stderr)
        sys.exit(2)
    from jobs.children import end_on_signals
    from pipeline.shared.cli import command

    end_on_signals()  # and so the rung that is tried
    with command("interrupted; the report has what was found before"):
        climb_to_the_top(parse())


def missing() -> str:
    """What is to be brought first, in one line; empty if nothing is."""
    packages = [name for name in PACKAGES if find_spec(name) is None]
    if not packages:
        return ""
    names, python = " ".join(packages), ".".join(map(str, sys.version_info[:2]))
    return (
        f"missing packages: {names}; where there is a network: pip download --python-version {python} "
        f"--only-binary=:all: -d wheels {names}; then here: pip install --no-index --find-links wheels {names}"
    )


def is_installed(name: str) -> bool:
    """Whether a package is there under this name."""
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def parse() -> argparse.Namespace:
    from pipeline.shared.cli import Parser, path

    parser = Parser(
        "benchmarks/gpu.py",
        "Shows what holds on a GPU, rung by rung, and leaves a report.",
        "python benchmarks/gpu.py --minutes 8",
        "python benchmarks/gpu.py --interpret",
    )
    parser.add_argument("--minutes", type=float, default=8.0, help="the time for all of it (default: 8)")
    parser.add_argument(
        "--data",
        type=path,
        default=None,
        help="a dataset that takes the place of Penn Treebank's (default: one is made)",
    )
    parser.add_argument("--interpret", action="store_true", help="rehearse on a CPU, with tiny sizes")
    parser.add_argument(
        "--output",
        type=path,
        default=Path("runs/gpu.md"),
        metavar="REPORT.md",
        help="the report (default: runs/gpu.md)",
    )
    return parser.parse_args()


def check(arguments: argparse.Namespace) -> None:
    """Raises InputError for what would end the climb, or spoil it."""
    import torch

    from pipeline.dataset.manifest_file import Manifest
    from pipeline.shared.errors import InputError
    from pipeline.shared.files import make_folder, os_errors, write

    if not 0 < arguments.minutes < float("inf"):
        raise InputError.flag("minutes", arguments.minutes, "more than 0")
    if not arguments.interpret and not torch.cuda.is_available():
        raise InputError("found no GPU that torch can use, expected one; --interpret rehearses without")
    if arguments.data:
        Manifest.load(arguments.data).check_files(arguments.data)
    if not arguments.output.suffix:
        raise InputError.flag("output", arguments.output, "a name that ends in .md")
    with os_errors(f"--output {arguments.output}: cannot be written", "name another file"):
        make_folder(arguments.output.absolute().parent)
        make_folder(arguments.output.absolute().with_suffix("") / "logs")
        write(arguments.output, b"")


def climb_to_the_top(arguments: argparse.Namespace) -> None:
    """Tries every rung, prints a line of each, and writes the report after it."""
    import torch

    from benchmarks.ladder.climb import Budget, Outcome, Rung, Work, climb, try_apart
    from benchmarks.ladder.place import GPU, REHEARSAL
    from benchmarks.ladder.report import log_name, report
    from benchmarks.ladder.rungs import made, rungs_of
    from benchmarks.measuring.provenance import provenance
    from pipeline.shared.files import write

    budget = Budget(60 * arguments.minutes)
    check(arguments)
    place = REHEARSAL if arguments.interpret else GPU
    folder = arguments.output.absolute().with_suffix("")
    num_gpus = 0 if arguments.interpret else torch.cuda.device_count()
    rungs = rungs_of(place, folder / "data", num_gpus, arguments.data)
    # A torch for CUDA may bring its triton under another name.
    origin = provenance("torch", *(name for name in ("triton", "numba", "pyarrow", "numpy") if is_installed(name)))
    found: dict[str, Outcome] = {}

    def attempt(rung: Rung, limit_s: float) -> Outcome:
        figures = {name: outcome.figures for name, outcome in found.items()}
        datasets = {corpus: str(figures[made(corpus)]["path"]) for corpus in place.laws if figures.get(made(corpus))}
        with tempfile.TemporaryDirectory(prefix="rung-", dir=folder) as scratch:
            work = Work(arguments.interpret, Path(scratch), datasets, figures)
            return try_apart(rung, limit_s, work, place.environment, folder / "logs" / log_name(rung.name))

    for outcome in climb(rungs, budget, place.patience, attempt):
        found[outcome.rung.name] = outcome
        print(f"{outcome.result} {outcome.seconds:5.1f} s  {outcome.rung.name}: {outcome.text}", flush=True)
        write(arguments.output, report(place, origin, [*found.values()], len(rungs), folder / "logs").encode())
    print(f"{arguments.output} is the report")
    sys.exit(any(outcome.result == "failed" for outcome in found.values()))


if __name__ == "__main__":
    main()
