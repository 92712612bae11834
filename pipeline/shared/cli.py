"""Command lines: a parser that raises InputError, and how a command ends. Used by both sides."""

import argparse
import os
import select
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pipeline.shared.errors import InputError, one_line, tell

HELP_COLUMNS = 100
"""The widest that help becomes."""

QUIET, VERBOSE = -1, 1
"""Of ``verbosity``, which is 0 where neither is asked for."""


class Parser(argparse.ArgumentParser):
    """argparse, without abbreviations, that raises InputError where it would print the whole usage and exit.

    Its help shows every default, and ends with ``examples``, a line each. Every command takes -v, see ``command``.
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

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; {self.prog} --help lists what there is")

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The group of flags with this title in the help, made when it is first asked for."""
        made = (group for group in self._action_groups if group.title == title)
        return next(made, None) or self.add_argument_group(title)

    def add_verbosity(self, more: str) -> None:
        """-q and -v, as ``verbosity``; ``more`` is what -v adds besides tracebacks."""
        group = self.group("what is printed").add_mutually_exclusive_group()
        for short, name, value, text in (
            ("-q", "--quiet", QUIET, "warnings, errors and the last line only"),
            ("-v", "--verbose", VERBOSE, more),
        ):
            group.add_argument(short, name, dest="verbosity", action="store_const", const=value, default=0, help=text)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Help of at most HELP_COLUMNS columns: what a value is called follows its type, and every default is shown."""

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
    """Runs a command, and ends it after an error with one line on stderr and an exit code.

    - 2, InputError: "error: MESSAGE"; the user can fix it.
    - 1, any other exception: "error: TYPE: MESSAGE; run again with -v for the traceback"; with -v, the traceback.
    - 130, Ctrl-C: ``interrupted``.
    - 141, without a line: the reader of stdout has left, as ``head`` does. Shells show this code for SIGPIPE.
    """
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
        text = one_line(error)  # of Spark's, the first lines say what Java did, the last ones what Python did
        text = text if len(text) <= 500 else f"{text[:250]} ... {text[-250:]}"
        tell(f"error: {type(error).__name__}: {text}; run again with -v for the traceback")
        sys.exit(1)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C caused the error: it ends Spark's Java too, and then other exceptions follow."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__context__))


def end_if_nobody_reads() -> None:
    """Ends this process where stdout is a pipe whose reader has gone: not where some other pipe broke."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if any(happened & select.POLLERR for _, happened in poll.poll(0)):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more when it ends
        sys.exit(128 + signal.SIGPIPE)


def path(text: str) -> Path:
    """A path given as an argument. An empty one comes from a variable that is not set, and names nothing."""
    if not text:
        raise argparse.ArgumentTypeError("found an empty path")
    return Path(text)


def uri(text: str) -> str:
    """A path or URI given as an argument."""
    return str(path(text)) if "://" not in text else text


METAVARS: dict[object, str] = {int: "N", float: "X", path: "PATH", uri: "PATH"}
"""What help calls a value of each type."""


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
