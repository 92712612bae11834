"""The torchrun of this environment; `make setup` replaces the stock torchrun with it.

It differs from the stock torchrun in four ways:
- It does not accept abbreviations of its own options. In `torchrun training/train.py --nproc 4`, the stock parser takes
  `--nproc` for an abbreviation of `--nproc-per-node` or `--nproc_per_node`, and stops because that is ambiguous,
  although all arguments after the script belong to the script.
- If a script exits with 2 after reporting bad input, or if Ctrl-C, SIGTERM or SIGHUP ends the job, this torchrun exits
  with 2, 130, 143 or 129. After other errors it prints which rank failed, and exits with 1. The stock torchrun prints
  about thirty more lines and a traceback, which say nothing of the script.
- It ignores SIGHUP if it was started so, as by nohup. The stock torchrun ends the job when the terminal is closed.
- On one machine, it listens on loopback only, and does not look up the machine's name, which may not resolve. The stock
  torchrun listens on all interfaces: whoever reaches its port can change what the ranks tell each other.
"""

import argparse
import logging
import os
import signal
import socket
import sys
from typing import Any

if __name__ == "__main__":
    # Else torch warns of each connection from an address that has no name.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")

import torch.distributed
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import c10d_rendezvous_backend, static_tcp_rendezvous
from torch.distributed.run import get_args_parser, parse_min_max_nnodes, run

BAD_INPUT = 2
"""The exit code of a script that has printed what is wrong; also argparse's."""

LOOPBACK = "127.0.0.1"
WITH_A_STORE: tuple[Any, ...] = (torch.distributed, c10d_rendezvous_backend, static_tcp_rendezvous)
"""The modules through which torchrun makes its store."""


def main() -> None:
    for name in ("agent.server.api", "multiprocessing.api"):
        logging.getLogger(f"torch.distributed.elastic.{name}").addFilter(is_news)
    parser = get_args_parser()
    parser.allow_abbrev = False
    arguments = parser.parse_args()
    if arguments.nproc_per_node.isdecimal() and int(arguments.nproc_per_node) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # like the stock torchrun, but without its warning
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        handled = arguments.signals_to_handle.split(",")
        arguments.signals_to_handle = ",".join(name for name in handled if name.strip() != "SIGHUP")
    if is_one_machine(arguments):
        arguments.local_addr = LOOPBACK
        socket.getfqdn = lambda name="": LOOPBACK  # each event that torchrun notes has it
        for module in WITH_A_STORE:
            module.TCPStore = LoopbackStore
    try:
        run(arguments)  # type: ignore[no-untyped-call]
    except ChildFailedError as error:
        _, first = error.get_first_failure()
        sys.exit(BAD_INPUT if first.exitcode == BAD_INPUT else 1)
    except SignalException as error:
        sys.exit(128 + error.sigval)


class LoopbackStore(torch.distributed.TCPStore):  # type: ignore[misc, name-defined]
    """A store that listens on loopback only. TCPStore itself listens on all interfaces, whatever its address."""

    def __init__(
        self, host_name: str, port: int, world_size: int | None = None, is_master: bool = False, *args: Any, **more: Any
    ):
        if is_master:
            try:
                listener = socket.create_server((LOOPBACK, port))
            except OSError as error:  # TCPStore's error, which makes the rendezvous look for another's store
                raise torch.distributed.DistNetworkError(f"{LOOPBACK}:{port}: {error}") from None
            port = listener.getsockname()[1]
            more["master_listen_fd"] = listener.detach()
        super().__init__(host_name, port, world_size, is_master, *args, **more)


def is_one_machine(arguments: argparse.Namespace) -> bool:
    """Whether there is one node, and the user gave no other address than loopback's."""
    _, max_nodes = parse_min_max_nnodes(arguments.nnodes)
    host = "localhost" if arguments.standalone else (arguments.rdzv_endpoint or arguments.master_addr).partition(":")[0]
    return max_nodes == 1 and {host, arguments.local_addr or host} <= {"localhost", LOOPBACK}


def is_news(entry: logging.LogRecord) -> bool:
    """False for records about the user's own signals and about failures that the script has reported itself."""
    if entry.msg.startswith("failed (exitcode: %s)") and isinstance(entry.args, tuple):
        return entry.args[0] != BAD_INPUT
    return not entry.msg.startswith(("Received %s death signal", "Sending process %s closing signal"))


if __name__ == "__main__":
    main()
