"""The tables of benchmarks/train.py: pure functions from runs to Markdown.

The loops take turns, so figures are compared turn by turn: a ratio is the median of the turns' ratios, never a ratio of
medians. Load that slows the machine in one turn then slows both sides of that turn's ratio.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import mean, median, variance

from benchmarks.measuring.provenance import table
from training.judging.evaluation import AnalogiesResult, PairsResult


@dataclass(frozen=True)
class Run:
    """One training run of any loop. Values that a loop does not report are empty."""

    examples: int
    """Centers that were trained on, over all epochs; for gensim, effective words."""
    tokens_per_s: float
    """Examples per second of training."""
    wall_s: float
    """Seconds of the whole process."""
    targets_per_row: float
    """Mean number of dot products per example. gensim draws from the same law, so it gets our figure."""
    losses: tuple[float, ...] = ()
    """The mean over the examples of each epoch, then over the whole run."""
    wait_share: float | None = None
    parts_s: dict[str, float] = field(default_factory=dict)
    pairs: PairsResult | None = None
    analogies: AnalogiesResult | None = None


Runs = dict[str, list[Run]]
"""The runs of each loop, one per turn."""


@dataclass(frozen=True)
class Target:
    """A figure and its target: a minimum or, with ``most``, a maximum."""

    what: str
    found: float
    wanted: float
    most: bool = False

    @property
    def is_met(self) -> bool:
        return self.found <= self.wanted if self.most else self.found >= self.wanted

    def row(self) -> tuple[str, ...]:
        wanted = f"{'<=' if self.most else '>='} {self.wanted:g}"
        return (self.what, f"{self.found:.3g}", wanted, "yes" if self.is_met else "**no**")


def target_table(targets: Sequence[Target]) -> list[str]:
    return table(("figure", "found", "wanted", "met"), [target.row() for target in targets])


# Speed


def speed_table(runs: Runs, rival: str) -> list[str]:
    """Medians over the turns; each loop's speed as a multiple of the rival's."""
    header = ["loop", "centers", "tokens/s", "lowest to highest", f"/ {rival}", "dot products/s", "waiting for data"]
    rows = []
    for name, found in runs.items():
        speeds = [run.tokens_per_s for run in found]
        waits = [run.wait_share for run in found if run.wait_share is not None]
        times = "" if name == rival or rival not in runs else f"{ratio(runs, name, rival):.2f}"
        rows.append(
            (
                name,
                f"{median(run.examples for run in found):,.0f}",
                f"{median(speeds):,.0f}",
                f"{min(speeds):,.0f} to {max(speeds):,.0f}",
                times,
                f"{median(run.tokens_per_s * run.targets_per_row for run in found) / 1e6:.1f} M",
                f"{median(waits):.1%}" if waits else "",
            )
        )
    return table(header, rows)


def ratio(runs: Runs, ours: str, rival: str, of: Callable[[Run], float] = lambda run: run.tokens_per_s) -> float:
    """The median over the turns of our figure divided by the rival's."""
    return median(of(a) / of(b) for a, b in zip(runs[ours], runs[rival], strict=True))


def loss_table(runs: Runs, rival: str) -> list[str]:
    """Median losses of each epoch and of the run, and the largest difference of an epoch's loss from the rival's."""
    losses = {
        name: [median(column) for column in zip(*(run.losses for run in found), strict=True)]
        for name, found in runs.items()
    }
    num_epochs = max(map(len, losses.values())) - 1
    rows = []
    for name, found in losses.items():
        beside = losses.get(rival, [])[:-1] if name != rival else []
        apart = max((abs(a - b) for a, b in zip(found, beside, strict=False)), default=None)
        rows.append((name, *(f"{loss:.4f}" for loss in found), "" if apart is None else f"{apart:.4f}"))
    epochs = [f"epoch {epoch + 1}" for epoch in range(num_epochs)]
    return table(["loop", *epochs, "run", f"largest difference to {rival}"], rows)


# Quality

QUALITY: dict[str, Callable[[Run], float | None]] = {
    "WordSim-353, Spearman": lambda run: run.pairs.spearman if run.pairs else None,
    "analogies, accuracy": lambda run: run.analogies.accuracy if run.analogies else None,
}


def quality_table(runs: Runs, rival: str) -> list[str]:
    """The mean and range of each figure over the seeds, and the distance of the mean from the rival's."""
    header = ["loop", *(text for name in QUALITY for text in (name, "lowest to highest", f"to {rival}, in spreads"))]
    rows = []
    for name, found in runs.items():
        cells = [name]
        for of in QUALITY.values():
            values = figures(found, of)
            apart = "" if name == rival else in_spreads(values, figures(runs.get(rival, []), of))
            cells += [f"{mean(values):.3f}", f"{min(values):.3f} to {max(values):.3f}", apart]
        rows.append(cells)
    return table(header, rows)


def figures(runs: Sequence[Run], of: Callable[[Run], float | None]) -> list[float]:
    return [value for value in map(of, runs) if value is not None]


