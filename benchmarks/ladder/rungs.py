"""The rungs of the ladder, by worth: those that come last are the first that a short time leaves out."""

from importlib.util import find_spec
from pathlib import Path

from benchmarks.ladder.climb import Rung
from benchmarks.ladder.place import STEPS, Place

DEVICE = "The device"
KERNELS = "Kernels beside the reference"
TRAININGS = "Trainings beside the CPU's"
RANKS = "Several ranks"
SPEEDS = "Speeds"
WAITING = "Waiting for data, and the profile"
PAPER = "On paper"

BOOK, IN_PLACE = "book", "in place"
"""The recipes: Adam with dense gradients in steps of 512 rows; SGD that trains the tables in place."""


def rungs_of(place: Place, folder: Path, num_gpus: int, brought: Path | None = None) -> list[Rung]:
    """All rungs. ``folder`` keeps the datasets; ``brought`` is one that takes the place of Penn Treebank's.

    A rehearsal has one speed of each recipe: of the others it would learn nothing, they are other sizes of the same.
    """
    book, fullw2v, large = place.sizes.dims
    steps = (made(STEPS),)
    no_paper = "" if find_spec("benchmarks.ladder.compiled") else "benchmarks/ladder/compiled.py is not there"

    def make(corpus: str, seconds: float) -> Rung:
        there = str(brought.absolute()) if brought and corpus == "ptb" else None
        return Rung(made(corpus), DEVICE, "trainings:make_dataset", seconds, (corpus, str(folder), there))

    def speed(corpus: str, dim: int, recipe: str, seconds: float) -> Rung:
        name = f"{corpus}, dim {dim}, {recipe}"
        name += " (FULL-W2V's protocol)" if (corpus, dim, recipe) == ("wikipedia", fullw2v, IN_PLACE) else ""
        return Rung(name, SPEEDS, "speeds:speed", seconds, (corpus, dim, recipe), (made(corpus),))

    def two(way: str) -> Rung:
        return Rung(f"two ranks on one GPU, gloo: {way}", RANKS, "trainings:ranks", 30, (2, True, way), steps)

    def each(way: str) -> Rung:
        num_ranks = max([n for n in (2, 4, 8, 16) if n <= num_gpus], default=2)
        why = "" if num_gpus > 1 else f"found {num_gpus} GPU(s), needs two; rungs of two ranks on one go the same way"
        name = f"{num_ranks} ranks on as many GPUs, NCCL: {way}"
        return Rung(name, RANKS, "trainings:ranks", 30, (num_ranks, False, way), steps, why)

    rungs = [
        Rung("device", DEVICE, "speeds:machine", 8),
        make(STEPS, 8),
        Rung("gradients", KERNELS, "kernels:gradients", 20),
        Rung("in place, sgd", KERNELS, "kernels:in_place", 20, ("sgd",)),
        Rung("in place, rowwise_adagrad", KERNELS, "kernels:in_place", 25, ("rowwise_adagrad",)),
        *(
            Rung(f"losses, {mode}", TRAININGS, "trainings:modes", 15, (mode,), steps)
            for mode in ("adam", "sgd in place", "sgd", "adagrad", "rowwise_adagrad in place")
        ),
        Rung("rows kept on the device, and streamed", TRAININGS, "trainings:cached", 10, (), steps),
        Rung("CUDA graphs on and off", TRAININGS, "trainings:graphs", 12),
        make("ptb", 8),
        speed("ptb", book, BOOK, 20),
        make("wikipedia", 25),
        speed("wikipedia", book, IN_PLACE, 20),
        speed("wikipedia", fullw2v, IN_PLACE, 20),
        Rung("one rank, NCCL", RANKS, "trainings:one_rank", 12),
        each("replicated, adam"),
        each("columns, sgd in place"),
        Rung("--cache device and none", TRAININGS, "trainings:caches", 12, (), steps),
        Rung("killed, and resumed", TRAININGS, "trainings:resumed", 30, (False,), steps),
        Rung("parts of a training", WAITING, "speeds:waiting", 25, ("wikipedia",), (made("wikipedia"),)),
        Rung("tables of more than 2^31 numbers", KERNELS, "kernels:large_tables", 15),
        speed("wikipedia", book, BOOK, 30),
        Rung("profile of the slowest", WAITING, "profiling:slowest", 20),
        speed("ptb", book, IN_PLACE, 15),
        make("million", 25),
        speed("million", book, IN_PLACE, 25),
        two("replicated, adam"),
        two("columns, sgd in place"),
        Rung("killed, and resumed, --deterministic", TRAININGS, "trainings:resumed", 30, (True,), steps),
        two("columns, adam"),
        two("replicated, sgd in place"),
        each("columns, adam"),
        each("replicated, sgd in place"),
        speed("million", book, BOOK, 90),
        speed("wikipedia", large, IN_PLACE, 20),
        speed("ptb", large, BOOK, 20),
        speed("million", large, IN_PLACE, 30),
        speed("ptb", fullw2v, BOOK, 20),
        speed("ptb", fullw2v, IN_PLACE, 15),
        speed("ptb", large, IN_PLACE, 15),
        speed("wikipedia", fullw2v, BOOK, 30),
        speed("wikipedia", large, BOOK, 30),
        speed("million", fullw2v, IN_PLACE, 30),
        Rung("bfloat16 tables", KERNELS, "", 0, means_nothing="the kernels have float32 tables alone"),
        Rung("compiled", PAPER, "report:compiled", 45, means_nothing=no_paper),
    ]
    if not place.rehearses:
        return rungs
    rehearsed = [("ptb", book, BOOK), ("wikipedia", book, IN_PLACE)]
    return [
        rung for rung in rungs if rung.name != made("million") and (rung.part != SPEEDS or rung.arguments in rehearsed)
    ]


def made(corpus: str) -> str:
    """The name of the rung that makes a corpus's dataset."""
    return f"dataset {corpus}"
