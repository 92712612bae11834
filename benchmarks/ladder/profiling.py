"""Rung: where the time of the slowest case goes, in words; by torch.profiler, and by Nsight Compute if it is there."""

import csv
import io
import json
import shutil
import subprocess
import sys
from collections import defaultdict
from itertools import islice
from pathlib import Path
from statistics import mean

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.ladder.child import stand_in
from benchmarks.ladder.climb import Found, Skip, Work
from benchmarks.ladder.place import place_of
from benchmarks.ladder.speeds import Case, copy_of, part_of, step_of, wait_for
from benchmarks.measuring.provenance import ROOT
from pipeline.dataset.manifest_file import Manifest
from training.model.batch import Batch
from training.model.steps import Step
from training.reading.device_feed import copied
from training.reading.epochs import stream_of

METRICS = {
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "of the memory's peak bandwidth",
    "lts__throughput.avg.pct_of_peak_sustained_elapsed": "of the L2 cache's",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "of the multiprocessors'",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "of the warps that fit are there",
}
"""What Nsight Compute is asked for, as percentages."""

KERNELS = "regex:_update|_forward|_backward"
NCU_S = 90


def slowest(work: Work) -> Found:
    """Profiles steps of the case that moves the fewest bytes per second."""
    place = place_of(work)
    stand_in(place.stand_ins)
    speeds = {
        name: figures for name, figures in work.figures.items() if "bytes_per_s" in figures and "recipe" in figures
    }
    if not speeds:
        raise Skip("no speed was measured")
    name = min(speeds, key=lambda name: float(speeds[name]["bytes_per_s"]))
    case = Case(*(speeds[name][field] for field in Case._fields))
    step, batches = ready(work, case)
    activities = [ProfilerActivity.CPU] if place.rehearses else [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    with profile(activities=activities) as profiled:
        for batch in batches:
            step(batch, 1e-6)
        wait_for(place)
    events = [event for event in profiled.events() if place.rehearses or event.device_type.name == "CUDA"]
    spans = [(event.name, event.time_range.start, event.time_range.end) for event in events]
    lines = [f"{name}, {len(batches)} steps: {in_words(spans)}", counters(work, case)]
    return Found(lines[0], {"words": lines})


def ready(work: Work, case: Case) -> tuple[Step, list[Batch]]:
    """A step that is warm, and batches on the device."""
    place = place_of(work)
    data = part_of(work.datasets[case.corpus], place.sizes.rows, work.folder / "part")
    config, manifest = case.config(place, data, work.folder / "run"), Manifest.load(data)
    step = step_of(case, config, manifest, place)
    stream = copied(stream_of(config, manifest, 0).batches(0, 1), torch.device(place.device))
    batches = [copy_of(batch) for batch in islice(stream, place.sizes.calls)]
    for batch in batches[:5]:
        step(batch, 1e-6)
    wait_for(place)
    return step, batches


def in_words(spans: list[tuple[str, float, float]]) -> str:
    """What ran, as shares of the time from the first start to the last end, in us; and how long nothing did."""
    if not spans:
        return "the profiler saw nothing run"
    begin, end = min(start for _, start, _ in spans), max(stop for *_, stop in spans)
    total, reached, busy = max(1e-9, end - begin), begin, 0.0
    times: dict[str, float] = defaultdict(float)
    numbers: dict[str, int] = defaultdict(int)
    for name, start, stop in sorted(spans, key=lambda span: span[1]):
        busy += max(0.0, stop - max(start, reached))
        reached = max(reached, stop)
        times[name] += stop - start
        numbers[name] += 1
    parts = sorted(times, key=lambda name: -times[name])[:6]
    told = [
        f"{times[name] / total:.0%} {name.split('(')[0][:60]} ({numbers[name]} x {times[name] / numbers[name]:,.1f} us)"
        for name in parts
    ]
    return f"of {total / 1e3:,.2f} ms, {1 - busy / total:.0%} nothing ran; {', '.join(told)}"


def counters(work: Work, case: Case) -> str:
    """What Nsight Compute counts in a few launches."""
    ncu = shutil.which("ncu")
    if ncu is None:
        return "Nsight Compute (ncu) is not here."
    task = work.folder / "counted.json"
    task.write_text(json.dumps([str(work.folder), work.rehearses, work.datasets, case]))
    asked = [
        "--csv",
        "--kernel-name",
        KERNELS,
        "--launch-skip",
        "6",
        "--launch-count",
        "6",
        "--metrics",
        ",".join(METRICS),
    ]
    command = [ncu, *asked, sys.executable, "-m", "benchmarks.ladder.profiling", str(task)]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=NCU_S, check=False)
    except subprocess.TimeoutExpired:
        return f"Nsight Compute took more than {NCU_S} s."
    return counted(done.stdout) or f"Nsight Compute counted nothing: {(done.stdout + done.stderr).strip()[-300:]}"


def counted(printed: str) -> str:
    """Nsight Compute's CSV in words: means over the launches of each kernel. Empty if there is none."""
    begin = printed.find('"ID"')
    rows = list(csv.DictReader(io.StringIO(printed[begin:]))) if begin >= 0 else []
    values: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row.get("Metric Name") in METRICS:
            values[row["Kernel Name"]][row["Metric Name"]].append(float(row["Metric Value"].replace(",", "")))
    told = [
        f"{kernel}: {', '.join(f'{mean(found):.0f} % {METRICS[metric]}' for metric, found in metrics.items())}"
        for kernel, metrics in values.items()
    ]
    return "; ".join(told)


def main() -> None:
    """A few steps for Nsight Compute to look at."""
    folder, rehearses, datasets, case = json.loads(Path(sys.argv[1]).read_text())
    scratch = Path(folder) / "counted"
    scratch.mkdir()
    work = Work(rehearses, scratch, datasets)
    stand_in(place_of(work).stand_ins)
    step, batches = ready(work, Case(*case))
    for batch in batches[:12]:
        step(batch, 1e-6)
    wait_for(place_of(work))


if __name__ == "__main__":
    main()
