"""The report of a climb, as Markdown; written anew after every rung, so that an end at any moment leaves one."""

import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.ladder.climb import Found, Outcome, Work, begin, said
from benchmarks.ladder.place import Place
from benchmarks.ladder.rungs import DEVICE, PAPER, SPEEDS, WAITING
from benchmarks.measuring.provenance import ROOT, table
from benchmarks.measuring.train_tables import Target, target_table

LOG_LINES = 15
"""Of a failed rung's log, how many of the last ones the report shows."""

WAITED = 0.05
"""Share of the time that a training may wait for data."""


def report(place: Place, origin: Sequence[str], outcomes: Sequence[Outcome], num_rungs: int, logs: Path) -> str:
    """The whole report. ``origin`` says where and when, ``logs`` is where each rung's log is."""
    parts: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        parts.setdefault(outcome.rung.part, []).append(outcome)
    lines = ["# The GPU side, rung by rung", "", *origin, "", *verdict(place, outcomes, num_rungs)]
    if not place.rehearses:
        lines += targets(outcomes)
    for part, found in parts.items():
        if part == PAPER and found[0].result == "passed":
            continue
        lines += ["", f"## {part}", ""]
        rows = [
            (f"{row.rung.name}", row.result.replace("failed", "**failed**"), f"{row.seconds:.0f}", escaped(row.text))
            for row in found
        ]
        lines += left_table(("rung", "result", "s", "what was found"), rows)
        lines += {SPEEDS: speed_lines, WAITING: waiting_lines}.get(part, lambda _: [])(outcomes)
    lines += failures(outcomes, logs)
    for outcome in parts.get(PAPER, []):
        if outcome.result == "passed":
            lines += ["", str(outcome.figures["markdown"]).strip()]
    return "\n".join([*lines, ""])


def escaped(text: str) -> str:
    """A text as a cell of a table."""
    return text.replace("|", "\\|")


def left_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of words."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def verdict(place: Place, outcomes: Sequence[Outcome], num_rungs: int) -> list[str]:
    """What holds, what does not, and what is not known, in a few sentences."""
    numbers = Counter(outcome.result for outcome in outcomes)
    told = ", ".join(f"{numbers[result]} {result}" for result in ("passed", "failed", "skipped"))
    to_come = num_rungs - len(outcomes)
    lines = [f"**Of {num_rungs} rungs {told}{f'; {to_come} are still to come' if to_come else ''}.**"]
    if place.rehearses:
        lines += [
            "",
            "This is a rehearsal on a CPU, with tiny sizes, Triton's interpreter, gloo for NCCL and no CUDA graphs: a "
            "rung that passed says that its code runs. It says nothing of a GPU, and its speeds mean nothing.",
        ]
    for result, title in (("failed", "Does not hold"), ("skipped", "Not known")):
        names = [outcome.rung.name for outcome in outcomes if outcome.result == result]
        if names:
            lines += ["", f"{title}: {'; '.join(names)}."]
    return lines


def targets(outcomes: Sequence[Outcome]) -> list[str]:
    """What is to be reached on an H100, as far as it was measured."""
    figures = {outcome.rung.name: outcome.figures for outcome in outcomes if outcome.result == "passed"}
    found: list[Target] = []
    for name, what, wanted in (
        ("ptb, dim 100, book", "the book's recipe, V = 6,719: tokens/s", 10e6),
        ("wikipedia, dim 100, in place", "in place, V = 67,849: tokens/s", 40e6),
    ):
        if name in figures:
            found.append(Target(what, figures[name]["tokens_per_s"], wanted))
            found.append(
                Target(f"{name}: share of the time waiting for data", figures[name]["wait_share"], WAITED, most=True)
            )
    apart = [figures[outcome.rung.name]["apart"] for outcome in outcomes if "apart" in outcome.figures]
    if apart:
        found.append(Target("a mean loss and what it is compared with, apart", max(apart), 0.0006, most=True))
    return ["", "## Targets", "", *target_table(found)] if found else []


