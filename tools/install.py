"""Runs `pip install` and prints one line for each slow operation. The Makefile runs it with an environment's Python.

pip itself prints either hundreds of lines or none. If pip fails, this program also prints pip's last lines.
"""

import re
import signal
import subprocess
import sys
from collections import deque
from pathlib import Path

LARGE_MB = 10
NUM_LAST_LINES = 15

DOWNLOADING = re.compile(r"\s*Downloading (\S+?)-(\d[^-\s]*?)(?:-\S+|\.tar\.gz|\.zip) \(([\d.]+) MB\)")
BUILDING = re.compile(r"\s*Building wheel for (\S+) .*started")
INSTALLING = re.compile(r"Installing collected packages: (.+)")


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends without a traceback
    environment = Path(sys.prefix)
    pip = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off"]
    last_lines = deque[str](maxlen=NUM_LAST_LINES)
    with subprocess.Popen(
        [*pip, *sys.argv[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as running:
        assert running.stdout
        for line in running.stdout:
            last_lines.append(line)
            if INSTALLING.match(line):
                # pip changes the environment only from here on. If a download fails, a ready environment stays ready.
                (environment / "ready").unlink(missing_ok=True)
            if shown := news(line):
                print(f"{environment.name}: {shown}", flush=True)
    if running.returncode:
        sys.stderr.writelines(last_lines)
        sys.exit(running.returncode)


def news(line: str) -> str | None:
    """The line to print for one of pip's: a large download, a build, or the installation. None for other lines."""
    if (found := DOWNLOADING.match(line)) and float(found[3]) >= LARGE_MB:
        return f"downloading {found[1]} {found[2]}, {float(found[3]):.0f} MB"
    if found := BUILDING.match(line):
        return f"building {found[1]}"
    if found := INSTALLING.match(line):
        names = found[1].split(", ")
        return f"installing {len(names)} packages" if names[1:] else f"installing {names[0]}"
    return None


if __name__ == "__main__":
    main()
