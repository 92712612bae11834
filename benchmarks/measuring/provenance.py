"""The origin of a benchmark's figures, for its report; and Markdown tables."""

import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from training.model.limits import num_cores

ROOT = Path(__file__).resolve().parents[2]


def provenance(*packages: str, hardware: str = "") -> list[str]:
    """Markdown: command, hardware, versions of ``packages``, date. Call it first: it records the current commit.

    ``hardware`` is added to cores and processor. Absolute paths in the command are cut to their last part.
    """
    script, *arguments = sys.argv
    shown = [re.sub(r"(^|=)/.*/", r"\1", argument) for argument in arguments]
    versions = [f"{package} {version(package)}" for package in packages]
    return [
        f"- Command: `{shlex.join(['python', f'benchmarks/{Path(script).name}', *shown])}`",
        f"- Hardware: {num_cores()} cores, {processor()}{hardware and f'; {hardware}'}",
        f"- Software: {', '.join([f'commit {commit()}', f'Python {platform.python_version()}', *versions])}",
        f"- Date: {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    ]


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table: the first column is left-aligned, the others are right-aligned."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def commit() -> str:
    """The commit of this code, with "-dirty" if files differ from it; "unknown" outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
