"""What the kinds of lies share: a case, damage to copies of files, and runs of the trainer."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lies
import numpy as np
from lying import makers
from lying.makers import Random
from safetensors.numpy import load_file

QUICK = "--dim 8 --device cpu --global-batch 64 --threads 1 --no-tensorboard"
EPOCHS = "2"
MODES = {"adam": "", "in place": "--sync-every 4 --optimizer rowwise_adagrad", "sgd in place": "--sync-every 4"}
Damage = Callable[[bytes, Random], bytes]


def nothing_wrong(_: lies.Ended) -> str | None:
    return None


@dataclass(frozen=True)
class Case:
    """A lie that was told, in words; the command that reads it; and what is wrong with its success, if anything."""

    about: str
    main: Callable[[], None]
    arguments: list[str]
    judge: Callable[[lies.Ended], str | None] = nothing_wrong
    refused: Callable[[], str | None] = lambda: None
    codes: tuple[int, ...] = (0, 2)
    lines: int = 1
    """The most lines of error."""
    may_warn: bool = False


def change(path: Path, lie: Damage, rng: Random) -> str:
    path.write_bytes(lie(path.read_bytes(), rng))
    return f"{getattr(lie, '__name__', 'damage')} in {path.name}"


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def damage_one(folder: Path, rng: Random) -> str:
    """Damages a file, or swaps or removes files."""
    path, other = rng.choice(files_of(folder)), rng.choice(files_of(folder))
    match rng.choice(("bytes", "bytes", "bytes", "bytes", "swap", "remove", "folder")):
        case "swap":
            content = path.read_bytes()
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
            return f"{path.name} and {other.name} swapped"
        case "remove":
            path.unlink()
            return f"{path.name} removed"
        case "folder":
            path.unlink()
            path.mkdir()
            return f"{path.name} is a folder"
    return change(path, makers.damage, rng)


def train_flags(data: Path | str, output: Path, mode: str, *more: str) -> list[str]:
    return ["--data", str(data), "--output", str(output), *f"{QUICK} {MODES[mode]}".split(), "--epochs", EPOCHS, *more]


def honest(main: Callable[[], None], arguments: list[str], code: int = 0) -> str:
    ended = lies.call(main, arguments)
    assert ended.code == code, ended
    return ended.stdout


def vectors_are(output: Path, expected: bytes | None) -> Callable[[lies.Ended], str | None]:
    """The judge of a run: these vectors; or, if None, any that are finite."""

    def judge(_: lies.Ended) -> str | None:
        found = output / "vectors.safetensors"
        if expected is not None:
            return None if found.read_bytes() == expected else "other vectors"
        finite = all(np.isfinite(table).all() for table in load_file(found).values())
        return None if finite and (output / "summary.json").exists() else "vectors that are no numbers"

    return judge


def unfinished(output: Path) -> str | None:
    return "refused, and a finished run" if (output / "summary.json").exists() else None


def judge_report(run: Path, _: lies.Ended) -> str | None:
    page = (run / "report.html").read_text(encoding="utf-8")
    # A NaN that is refused is named.
    return "a page that is none" if len(page) < 10_000 or re.search(r"(?<!found )\bNaN\b", page) else None
