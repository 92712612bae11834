"""InputError: an error that the user can fix, in one line."""

import reprlib
import sys

from pipeline.shared.redact import redacted

LONGEST = 500
"""Characters of another library's message."""


class InputError(ValueError):
    """An error that the user can fix. Its message is one line: where, what was found, what was expected, what to do."""

    @classmethod
    def flag(cls, name: str, found: object, expected: str) -> "InputError":
        """The error of a flag with an invalid value."""
        return cls(f"--{name.replace('_', '-')}: found {found}, expected {expected}")

    @classmethod
    def unshared(cls, output: object, found: str) -> "InputError":
        """The error if machines do not see each other's files in the output."""
        return cls(
            f"--output {output}: {found}; the output must be on storage that all machines share "
            f"(a shared folder, or s3://...)"
        )


def one_line(error: object) -> str:
    """The message of another library's error: printable, in one line, without the middle of a long one."""
    text = str(error)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())


def shown(found: object) -> str:
    """Any value that was found, in at most 60 characters. A large one is not formatted in full."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother, short.maxlong = 2, 60, 60, 40
    return f"{short.repr(found):.60}"


def tell(line: str) -> None:
    """Prints a line to stderr in one write, so that the lines of several ranks do not mix.

    ``print`` makes two writes if Python does not buffer, as under torchrun. Line breaks and other marks that are not
    printable, such as those of a file's name or content, are escaped. Secrets are not printed.
    """
    text = "".join(mark if mark.isprintable() else repr(mark)[1:-1] for mark in redacted(line))
    sys.stderr.write(f"{text}\n")
