"""The torchrun of this environment; `make setup` replaces the stock torchrun with it.

It differs from the stock torchrun in two ways:
- It does not accept abbreviations of its own options. In `torchrun training/train.py --nproc 4`, the stock parser takes
  `--nproc` for an abbreviation of `--nproc-per-node` or `--nproc_per_node`, and stops because that is ambiguous,
  although all arguments after the script belong to the script.
- If a script exits with 2 after reporting bad input, or if Ctrl-C or SIGTERM ends the job, this torchrun exits with 2,
  130 or 143. After other errors it prints which rank failed, and exits with 1. The stock torchrun prints about thirty
  more lines and a traceback, which say nothing of the script.
"""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

BAD_INPUT = 2
"""The exit code of a script that has printed what is wrong; also argparse's."""


def main() -> None:
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").addFilter(is_news)
    parser = get_args_parser()
    parser.allow_abbrev = False
    arguments = parser.parse_args()
    if arguments.nproc_per_node.isdecimal() and int(arguments.nproc_per_node) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # like the stock torchrun, but without its warning
    try:
        run(arguments)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        sys.exit(BAD_INPUT if first.exitcode == BAD_INPUT else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


def is_news(entry: logging.LogRecord) -> bool:
    """False for records about the user's own signals and about failures that the script has reported itself."""
    if entry.msg.startswith("failed (exitcode: %s)") and isinstance(entry.args, tuple):
        return entry.args[0] != BAD_INPUT
    return not entry.msg.startswith(("Received %s death signal", "Sending process %s closing signal"))


if __name__ == "__main__":
    main()
