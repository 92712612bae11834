"""torchrun for this environment, put in the place of the stock one by `make setup`.

It does what the stock one does, with two differences:
- torchrun's own options cannot be shortened. The stock parser takes the `--nproc` in `torchrun training/train.py
  --nproc 4` for a shortened `--nproc-per-node` or `--nproc_per_node`, and stops because it is ambiguous, although
  everything behind the script is the script's.
- Where a script has ended with 2, of bad input, which it has said itself, and where Ctrl-C or SIGTERM has ended all,
  torchrun ends with 2, 130 or 143. The stock one adds some thirty lines, a traceback of its own, and ends with 1.
"""

import logging
import os
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, record
from torch.distributed.run import get_args_parser, run

SAID = 2
"""The exit code of scripts that have said what is wrong, argparse's too."""


def main() -> None:
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").addFilter(is_news)
    try:
        launch()
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        if first.exitcode != SAID:
            raise
        sys.exit(SAID)
    except SignalException as error:
        sys.exit(128 + error.sigval)


@record
def launch() -> None:
    parser = get_args_parser()
    parser.allow_abbrev = False
    arguments = parser.parse_args()
    if arguments.nproc_per_node.isdecimal() and int(arguments.nproc_per_node) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as the stock one does, which warns of it
    run(arguments)  # type: ignore[no-untyped-call]


def is_news(told: logging.LogRecord) -> bool:
    """Not so what the user did, and what the script has said."""
    if told.msg.startswith("failed (exitcode: %s)") and isinstance(told.args, tuple):
        return told.args[0] != SAID
    return not told.msg.startswith(("Received %s death signal", "Sending process %s closing signal"))


if __name__ == "__main__":
    main()