def spreads_apart(ours: Sequence[float], rivals: Sequence[float]) -> float | None:
    """The difference of the means, in pooled standard deviations of one seed; None if the seeds show no spread."""
    if min(len(ours), len(rivals)) < 2:
        return None
    freedom = len(ours) + len(rivals) - 2
    pooled = ((len(ours) - 1) * variance(ours) + (len(rivals) - 1) * variance(rivals)) / freedom
    return float((mean(ours) - mean(rivals)) / pooled**0.5) if pooled > 0 else None


def in_spreads(ours: Sequence[float], rivals: Sequence[float]) -> str:
    apart = spreads_apart(ours, rivals)
    return "" if apart is None else f"{apart:+.1f}"


# From text to vectors

TEXT_TO_VECTORS, ONCE_MORE = "text to vectors", "once more on the dataset"


def gensim_s(run: Run) -> float:
    """Seconds that gensim needs after the sentences are in memory."""
    return run.parts_s["build_vocab_s"] + run.parts_s["train_s"]


def end_to_end_table(runs: Runs, prepare_s: Sequence[float]) -> list[str]:
    """Median seconds over the turns, and gensim's seconds divided by ours for the same task."""
    rows: list[tuple[str, ...]] = [("ours, prepare", f"{median(prepare_s):.1f}", "", "")]
    for errand, ours_s in errands(runs, prepare_s).items():
        times = [
            f"{median(gensim_ratios(runs['gensim'], ours_s, of)):.2f}" for of in (gensim_s, lambda run: run.wall_s)
        ]
        rows.append((f"ours, {errand}", f"{median(ours_s):.1f}", *times))
    for part in ("read_s", "build_vocab_s", "train_s", "save_s"):
        name = part.removesuffix("_s")
        rows.append((f"gensim, {name}", f"{median(run.parts_s[part] for run in runs['gensim']):.1f}", "", ""))
    rows.append(("gensim, build_vocab and train", f"{median(map(gensim_s, runs['gensim'])):.1f}", "", ""))
    rows.append(("gensim, its whole process", f"{median(run.wall_s for run in runs['gensim']):.1f}", "", ""))
    return table(("what", "seconds", "gensim's build_vocab and train / ours", "gensim's process / ours"), rows)


def errands(runs: Runs, prepare_s: Sequence[float]) -> dict[str, list[float]]:
    """Our seconds in each turn for each task; whole processes."""
    return {
        TEXT_TO_VECTORS: [prepare + run.wall_s for prepare, run in zip(prepare_s, runs["in-place-1"], strict=True)],
        ONCE_MORE: [run.wall_s for run in runs["once-more"]],
    }


def gensim_ratios(rivals: Sequence[Run], ours_s: Sequence[float], of: Callable[[Run], float] = gensim_s) -> list[float]:
    """gensim's seconds divided by ours, in each turn."""
    return [of(run) / seconds for run, seconds in zip(rivals, ours_s, strict=True)]


# Targets


def ptb_targets(runs: Runs) -> list[Target]:
    """The targets of the loops that ran."""
    return speed_targets("PTB", runs, ("ours-1", "plain", 14), ("ours-4", "plain", 1.5), ("in-place-1", "gensim", 3))


def wiki_targets(runs: Runs, prepare_s: Sequence[float]) -> list[Target]:
    targets = speed_targets("Wikipedia", runs, ("in-place-1", "gensim", 2.2))
    for name, of in QUALITY.items():
        gensim, one, four = (figures(runs[loop], of) for loop in ("gensim", "in-place-1", "in-place-4"))
        if not gensim:
            continue
        apart = spreads_apart(one, gensim)
        if apart is not None:
            targets.append(Target(f"{name}: in-place-1 - gensim, in spreads of a seed", apart, -2))
        targets.append(Target(f"{name}: in-place-4 - in-place-1, means", mean(four) - mean(one), -0.02))
    for errand, wanted in ((TEXT_TO_VECTORS, 1.0), (ONCE_MORE, 2.0)):
        found = median(gensim_ratios(runs["gensim"], errands(runs, prepare_s)[errand]))
        targets.append(Target(f"Wikipedia, {errand}: gensim's build_vocab and train / ours, seconds", found, wanted))
    return targets


def speed_targets(corpus: str, runs: Runs, *wanted: tuple[str, str, float]) -> list[Target]:
    """Speed ratios from (ours, rival, least ratio) of the loops that ran, and the largest share of waiting time."""
    targets = [
        Target(f"{corpus}: {ours} / {rival}, tokens/s", ratio(runs, ours, rival), least)
        for ours, rival, least in wanted
        if {ours, rival} <= runs.keys()
    ]
    waits = [[run.wait_share for run in found if run.wait_share is not None] for found in runs.values()]
    if any(waits):
        longest = max(median(shares) for shares in waits if shares)
        targets.append(
            Target(f"{corpus}: largest share of a loop's time that it waits for data", longest, 0.05, most=True)
        )
    return targets
