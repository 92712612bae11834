"""Where ranks meet: at a store, whose address launchers set, and once all of them are there."""

import fcntl
import math
import os
import socket
import struct
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import torch.distributed as dist

from pipeline.shared.errors import InputError, tell

TIMEOUT = timedelta(minutes=10)
"""Of whatever ranks do together once they have met."""

FIRST_LINE_S = 15.0
"""After how long a rank says for whom it waits. Ranks that start together meet sooner, also on a busy machine."""

GONE_S = 5.0
"""A rank that has given no sign of life for so long is not there (any more)."""

CONNECT_S = 5.0
PAUSES_S = 0.01, 0.5
"""Between two looks at the store: at first, and at most."""

LOOPBACK = "127.0.0.1"

_SIOCGIFADDR = 0x8915  # netdevice(7)

Store = Any
"""A torch.distributed.Store; torch's stubs do not know its subclasses."""


def address() -> tuple[str, int]:
    """MASTER_ADDR and MASTER_PORT. Raises InputError if they are missing or wrong."""
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            found = f"WORLD_SIZE={os.environ.get('WORLD_SIZE')} without {name}"
            raise InputError(f"{found}: where ranks meet; set it as torchrun does, or unset RANK and WORLD_SIZE")
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    if not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise InputError(f"MASTER_PORT: found {port!r}, expected 1 to 65535: the port where ranks meet at MASTER_ADDR")
    return host, int(port)


def is_here(host: str) -> bool:
    """Whether only this machine's ranks can meet at ``host``."""
    return host in ("localhost", LOOPBACK)


