"""Command lines: a parser that raises InputError, and the exit codes of commands. Both sides use it."""

import argparse
import io
import os
import select
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from pipeline.shared.errors import InputError, one_line, tell
from pipeline.shared.storage import is_uri, local_path, refuse_credentials

HELP_COLUMNS = 100
"""The maximum width of help."""

QUIET, VERBOSE = -1, 1
"""Values of ``verbosity`` for -q and -v; the default is 0."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations. It raises InputError instead of printing the usage and exiting.

    Help shows every default and ends with ``examples``, one per line. Every command takes -v, see ``command``.
    """

    def __init__(self, prog: str, description: str, *examples: str):
        installed = Path(sys.argv[0]).name
        if installed.startswith("shardvec-") and not prog.startswith(installed):
            prog = installed  # so that help and error lines name the command as the user gave it
        epilog = "\n  ".join(["example:" if len(examples) == 1 else "examples:", *examples])
        # "resolve" lets add_verbosity replace this -v.
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            formatter_class=_Help,
            allow_abbrev=False,
            conflict_handler="resolve",
        )
        text = "print the traceback of an unexpected error"
        self.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help=text)

    def parse_args(self, args: Any = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """Raises InputError for a wrong command line, and for credentials in an argument."""
        found: argparse.Namespace = super().parse_args(args, namespace)
        for value in vars(found).values():
            for given in value if isinstance(value, list | tuple) else [value]:
                if isinstance(given, str | Path):
                    refuse_credentials(str(given))
        return found

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists what there is")

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The group of flags with this title in the help. Creates it if it is missing."""
        made = (group for group in self._action_groups if group.title == title)
        return next(made, None) or self.add_argument_group(title)

    def add_verbosity(self, more: str) -> None:
        """Adds -q and -v, which set ``verbosity``; ``more`` is the help of -v."""
        group = self.group("what is printed").add_mutually_exclusive_group()
        for short, name, value, text in (
            ("-q", "--quiet", QUIET, "warnings, errors and the last line only"),
            ("-v", "--verbose", VERBOSE, more),
        ):
            group.add_argument(short, name, dest="verbosity", action="store_const", const=value, default=0, help=text)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of at most HELP_COLUMNS columns, with metavars from METAVARS and every default."""

    def __init__(self, prog: str):
        columns = min(HELP_COLUMNS, shutil.get_terminal_size((HELP_COLUMNS, 24)).columns)
        super().__init__(prog, max_help_position=30, width=columns)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        has_default = action.default not in (None, argparse.SUPPRESS) and action.default != []
        if action.nargs == 0 or not has_default or "(default: " in (action.help or ""):
            return action.help
        return f"{action.help} (default: %(default)s)"

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return next((name for kind, name in METAVARS.items() if kind is action.type), action.dest.upper())


@contextmanager
def command(interrupted: str = "interrupted") -> Iterator[None]:
    """Runs a command. What the encoding of stdout or stderr does not have is printed as an escape, such as \\xe9.

    After an error, prints one line to stderr and exits with a code:

    - 2, InputError, which the user can fix: "error: MESSAGE".
    - 1, any other exception: "error: TYPE: MESSAGE; run again with -v for the traceback"; with -v, the traceback.
    - 130, Ctrl-C: ``interrupted``.
    - 141, without a line: the reader of stdout has closed it, as ``head`` does. Shells show this code for SIGPIPE.
    """
    escape_what_cannot_be_encoded()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError):
            end_if_nobody_reads()
        if _is_interrupt(error):
            tell(interrupted)
            sys.exit(130)
        if isinstance(error, InputError):
            tell(f"error: {error}")
            sys.exit(2)
        if {"-v", "--verbose"} & {*sys.argv}:
            raise
        # Of Spark's message, the first lines say what Java did, the last ones what Python did: one_line keeps both.
        tell(f"error: {type(error).__name__}: {one_line(error)}; run again with -v for the traceback")
        sys.exit(1)


def escape_what_cannot_be_encoded() -> None:
    """From now on, print escapes what stdout or stderr cannot encode. Else an ASCII terminal would end the command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _is_interrupt(error: BaseException | None) -> bool:
    """Returns True if Ctrl-C caused the error. Ctrl-C also ends Spark's Java, and then other exceptions follow."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__context__))


def end_if_nobody_reads() -> None:
    """Exits with 141 if stdout is a pipe that its reader has closed, but not if another pipe broke."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(happened & select.POLLERR for _, happened in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        sys.exit(128 + signal.SIGPIPE)


def path(text: str) -> Path:
    """A path given as an argument, or as a ``file:`` URI. An MLflow URI, models:/..., is returned as it is.

    Refuses any other URI, and an empty path, which comes from a variable that is not set.
    """
    if not text:
        raise argparse.ArgumentTypeError("found an empty path")
    if text.startswith("models:/"):
        return Path(text)
    try:
        found = local_path(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if found is None:
        raise argparse.ArgumentTypeError(f"found {text}, expected a path on this machine")
    return found


def uri(text: str) -> str:
    """A path or URI given as an argument."""
    return text if is_uri(text) else str(path(text))


def count(text: str) -> int:
    """A whole number from 1 on, given as an argument."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"found {text}, expected a whole number from 1")
    return int(text)


METAVARS: dict[object, str] = {int: "N", count: "N", float: "X", path: "PATH", uri: "PATH"}
"""The metavar of each type in help."""


def check_output(output: Path, own: tuple[str, ...], kind: str, setting: str = "--output") -> None:
    """Raises InputError unless ``output`` is, or can become, a folder with ``own`` files only.

    ``own`` are glob patterns of files that may exist already. Messages name ``kind``, the owner of these files, and
    ``setting``, the flag or key of ``output``.
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
