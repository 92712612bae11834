"""Turns those of Spark's exceptions that the user can fix into an InputError of one line."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from py4j.protocol import Py4JNetworkError

from pipeline.shared.errors import InputError

_OURS = re.compile(r"^pipeline\.(?:shared\.errors\.Input|dataset\.manifest_file\.Manifest)Error: (.*)$", re.MULTILINE)
_MEMORY = (
    "if memory is too small: a line of text is held there as a whole; give more with spark-submit --driver-memory 4g, "
    "on a cluster --executor-memory, or break the longest lines"
)
_REMEDIES = (
    (
        r"No FileSystem for scheme|Class org\.apache\.hadoop\.fs\.\S+ not found",
        "add the package of its file system, as in spark-submit --packages org.apache.hadoop:hadoop-aws:... for s3a://",
    ),
    (r"FILE_NOT_EXIST", "a worker does not see the file; it must lie on storage that all machines share, and stay"),
    (r"PATH_NOT_FOUND|FAILED_READ_FILE", "name files that are there, whole, and of one type"),
    (
        r"(?:UnknownHost|Connect|NoRouteToHost|SocketTimeout|AccessControl)Exception",
        "check the address and access",
    ),
    (r"OutOfMemoryError", _MEMORY),
    (r"No space left on device", "make room where Spark keeps temporary files (SPARK_LOCAL_DIRS), and on --output"),
)
"""Pairs of a pattern that a line of Spark's message matches, and the remedy."""


@contextmanager
def input_errors(given: str) -> Iterator[None]:
    """Raises an exception of the block as the InputError that ``user_error`` makes of it; others as they are."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (known := user_error(error, given)) is None:
            raise
        raise known from None


def user_error(error: BaseException, given: str) -> InputError | None:
    """The InputError to raise instead of ``error``; None for a bug. ``given`` is the input as the user named it.

    Spark passes on a Python worker's exception as text, so our own InputError is found by its name in that text.
    """
    if isinstance(error, Py4JNetworkError | ConnectionError):
        return InputError(f"Spark's Java ended early; {_MEMORY}")
    text = str(error)
    if ours := _OURS.search(text):
        return InputError(ours[1])
    for sign, remedy in _REMEDIES:
        if found := re.search(f".*(?:{sign}).*", text):
            return InputError(f"--input {given}: {found[0].removeprefix('Caused by').strip(': ')[:500]}; {remedy}")
    return None
