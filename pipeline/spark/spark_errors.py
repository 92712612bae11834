"""What of Spark's exceptions the user can mend, in one line; everything else stays the bug that it is."""

import re
from urllib.parse import unquote

from py4j.protocol import Py4JNetworkError

from pipeline.shared.errors import InputError

_OURS = re.compile(r"^pipeline\.(?:shared\.errors\.Input|dataset\.manifest_file\.Manifest)Error: (.*)$", re.MULTILINE)
_UNREADABLE = re.compile(
    r"FAILED_READ_FILE\.?(\S*)\] .*?reading file '?(\S.*?)'?\. *(?:SQLSTATE|Details|Data type|File)"
)


def user_error(error: BaseException, given: str) -> InputError | None:
    """The InputError that ``error`` means, if it is one; ``given`` is how the user named the input.

    Spark carries what a Python worker raised as text, so an InputError of ours is found again by its name there.
    """
    if isinstance(error, Py4JNetworkError | ConnectionError):
        return InputError(f"Spark's Java ended before its time. {_MEMORY}")
    text = str(error)
    if ours := _OURS.search(text):
        return InputError(ours[1])
    if unreadable := _UNREADABLE.search(text):
        return InputError(_of_file(unreadable[1], _plain(unreadable[2])))
    for sign, message in _SIGNS:
        if found := re.search(sign, text):
            return InputError(message.format(given=given, found=(found[1] if found.groups() else found[0]).strip()))
    return None


def _of_file(kind: str, path: str) -> str:
    if kind == "FILE_NOT_EXIST":
        return f"--input {path}: a worker does not see it; it must lie on storage that all machines share, and stay"
    if "COLUMN_DATA_TYPE" in kind:
        return f"--input {path}: its column has another type than in the other files; prepare it by itself"
    return f"--input {path}: damaged, or not of this format; it breaks off or cannot be decoded; give a whole copy"


def _plain(uri: str) -> str:
    return unquote(re.sub(r"^file:/+", "/", uri))


_MEMORY = (
    "If its memory is too small: a line is held there as a whole; give more with spark-submit --driver-memory 4g, on a "
    "cluster --executor-memory, or break the longest lines"
)
_SIGNS = (
    (r"PATH_NOT_FOUND\] Path does not exist: (.*?)\. SQLSTATE", "--input {found}: not found; name what is there"),
    (
        r'(?:No FileSystem for scheme "?|UnsupportedFileSystemException: .*?scheme "?)([a-z0-9]+)',
        "--input {given}: Spark has no file system for {found}://; add its package, as in spark-submit --packages "
        "org.apache.hadoop:hadoop-aws:... for s3a://",
    ),
    (
        r"ClassNotFoundException: Class (org\.apache\.hadoop\.fs\.\S+) not found",
        "--input {given}: Spark lacks {found}; add its package with spark-submit --packages",
    ),
    (r"UnknownHostException: (\S+)", "--input {given}: no host {found}; check the address"),
    (
        r"(?:ConnectException|NoRouteToHostException|SocketTimeoutException)[^\n]*?: ([^\n]*)",
        "--input {given}: cannot be reached ({found}); check the address and that it answers",
    ),
    (r"AccessControlException: ([^\n]*)", "--input {given}: may not be read ({found})"),
    (
        r"OutOfMemoryError: (Java heap space|Requested array size[^\n]*|GC overhead[^\n]*)",
        "{found}. " + _MEMORY,
    ),
    (
        r"(No space left on device)",
        "{found}: where Spark keeps its temporary files (SPARK_LOCAL_DIRS) or on --output; make room or name another",
    ),
)
