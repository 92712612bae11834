"""What a row of the tables of corpora is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

File = bytes | Callable[[Path], object]
"""A file's content, or what makes the file at a path."""


@dataclass(frozen=True)
class Input:
    """Files in a folder, and what is given of them."""

    files: dict[str, File]
    given: tuple[str, ...] = ("",)
    """Paths and patterns below the folder; ``{}`` in a URI is the folder."""
    format: str = "text"
    column: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Read(Input):
    """A corpus that is read."""

    expected: tuple[str, ...] = ()
    """Its sequences, in any order, each as its words with a space between two."""
    counts: dict[str, int] = field(default_factory=dict)
    """Of the manifest; the counts of nulls, of lines that are not UTF-8 and of cut lines are 0 if they are not here."""


@dataclass(frozen=True)
class Refused(Input):
    """A corpus that is refused in one line."""

    words: tuple[str, ...] = ()
    """What the line says, besides the input."""