def speed_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """The figures of all speeds."""
    device = next((row.figures for row in outcomes if row.rung.part == DEVICE and "bytes_per_s" in row.figures), None)
    rows = []
    for outcome in outcomes:
        figures = outcome.figures
        if outcome.rung.part != SPEEDS or outcome.result != "passed":
            continue
        ratio = f"{figures['ratio']:.1f}" if figures["ratio"] is not None else ""
        share = f"{figures['bytes_per_s'] / device['bytes_per_s']:.2f}" if device else ""
        rows.append(
            (
                outcome.rung.name,
                f"{figures['vocab_size']:,}",
                f"{figures['tokens_per_s']:,.0f}",
                f"{figures['tokens_per_s_whole']:,.0f}",
                ratio,
                f"{figures['products_per_s'] / 1e6:,.1f} M",
                f"{figures['bytes_per_s'] / 1e9:,.1f}",
                share,
                f"{figures['wait_share']:.1%}",
            )
        )
    if not rows:
        return []
    header = ["case", "V", "tokens/s", "whole run", "/ eager loop", "dot products/s", "GB/s", "/ copying", "waiting"]
    return [
        "",
        *table(header, rows),
        "",
        "- Medians of turns, of whole trainings; a turn's number is its seed. tokens/s are those of a median epoch "
        "after the first; *whole run* has the first epoch in it, which reads the shards. No checkpoints were written.",
        "- *eager loop*: the book's, in plain PyTorch with Adam, on the same device, in turns with ours. Its rows are "
        "in memory before its clock starts.",
        "- *GB/s*: what the steps must at least read and write in tables, gradients and moments, wherever these are. "
        "*/ copying*: divided by what copying from memory reads and writes. Above 1: the L2 cache serves more.",
        "- FULL-W2V's protocol: dim 128, 5 negatives, window 5. Words and tokens are those that subsampling keeps.",
    ]


def waiting_lines(outcomes: Sequence[Outcome]) -> list[str]:
    """Rows/s of a training's parts, and the words of the profile."""
    lines: list[str] = []
    for outcome in outcomes:
        found: dict[str, Any] = outcome.figures
        if "rows_per_s" in found:
            gigabytes = found["row_bytes"] / 1e9
            rows = [(name, f"{speed:,.0f}", f"{speed * gigabytes:,.3f}") for name, speed in found["rows_per_s"].items()]
            lines += ["", *table([f"{found['corpus']}, in place", "rows/s", "GB/s of rows"], rows)]
        for words in found.get("words", ()):
            lines += ["", words]
    return lines


def failures(outcomes: Sequence[Outcome], logs: Path) -> list[str]:
    """The ends of the logs of what failed."""
    lines: list[str] = []
    for outcome in outcomes:
        if outcome.result != "failed":
            continue
        log = logs / log_name(outcome.rung.name)
        text = log.read_text(errors="replace") if log.exists() else ""
        printed = text.replace(f"{logs.parent}/", "").replace(f"{ROOT}/", "").splitlines()[-LOG_LINES:]
        lines += ["", f"### {outcome.rung.name}", "", outcome.text, "", "```", *printed, "```"]
    return ["", "## What failed", *lines] if lines else []


def log_name(rung: str) -> str:
    """The file of a rung's log."""
    return "".join(mark if mark.isalnum() else "-" for mark in rung) + ".log"


def compiled(work: Work) -> Found:
    """What the compiler says of each kernel; no GPU is needed, and no interpreter may be there."""
    markdown = work.folder / "compiled.md"
    exit_code = begin([sys.executable, "-c", COMPILE, str(markdown)], {}, None).wait()
    assert exit_code == 0, said(exit_code)
    below = re.sub(r"^#", "##", markdown.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return Found("see the end of this report", {"markdown": below})


COMPILE = """
import sys
from pathlib import Path
from benchmarks.ladder.compiled import compiled_report
Path(sys.argv[1]).write_text(compiled_report(), encoding="utf-8")
"""
