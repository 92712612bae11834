"""Lies about every kind of file that is read: what a command may make of each is the right result, or one line.

    python tests/lies.py --seed 0 --count 1000              lies 0 to 999, of all kinds
    python tests/lies.py --seed 17 --count 1 --kind run     lie 17 about a run again

A worker process runs the commands one after the other, in itself, on copies of honest files in a fresh folder. This
process starts it, and starts it again after a lie that kills it or makes it hang. A lie follows from its number and
kind. lying/kinds.py has the kinds, lying/makers.py what is done to bytes.
"""

import argparse
import faulthandler
import io
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

TESTS = Path(__file__).resolve().parent
HANG_S = 30
START_S = 300
"""A worker loads everything, and perhaps compiles, before its first lie."""
MEMORY_BYTES = 2 << 30
"""What a command may take beyond what the process had before."""
LONGEST_LINE = 1000


@dataclass
class Told:
    """How many lies of each kind were told, how they ended, and the violations, each with the command to repeat it."""

    kinds: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    violations: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        count = self.kinds.total()
        of_kinds = ", ".join(f"{kind} {number:,}" for kind, number in sorted(self.kinds.items()))
        return (
            f"{count:,} lies ({of_kinds}), {self.refused:,} refused, {len(self.violations)} violations, "
            f"{self.seconds:.0f} s, {1000 * self.seconds / max(1, count):.0f} s per 1,000"
        )


def tell(seed: int, count: int, kind: str = "", workers: int = 1, limit_s: float = float("inf")) -> Told:
    """Tells the lies ``seed`` to ``seed + count - 1``, or as many of them as ``limit_s`` allows."""
    told, started = Told(), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="lies-") as home, ThreadPoolExecutor(workers) as pool:
        parts = [range(seed + number, seed + count, workers) for number in range(workers)]
        folders = [Path(home, str(number)) for number in range(workers)]
        for part in pool.map(lambda part, folder: _tell(part, folder, kind, started + limit_s), parts, folders):
            told.kinds += part.kinds
            told.refused += part.refused
            told.violations += part.violations
    told.seconds = time.monotonic() - started
    return told


def _tell(seeds: range, home: Path, kind: str, deadline: float) -> Told:
    told = Told()
    while seeds:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(parents=True)
        log = home / "stderr"
        arguments = [json.dumps([seeds.start, seeds.stop, seeds.step]), str(home), kind]
        command = [sys.executable, str(Path(__file__)), "--worker", *arguments]
        with log.open("wb") as errors, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors) as worker:
            assert worker.stdout
            at, wait_s = seeds.start, START_S
            for line in _lines(worker.stdout.fileno(), lambda: wait_s):  # noqa: B023
                found = json.loads(line)
                at, wait_s = found["seed"], HANG_S
                if "end" in found:
                    told.kinds[found["kind"]] += 1
                    told.refused += found["end"] == 2
                    told.violations += [found["violation"]] if found["violation"] else []
                    if at == seeds[-1] or time.monotonic() > deadline:
                        worker.kill()
                        return told
                    at, wait_s = at + seeds.step, START_S
            worker.kill()
            ended = worker.wait()
        how = "hung or was killed" if ended == -9 else f"ended with {ended}"
        name = kind_of(at, kind)
        told.kinds[name] += 1
        told.violations.append(f"{repeat(at, name)}: the process {how}\n{_head(log)}")
        seeds = range(at + seeds.step, seeds.stop, seeds.step)
    return told


def _head(log: Path) -> str:
    """The end of what the worker printed, without the list of its libraries."""
    return log.read_text(errors="replace").partition("Extension modules: ")[0][-3000:]


def _lines(file: int, wait_s: Any) -> Iterator[bytes]:
    """The lines of a pipe, until its end or until none comes in time."""
    rest = b""
    while select.select([file], [], [], wait_s())[0] and (found := os.read(file, 1 << 16)):
        *lines, rest = (rest + found).split(b"\n")
        yield from lines


