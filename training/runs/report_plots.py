"""loss.png, and the pictures of report.html: SVG inside the page, in the page's text colour, light or dark.

V words, D dimensions, N points.
"""

import html
import io
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from training.runs.report_data import FinishedRun
from training.vectors.cosine import unit

MOST_POINTS = 1000
"""Of one line; more than a screen has pixel columns."""

INK = "#0a0b0c"
"""A placeholder for the page's text colour."""

BLUE, ORANGE, GREEN = "#3d85c8", "#d9772b", "#3f9a5c"

SIZE = 4.6, 3.1

Points = Sequence[tuple[float, float]]


def thinned(points: Points) -> Points:
    """At most MOST_POINTS points: means over equal runs of neighbouring points; the last run may be shorter."""
    size = -(-len(points) // MOST_POINTS)
    if size <= 1:
        return points
    array_N2 = np.array(points, dtype=np.float64)
    begins = np.arange(0, len(points), size)
    means = np.add.reduceat(array_N2, begins) / np.diff([*begins, len(points)])[:, None]
    return [(float(x), float(y)) for x, y in means]


def loss_png(run: FinishedRun, log_every: int) -> bytes:
    """loss.png: the loss of each ``log_every`` steps and of each epoch, and that of the held-out examples."""
    figure = Figure(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    if run.steps:
        points = [(line["step"], line["loss"]) for line in run.steps]
        axes.plot(*zip(*points, strict=True), linewidth=1, color=BLUE, label=f"mean of {log_every:,} steps")
    ends = [(line["step"], line["loss"]) for line in run.epochs]
    axes.plot(*zip(*ends, strict=True), "o-", color=ORANGE, label="mean of an epoch, at its end")
    if run.heldout:
        points = [(line["step"], line["loss"]) for line in run.heldout]
        axes.plot(*zip(*points, strict=True), "o-", color=GREEN, label="of held-out examples")
    axes.set(xlabel="step", ylabel="loss, mean per example")
    axes.grid(alpha=0.25)
    whole_numbers(axes)
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png")
    return image.getvalue()


def lines(name: str, alt: str, x: str, y: str, series: Mapping[str, Points], floor: float | None = None) -> str:
    """A picture of up to three lines, with marks if there are few points. The y axis begins at ``floor``."""

    def draw(axes: Axes) -> None:
        for (label, points), colour in zip(series.items(), (BLUE, ORANGE, GREEN), strict=False):
            mark = "o-" if len(points) <= 20 else "-"
            axes.plot(*zip(*thinned(points), strict=True), mark, color=colour, linewidth=1.2, markersize=4, label=label)
        axes.set(xlabel=x, ylabel=y)
        if max(y for points in series.values() for _, y in points) > 1000:
            axes.yaxis.set_major_formatter("{x:,.0f}")
        if floor is not None:
            axes.set_ylim(bottom=floor)
        if len(series) > 1:
            axes.legend(frameon=False)
        whole_numbers(axes)

    return picture(name, alt, draw)


def bars(name: str, alt: str, x: str, y: str, heights: Sequence[int]) -> str:
    """A picture of a bar for each of 1, 2 ...; the first of ``heights`` is that of 0, and is not drawn."""

    def draw(axes: Axes) -> None:
        axes.bar(range(1, len(heights)), heights[1:], color=BLUE)
        axes.set(xlabel=x, ylabel=y)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        whole_numbers(axes)

    return picture(name, alt, draw)


def picture(name: str, alt: str, draw: Callable[[Axes], None], size: tuple[float, float] = SIZE) -> str:
    """SVG of a figure of ``size`` inches, of which a phone's screen has 4.6: then its text is readable there."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": name, "text.color": INK, "axes.labelcolor": INK}
    settings |= {"axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 10}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=size, layout="constrained", facecolor="none")
        axes = figure.add_subplot(facecolor="none")
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        draw(axes)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    return _inline(name, alt, written.getvalue())


def whole_numbers(axes: Axes) -> None:
    """A few round ticks, for steps and epochs."""
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.xaxis.set_major_formatter("{x:,.0f}")


def _inline(name: str, alt: str, svg: str) -> str:
    """SVG that can share a page with other pictures: its ids are unique, and it has no size of its own."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box
    return f"{_opened(alt, box[0])}{svg[svg.index('>') + 1 :].strip()}"


def _opened(alt: str, box: str) -> str:
    return f'<svg role="img" aria-label="{html.escape(alt)}" {box} xmlns:xlink="http://www.w3.org/1999/xlink">'


def map_of(words: Sequence[str], vectors_VD: npt.NDArray[np.float32], size: int = 460) -> str:
    """A scatter plot of the words' unit vectors on the two axes of greatest variance (PCA by SVD).

    Every word is a dot, with its name beside it where that covers no dot and no name of an earlier word.
    """
    unit_VD = unit(vectors_VD)
    unit_VD = unit_VD - unit_VD.mean(axis=0)
    left_VK, lengths_K, _ = np.linalg.svd(unit_VD, full_matrices=False)
    places_V2 = (left_VK[:, :2] * lengths_K[:2]).astype(np.float64)
    low, high = places_V2.min(axis=0), places_V2.max(axis=0)
    margin = np.array([45, 16])
    places_V2 = margin + (places_V2 - low) / np.maximum(high - low, 1e-9) * (size - 2 * margin)
    drawn = [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{BLUE}"/>' for x, y in places_V2]
    taken = [(x - 2, y - 2, x + 2, y + 2) for x, y in places_V2.tolist()]
    for word, (x, y) in zip(words, places_V2.tolist(), strict=True):
        shown = word if len(word) <= 16 else f"{word[:15]}…"
        half = sum(map(_width, shown)) / 2 + 1
        for across, down in ((x, y - 9), (x, y + 9), (x + half + 3, y), (x - half - 3, y)):
            room = across - half, down - 5, across + half, down + 5
            inside = min(room) >= 0 and max(room) <= size
            if inside and not any(_overlap(room, other) for other in taken):
                taken.append(room)
                drawn.append(f'<text x="{across:.1f}" y="{down + 4:.1f}">{html.escape(shown)}</text>')
                break
    alt = f"A map of {len(words)} frequent words, {len(taken) - len(words)} of them named"
    style = 'font-family="sans-serif" font-size="12" text-anchor="middle" fill="currentColor"'
    box = f'viewBox="0 0 {size} {size}"'
    return f"{_opened(alt, box)}<g {style}>{''.join(drawn)}</g></svg>"


def _width(letter: str) -> float:
    """About the width of a letter of size 12; it depends on the browser's font."""
    if unicodedata.east_asian_width(letter) in "FW":
        return 12
    return 9 if letter.isupper() else 7


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
