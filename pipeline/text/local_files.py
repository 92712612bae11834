"""The files of a corpus on this machine: found, named, and each one there."""

import logging
import os
import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors

TABLES = {
    "a Delta table": "_delta_log",
    "an Iceberg table": "metadata/*[0-9]*.metadata.json",
    "a Hudi table": ".hoodie",
    "a Paimon table": "snapshot/LATEST",
    "the output of a Spark stream": "_spark_metadata",
}
"""Kinds of tables, and below a table's folder the log that says which of its files are alive."""

_WILD = re.compile(r"[*?[]")
_OTHERS = (
    (stat.S_ISFIFO, "a pipe; prepare reads its input twice, so write it to a file"),
    (stat.S_ISSOCK, "a socket, expected a file"),
    (stat.S_ISCHR, "a device, expected a file"),
    (stat.S_ISBLK, "a device, expected a file"),
)

log = logging.getLogger(__name__)


def local_files(given: str, path: Path, expected: str) -> list[Path]:
    """The files that a path or pattern names, absolute, in order of their names.

    A folder stands for the files directly inside it. As in Spark, names that begin with ``.`` or ``_`` are hidden from
    folders and patterns. Raises InputError for what is missing or is no file, and for tables that have a log of their
    files. ``given`` is ``path`` as the user wrote it, ``expected`` is for messages.
    """
    with os_errors(f"--input {given}: cannot be read", f"expected {expected}"):
        is_pattern = not (path.exists() or path.is_symlink())
        matches = _matches(path) if is_pattern else [path]
        found = [file for match in matches for file in _files_of(match)]
        _check_no_table(given, [*matches, *found])
    if is_pattern and not found:
        raise InputError(f"--input {given}: not found, expected {expected}")
    if not found:
        raise InputError(
            f"--input {path}: a folder without files, expected files right inside it; "
            f"a pattern such as '{path}/*' names the folders inside"
        )
    for file in found:
        _check_name(file)
    return [_absolute(file) for file in found]


def without_repeats(files: Iterable[Path]) -> list[Path]:
    """The files, each once, by whatever names and links it was named."""
    seen: dict[tuple[int, int], Path] = {}
    for file in files:
        status = file.stat()
        first = seen.setdefault((status.st_dev, status.st_ino), file)
        if first is not file:
            named = "named twice" if file == first else f"the same file as {first}"
            log.warning("%s: %s; read once", file, named)
    return list(seen.values())


def table_refused(given: str, kind: str, folder: object) -> InputError:
    """The error of a table that has a log of its files."""
    format = {"a Delta table": "delta", "an Iceberg table": "iceberg"}.get(kind)
    remedy = f"name its folder with --format {format}" if format else "write its present rows as Parquet first"
    return InputError(
        f"--input {given}: found {kind} ({folder}), whose folder also holds files that are no longer part of it, "
        f"expected plain files; {remedy}"
    )


def _matches(pattern: Path) -> list[Path]:
    """What a pattern matches, without hidden names; ``**`` stands for any number of folders. Raises OSError.

    Python's glob passes over folders that may not be read, and follows links in circles.
    """
    found = [Path()]
    for part in pattern.parts:
        if part == "**":
            found = [folder for path in found for folder in _folders(path)]
        elif _WILD.search(part):
            names = ((path, name) for path in found if path.is_dir() for name in sorted(os.listdir(path)))
            found = [path / name for path, name in names if fnmatchcase(name, part) and _is_seen(name, part)]
        else:
            found = [path / part for path in found if os.path.lexists(path / part)]
    return found


def _is_seen(name: str, part: str) -> bool:
    """Whether a pattern's part matches a name that may be hidden: it does if it begins with the same mark."""
    return name[0] not in "._" or name[0] == part[0]


def _folders(path: Path) -> Iterator[Path]:
    """The folder and all folders below it, without hidden ones and links. Raises OSError."""
    if path.is_dir():
        yield path
        for entry in sorted(path.iterdir()):
            if entry.name[0] not in "._" and entry.is_dir() and not entry.is_symlink():
                yield from _folders(entry)


def _absolute(file: Path) -> Path:
    """The path that is the same file for Java, which takes ``a/..`` for nothing and has descriptors of its own."""
    absolute = file.absolute()
    if absolute.parts[1] in ("dev", "proc"):
        return absolute.resolve()
    return absolute.parent.resolve() / absolute.name if ".." in absolute.parts else absolute


def _files_of(path: Path) -> Iterator[Path]:
    """The file, or the files of the folder."""
    if not path.is_dir():
        _check_is_file(path)
        yield path
        return
    for entry in sorted(path.iterdir()):
        if entry.name[0] not in "._" and not entry.is_dir():
            _check_is_file(entry)
            yield entry


def _check_is_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if not path.is_symlink():
            raise
        raise InputError(
            f"--input {path}: a link to {path.readlink()}, which is not there; fetch the file (with git annex get, "
            f"dvc pull, ...), or name the others"
        ) from None
    for is_it, what in _OTHERS:
        if is_it(mode):
            raise InputError(f"--input {path}: found {what}")


def _check_no_table(given: str, paths: Iterable[Path]) -> None:
    """Raises InputError if one of the paths is in the folder of a table that has a log of its files."""
    absolute = [path.absolute() for path in paths]
    for folder in {*absolute, *(folder for path in absolute for folder in path.parents)}:
        for kind, log_of_files in TABLES.items():
            if any(folder.glob(log_of_files)):
                raise table_refused(given, kind, folder)


def _check_name(path: Path) -> None:
    """Raises InputError for a name that Spark skips or cannot pass to Java."""
    if path.name[0] in "._" or path.name.endswith("._COPYING_") or ":" in str(path.absolute()):
        raise InputError(
            f"--input {path}: Spark reads no name that begins with . or _, ends with _COPYING_ or has a ':'"
        )
    if any(unicodedata.category(mark) in ("Cc", "Cs") for mark in str(path)):
        raise InputError(f"--input {str(path)!r}: its name is not UTF-8 or has control characters; rename the file")
