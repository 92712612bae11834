"""InputError: what the user can fix, said in one line. Used by both sides."""

import errno
import sys

MENDABLE = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOTDIR)
"""An OSError's number, where the user can mend what hinders writing; others are our own faults."""


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


def one_line(error: object) -> str:
    """The message of another library's error, without line breaks."""
    return " ".join(str(error).split())


def tell(line: str) -> None:
    """A line on stderr, in one write: print makes two where Python does not buffer, as under torchrun, and the lines of
    several ranks would mix.
    """
    sys.stderr.write(f"{line}\n")