def repeat(seed: int, kind: str) -> str:
    return f"python tests/lies.py --seed {seed} --count 1 --kind {kind}"


def kind_of(seed: int, kind: str) -> str:
    """The kind of a lie, if not given."""
    names, weights = zip(*WEIGHTS.items(), strict=True)
    return kind or str(random.Random(seed).choices(names, weights)[0])


WEIGHTS = {
    **{"dataset": 6, "checkpoint": 4, "run": 4, "word2vec": 3, "questions": 2, "evaluation": 1, "heldout": 2},
    **{"config": 2, "workspace": 2, "cache": 1},
}
"""How often each kind of file is lied about."""


# The worker


def work(seeds: range, home: Path, kind: str) -> None:
    from lying import kinds

    faulthandler.enable()
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    made: dict[str, Any] = {}
    with kinds.quick():
        for seed in seeds:
            name = kind_of(seed, kind)
            if name not in made:
                made[name] = kinds.KINDS[name](home)
            rng = random.Random(f"{name} {seed}")
            place = home / "place"
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            os.chdir(place)
            case = made[name].lie(place, rng)
            print(json.dumps({"seed": seed}), file=out)
            before = os.fstat(2).st_size
            ended = call(case.main, case.arguments)
            problem = judge(case, ended)
            if not problem and os.fstat(2).st_size > before:
                problem = "a library printed to stderr"
            violation = problem and (
                f"{repeat(seed, name)}: {problem}: {case.about}\n"
                f"{' '.join(case.arguments)}\nexit code {ended.code}\n{_middle_out(ended.stderr)}"
            )
            print(json.dumps({"seed": seed, "kind": name, "end": ended.code, "violation": violation}), file=out)


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def _middle_out(text: str) -> str:
    return text if len(text) <= 3000 else f"{text[:1500]} ... {text[-1500:]}"


def call(main: Any, arguments: list[str]) -> Ended:
    """Runs a command in this process, with the limit on memory. A traceback is part of stderr."""
    code: Any = 0
    stdout, stderr = io.StringIO(), io.StringIO()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BYTES, hard))
    try:
        with mock.patch("sys.argv", ["command", *arguments, "-v"]), redirect_stdout(stdout), redirect_stderr(stderr):
            try:
                main()
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                code = 1
                traceback.print_exc()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    return Ended(code, stdout.getvalue(), stderr.getvalue())


def judge(case: Any, ended: Ended) -> str | None:
    """What is wrong with the way in which a command ended; None if nothing is."""
    lines = [line for line in ended.stderr.split("\n")[:-1] if not (case.may_warn and line.startswith("warning: "))]
    if ended.code not in case.codes:
        return f"exit code {ended.code}"
    if ended.code not in (1, 2):  # 1, where the command allows it, is a child or a registry that failed
        return "success, and lines on stderr" if lines else case.judge(ended)
    if not lines or not all(line.startswith("error: ") for line in lines) or len(lines) > case.lines:
        return "not one line of error"
    if max(map(len, lines)) > LONGEST_LINE:
        return f"a line of {max(map(len, lines))} characters"
    if not "".join(lines).isprintable():
        return "an unprintable line"
    return case.refused()  # type: ignore[no-any-return]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help="the first lie")
    parser.add_argument("--count", type=int, default=1000, help="how many lies")
    parser.add_argument("--kind", default="", choices=["", *WEIGHTS], help="of one kind only")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    if arguments.worker:
        seeds, home, kind = arguments.worker
        work(range(*json.loads(seeds)), Path(home), kind)
        return
    told = tell(arguments.seed, arguments.count, arguments.kind, min(arguments.workers, arguments.count))
    for violation in told.violations:
        print(violation, end="\n\n")
    print(told)
    sys.exit(bool(told.violations))


if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]
    with suppress(KeyboardInterrupt):
        main()
