"""A run on one page, report.html. It contains its pictures and loads nothing, so it opens anywhere.

python -m training.report runs/ptb                                          writes the page again
python -m training.report runs/ptb --probe chip market                      with the neighbours of these words
python -m training.report runs/ptb --evaluation evaluation.json             with what training.evaluate printed

training/train.py writes one at its end. V words, D dimensions.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined

from pipeline.dataset.manifest_file import Manifest
from pipeline.shared.cli import Parser, command, path
from pipeline.shared.errors import InputError
from pipeline.shared.files import write
from training.runs.report_data import Evaluation, FinishedRun, Rows, read_evaluation
from training.runs.report_plots import MOST_POINTS, bars, lines, map_of
from training.vectors.compare import Growth
from training.vectors.run_files import REPORT
from training.vectors.word_vectors import Vectors

NUM_PROBES, NUM_NEIGHBOURS, NUM_ON_MAP = 12, 8, 200


def write_report(
    run: FinishedRun, folder: Path, probes: Sequence[str] = (), evaluation: Evaluation | None = None
) -> None:
    """Writes report.html into ``folder``, atomically. Raises InputError for a probe that has no vector."""
    write(folder / REPORT, page(run, probes, evaluation).encode())


def page(run: FinishedRun, probes: Sequence[str] = (), evaluation: Evaluation | None = None) -> str:
    """The page. Takes a second or less; with millions of words, a second more for each probe."""
    loader = PackageLoader("training.runs", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    vectors = Vectors(run.words, run.center_VD)
    shown = list(dict.fromkeys(probes)) or spread_words(run.words)
    first, last = _on_map(len(run.words))
    manifest, rows = run.sampled.manifest, run.sampled.rows
    return environment.get_template("report.html.j2").render(
        name=run.name,
        tiles=_tiles(run),
        epochs=run.epochs,
        heldout=run.heldout_by_epoch,
        best=run.best,
        data=run.config["data"],
        log_every=run.config["log_every"],
        each_point=_each_point(run),
        missing=run.sampled.missing,
        sampling=_sampling(manifest) if manifest else None,
        words=_before_after(run, rows) if rows else None,
        rows_read=_rows_read(rows) if rows else None,
        windows=_windows(manifest) if manifest else None,
        max_contexts=manifest.config.max_contexts if manifest else None,
        mean_contexts=np.dot(rows.num_contexts, range(len(rows.num_contexts))) / max(1, rows.read) if rows else None,
        neighbours={word: vectors.most_similar(word, NUM_NEIGHBOURS) for word in shown},
        probes=probes,
        map_is=f"The words of rank {first:,} to {last - 1:,}, a dot each, on the two axes of greatest variance.",
        dim=run.center_VD.shape[1],
        evaluation=evaluation,
        origin=_origin(run),
        config=run.config,
        pipeline=asdict(manifest.config) if manifest else None,
        pictures=_pictures(run, run.words[first:last], run.center_VD[first:last]),
    )


def spread_words(words: Sequence[str]) -> list[str]:
    """NUM_PROBES words from frequent to rare, at ranks of equal ratios; words of letters alone are preferred."""
    found: set[int] = set()
    begin, end = max(1, min(50, len(words) // 10)), len(words) - 1
    for rank in np.geomspace(begin, max(begin, end), NUM_PROBES).astype(int).tolist():
        near = [row for row in range(rank, min(rank + 20, len(words))) if row not in found]
        plain = [row for row in near if words[row].isalpha() and len(words[row]) > 2]
        found |= {*(plain or near)[:1]}
    return [words[row] for row in sorted(found)]


def _on_map(num_words: int) -> tuple[int, int]:
    """The first and last rank on the map. The most frequent words are left out: they are near everything."""
    first = max(1, min(50, num_words // 10))
    return first, min(num_words, first + NUM_ON_MAP)


def _each_point(run: FinishedRun) -> str:
    """What a point of a picture by step is: neighbouring points are averaged if there are too many to draw."""
    means = -(-len(run.steps) // MOST_POINTS)
    return f"Each point is the mean of {run.config['log_every'] * max(1, means):,} steps."


def _tiles(run: FinishedRun) -> dict[str, str]:
    summary = run.summary
    return {
        "last epoch's loss": f"{summary['loss']:.4f}",
        **({"lowest held-out loss": f"{run.best['loss']:.4f}"} if run.best else {}),
        "whole run's loss": f"{summary['mean_loss']:.4f}",
        "tokens/s": f"{summary['tokens_per_s']:,.0f}",
        "examples": f"{summary['examples']:,}",
        "steps": f"{summary['steps']:,}",
        "epochs": f"{len(run.epochs):,}",
        "words": f"{len(run.words) - 1:,}",
        "dimensions": f"{run.center_VD.shape[1]:,}",
    }


def _sampling(manifest: Manifest) -> dict[str, str]:
    """The manifest's counts as text. The kept tokens follow from them, unless some sequences are sampled less often.

    The tokens of sequences that are too short, one each at most, are among those that are counted.
    """
    counts, epochs = manifest.counts, manifest.sampled_epochs
    known = counts.tokens - counts.unknown
    found = {
        "lines": f"{counts.lines:,}, of which {counts.too_short:,} are too short to be used",
        "sequences of two tokens or more": f"{counts.sequences:,}",
        "tokens": f"{counts.tokens:,}, of which {counts.unknown:,} are <unk> and {known:,} are known",
        "sampled epochs": f"{epochs:,}",
        "dropped by subsampling": f"{counts.subsampled:,} known tokens in all sampled epochs",
    }
    if epochs == 1 or manifest.config.holdout == 0:
        kept = known - counts.subsampled / epochs
        found["kept by subsampling"] = f"{kept / max(1, known):.1%} of the known tokens, in each sampled epoch"
        about = "about " if counts.too_short else ""
        before, after = (value / max(1, counts.sequences) for value in (known, kept))
        found["known tokens per sequence"] = f"{about}{before:.2f} before, {after:.2f} after subsampling"
    found["examples"] = f"{counts.examples:,} in all sampled epochs, with {counts.pairs:,} contexts"
    return found


def _windows(manifest: Manifest) -> str:
    """What the contexts of a center are."""
    config = manifest.config
    where = {"both": "", "left": " before the center", "right": " after the center"}[config.window_side]
    if isinstance(config.window, str):
        return f"Contexts are all other kept tokens of the sequence{where}, or a random sample of them"
    radius = "drawn from 1 to" if config.window_kind == "dynamic" else "always"
    return f"The radius of each window is {radius} {config.window}, over the kept tokens{where}"


def _before_after(run: FinishedRun, rows: Rows) -> list[dict[str, Any]]:
    """The most frequent word, "the" if it is a word, and words from frequent to rare."""
    ranks = {1, *(run.words.index(word) for word in ("the", *spread_words(run.words)[::3]) if word in run.words)}
    ranks |= {len(run.words) - 1}
    known = int(run.counts_V[1:].sum())
    return [
        {
            "word": run.words[rank],
            "rank": rank,
            "before": int(run.counts_V[rank]),
            "share_before": int(run.counts_V[rank]) / max(1, known),
            "after": int(rows.centers_V[rank]),
            "share_after": int(rows.centers_V[rank]) / max(1, rows.read),
        }
        for rank in sorted(ranks)
    ]


def _rows_read(rows: Rows) -> str:
    which = f"All {rows.of:,}" if rows.read == rows.of else f"The first {rows.read:,} of the {rows.of:,}"
    return f"{which} examples of the first sampled epoch were counted."


def _origin(run: FinishedRun) -> dict[str, Any]:
    names = ("dataset_id", "commit", "device", "kernel", "world_size", "threads", "seconds")
    found = {name: run.summary[name] for name in names if name in run.summary}
    if grown := run.summary.get("vocabulary_growth"):
        found["warm start"] = f"{run.config['init_from']}: {Growth(**grown)}"
    return {**found, **run.summary.get("versions", {})}


def _pictures(run: FinishedRun, words: list[str], vectors_VD: npt.NDArray[np.float32]) -> dict[str, str]:
    """SVG of each picture; empty if there is nothing to draw."""

    def of_steps(name: str) -> list[tuple[float, float]]:
        return [(line["step"], line[name]) for line in run.steps]

    def of_epochs(name: str) -> list[tuple[float, float]]:
        return [(line["epoch"] + 1, line[name]) for line in run.epochs]

    losses = {"of the epoch": of_epochs("loss"), "of the run so far": of_epochs("mean_loss")}
    of_steps_too = {"loss": of_steps("loss")}
    if run.heldout:
        losses["held out"] = [(epoch + 1, loss) for epoch, loss in run.heldout_by_epoch.items()]
        of_steps_too["held out"] = [(line["step"], line["loss"]) for line in run.heldout]
    found = {"map": map_of(words, vectors_VD)}
    if len(run.epochs) > 1:
        alt = f"Loss of each epoch, {run.epochs[-1]['loss']:.4f} at the end"
        found["epochs"] = lines("epochs", alt, "epoch", "loss", losses)
    if run.steps:
        found["steps"] = lines("steps", "Loss by step", "step", "loss", of_steps_too)
        speed = {"tokens/s": of_steps("tokens_per_s")}
        found["speed"] = lines("speed", "Tokens a second by step", "step", "tokens/s", speed, floor=0)
        waiting = {"waiting": [(step, 100 * share) for step, share in of_steps("wait_share")]}
        alt = "Share of the time spent waiting, by step"
        found["wait"] = lines("wait", alt, "step", "waiting, % of the time", waiting, floor=0)
    if rows := run.sampled.rows:
        found["contexts"] = bars(
            "contexts", "Examples by their number of contexts", "contexts", "examples", rows.num_contexts
        )
    return {name: found.get(name, "") for name in ("steps", "epochs", "speed", "wait", "contexts", "map")}


def main() -> None:
    parser = Parser(
        "python -m training.report",
        "Writes report.html, a run on one page, into the run's folder.",
        "python -m training.report runs/ptb --probe chip market",
    )
    parser.add_argument("run", type=path, help="a finished run's folder, such as runs/ptb")
    parser.add_argument("--probe", nargs="+", default=[], metavar="WORD", help="show the neighbours of these words")
    parser.add_argument(
        "--evaluation", type=path, metavar="FILE", help="JSON that python -m training.evaluate has printed"
    )
    with command():
        arguments = parser.parse_args()
        evaluation = read_evaluation(arguments.evaluation) if arguments.evaluation else None
        try:
            write_report(FinishedRun.load(arguments.run), arguments.run, arguments.probe, evaluation)
        except OSError as error:
            raise InputError(f"{arguments.run}: {REPORT} cannot be written ({error.strerror}); make room") from None
        print(arguments.run / REPORT)


if __name__ == "__main__":
    main()