def own_address() -> str:
    """The address from which this machine reaches where ranks meet."""
    family, *_, place = socket.getaddrinfo(*address(), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(place)  # sends nothing
        return str(probe.getsockname()[0])


def address_of(interface: str) -> str | None:
    """The IPv4 address of a network interface; None if it has none, or does not exist."""
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", interface.encode()[:15]))
        return socket.inet_ntoa(found[20:24])
    return None


def opened_store(host: str = LOOPBACK, port: int = 0) -> Store:
    """A store that listens on this machine's ``port``, 0: a free one; on loopback only if ``host`` is.

    TCPStore itself would listen on all interfaces, whatever its address. Raises OSError.
    """
    if is_here(host):
        listener = socket.create_server((LOOPBACK, port))
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(("", port), family=socket.AF_INET6, dualstack_ipv6=True)
    else:
        listener = socket.create_server(("", port))
    port = listener.getsockname()[1]
    return dist.TCPStore(  # type: ignore[attr-defined]
        LOOPBACK, port, is_master=True, wait_for_workers=False, timeout=TIMEOUT, master_listen_fd=listener.detach()
    )


def meet(rank: int, world_size: int, limit_s: float, tells: bool) -> Store:
    """A store that these ranks share, and no rank of an earlier restart, once all of them are there.

    After a while, says for whom this rank waits, if it ``tells``. Raises InputError after ``limit_s`` seconds.

    torchrun keeps one store over all its restarts (pytorch issue 135712), where ranks would find the addresses of dead
    ranks. No number that torchrun provides identifies a restart: an agent that comes back counts from 0 again. So each
    rank sends a fresh nonce; rank 0 replies with this restart's prefix.
    """
    host, port = address()
    wait = _Wait(rank, world_size, f"{host}:{port}", limit_s, tells)
    store = None
    if rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
        try:
            store = opened_store(host, port)
        except OSError as error:
            found = f"MASTER_PORT: found {port}, where rank 0 cannot listen ({error.strerror})"
            raise InputError(f"{found}; name a free port, the same for every rank") from None
    while True:
        # A store that is not there yet, or went away with its rank 0: another may come.
        with suppress(OSError, dist.DistError):
            store = store or _connected(host, port)
            prefix = _gather(store, world_size, wait) if rank == 0 else _report(store, rank, wait)
            return dist.PrefixStore(prefix, store)  # type: ignore[attr-defined]
        store = None
        wait.look_again("the agent of torchrun" if rank == 0 else "rank 0")


class _Wait:
    """Sleeps between two looks, says for whom, and raises InputError when the time is over."""

    def __init__(self, rank: int, world_size: int, place: str, limit_s: float, tells: bool):
        self._rank, self._world_size, self._place, self._limit_s = rank, world_size, place, limit_s
        self._told, self._next_line_s = "" if tells else None, FIRST_LINE_S
        self._began, self._pause_s = time.monotonic(), PAUSES_S[0]

    def look_again(self, missing: str) -> None:
        waited_s = time.monotonic() - self._began
        if waited_s >= self._limit_s:
            raise InputError(
                f"WORLD_SIZE: found {self._world_size}, but {missing} did not come to {self._place} (MASTER_ADDR, "
                f"MASTER_PORT) within {self._limit_s:g} s (--join-timeout); start all ranks, or unset WORLD_SIZE and "
                f"RANK to train with one process"
            )
        if waited_s >= self._next_line_s and self._told not in (None, missing):
            self._told, self._next_line_s = missing, waited_s + FIRST_LINE_S
            tell(
                f"rank {self._rank} of {self._world_size} waits for {missing} at {self._place}, for "
                f"{self._limit_s - waited_s:.0f} s more (--join-timeout), as RANK, WORLD_SIZE, MASTER_ADDR and "
                f"MASTER_PORT say; unset them to train with one process"
            )
        time.sleep(min(self._pause_s, self._limit_s - waited_s))
        self._pause_s = min(2 * self._pause_s, PAUSES_S[1])


def _connected(host: str, port: int) -> Store:
    """The store at an address. Raises OSError or DistError if none is there."""
    # TCPStore would repeat this itself, and warn of each attempt.
    socket.create_connection((host, port), CONNECT_S).close()
    try:
        store = dist.TCPStore(host, port, wait_for_workers=False, timeout=timedelta(seconds=CONNECT_S))  # type: ignore[attr-defined]
    except (ValueError, RuntimeError) as error:
        raise dist.DistError(f"{host}:{port} is no store: {error}") from None  # something else listens there
    store.set_timeout(TIMEOUT)
    return store


def _gather(store: Store, world_size: int, wait: _Wait) -> str:
    """Rank 0's part: returns the prefix once every other rank lives, and has been told it.

    All of them have to give a sign of life after the last one has come: one of the others may have died meanwhile.
    """
    prefix, complete_s = uuid4().hex, -math.inf
    signs: dict[int, tuple[str, float]] = {}  # each rank's last sign of life, and when it was new
    while True:
        now = time.monotonic()
        for rank in range(1, world_size):
            sign = store.get(f"rank/{rank}").decode() if store.check([f"rank/{rank}"]) else ""
            before, seen_s = signs.setdefault(rank, (sign, -math.inf))  # it may be a dead rank's
            if sign != before:
                complete_s = now if now - seen_s > GONE_S else complete_s
                signs[rank] = sign, now
        absent = [rank for rank, (_, seen_s) in signs.items() if now - seen_s > GONE_S]
        if not absent and all(seen_s > complete_s for _, seen_s in signs.values()):
            for sign, _ in signs.values():
                store.set(f"reply/{sign.partition('/')[0]}", prefix)
            return prefix
        store.set("absent", " ".join(map(str, absent)))
        wait.look_again(_named(absent or [*signs]))


def _report(store: Store, rank: int, wait: _Wait) -> str:
    """Another rank's part: gives signs of life until rank 0 replies with the prefix."""
    nonce, count = uuid4().hex, 0
    while not store.check([f"reply/{nonce}"]):
        count += 1
        store.set(f"rank/{rank}", f"{nonce}/{count}")
        absent = set(map(int, store.get("absent").split())) if store.check(["absent"]) else {0}
        wait.look_again(_named(sorted(absent - {rank} or {0})))
    return str(store.get(f"reply/{nonce}").decode())


def _named(ranks: list[int]) -> str:
    shown = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' if len(ranks) > 1 else ''} {shown}"
