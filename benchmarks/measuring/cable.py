"""Two machines: network namespaces of this one with a virtual cable between them, whose bytes the kernel counts.

To make them needs root's rights. Both divide this machine's cores.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Cable(NamedTuple):
    """The namespaces at the ends of a virtual cable, and the addresses of the ends."""

    machines: tuple[str, str]
    addresses: tuple[str, str]

    def sent(self) -> list[int]:
        """How many bytes each end has sent, with all headers."""
        counter = f"/sys/class/net/{ENDS[0]}/statistics/tx_bytes", f"/sys/class/net/{ENDS[1]}/statistics/tx_bytes"
        return [
            int(_said("ip", "netns", "exec", machine, "cat", file))
            for machine, file in zip(self.machines, counter, strict=True)
        ]


ENDS = "shardvec0", "shardvec1"


@contextmanager
def cable() -> Iterator[Cable]:
    """Two network namespaces with a virtual cable between them."""
    both = Cable((f"shardvec-{os.getpid()}-0", f"shardvec-{os.getpid()}-1"), ("10.77.0.1", "10.77.0.2"))
    try:
        for machine in both.machines:
            _said("ip", "netns", "add", machine)
        ends = "netns", both.machines[0], "type", "veth", "peer", "name", ENDS[1], "netns", both.machines[1]
        _said("ip", "link", "add", "name", ENDS[0], *ends)
        for machine, end, address in zip(both.machines, ENDS, both.addresses, strict=True):
            _said("ip", "-n", machine, "addr", "add", f"{address}/24", "dev", end)
            for link in (end, "lo"):
                _said("ip", "-n", machine, "link", "set", link, "up")
        yield both
    finally:
        for machine in both.machines:
            subprocess.run(["ip", "netns", "del", machine], check=False)


def _said(*call: str) -> str:
    return subprocess.run(call, check=True, capture_output=True, text=True).stdout
