"""What the user can mend: its error, and command lines that speak of it in one line. Used by both sides."""

import argparse
from pathlib import Path
from typing import NoReturn


class InputError(ValueError):
    """Something the user can mend. The message is one line: what was found, what was expected, where, what to do."""

    @classmethod
    def flag(cls, name: str, found: object, expected: str) -> "InputError":
        """The error of a setting that was given on the command line."""
        return cls(f"--{name.replace('_', '-')}: found {found}, expected {expected}")

    @classmethod
    def unshared(cls, output: object, found: str) -> "InputError":
        """The error of machines that do not see each other's files in the output."""
        return cls(
            f"--output {output}: {found}; the output must be on storage that all machines share "
            f"(a shared folder, or s3://...)"
        )


class Parser(argparse.ArgumentParser):
    """argparse, without abbreviations, that raises InputError where it would print the whole usage and exit."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog, description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists what there is")


def path(text: str) -> Path:
    """A path given as an argument. An empty one comes from a variable that is not set, and names nothing."""
    if not text:
        raise argparse.ArgumentTypeError("found an empty path")
    return Path(text)


def uri(text: str) -> str:
    """A path or URI given as an argument."""
    return str(path(text)) if "://" not in text else text


def check_output(output: Path, own: tuple[str, ...], kind: str, setting: str = "--output") -> None:
    """Raises InputError unless ``output`` is, or could become, a folder with nothing but ``own`` files in it.

    ``own`` are glob patterns of what may be there already; ``kind`` says whose they are, ``setting`` what names it.
    """
    try:
        existing = next(folder for folder in (output, *output.absolute().parents) if folder.exists())
        foreign = sorted(
            entry.name for entry in (output.iterdir() if existing == output else ()) if not any(map(entry.match, own))
        )
    except NotADirectoryError:
        raise InputError(f"{setting} {output}: is a file, expected a folder, new or a {kind}'s") from None
    except OSError as error:
        raise InputError(f"{setting} {output}: cannot be used ({error.strerror}); choose another folder") from None
    if not existing.is_dir():
        raise InputError(f"{setting} {output}: {existing} is a file, expected a folder; choose another folder")
    if foreign:
        raise InputError(f"{setting} {output}: holds {foreign[0]}, which is no {kind}'s; name a new folder")
