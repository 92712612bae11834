"""Messages between machines, sent and received by the thread that computes, in the midst of a step.

gloo has threads of its own, which would have to take cores from those that compute: its all-reduce of a block's scores
took ten times as long.
"""

import os
import select
import socket
import struct
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch

from training.distributed import LostPeer, RankError, World
from training.rendezvous import TIMEOUT, address_of, own_address

Floats = npt.NDArray[np.float32]

_NONCE_BYTES = 16
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 6, "TCP_USER_TIMEOUT": 60_000}
"""A machine that is gone without a word is noticed within two minutes, by what was sent to it (in ms) or by questions
of the system (in s). For a process that is stopped, its system replies."""


class Links:
    """A connection with each other machine of a group. All call the same methods, with arrays of the same sizes."""

    def __init__(self, machines: World):
        """A collective call of one rank of each machine. Raises RankError if another machine cannot be reached."""
        self._number, self._size = machines.rank, machines.world_size
        secret, _ = machines.broadcast(os.urandom(_NONCE_BYTES).hex(), {})
        nonce = bytes.fromhex(secret)
        with _listener() as listener:
            own = np.frombuffer(_packed(listener), dtype=np.uint8)
            places = machines.all_gather(torch.from_numpy(own.copy()))
            found = {other: _connected(_unpacked(places[other]), nonce, self._number) for other in range(self._number)}
            while len(found) < self._size - 1:
                other, connection = _accepted(listener, nonce)
                found[other] = connection
        self._sockets = [found.get(number) for number in range(self._size)]

    def all_reduce(self, values: Floats) -> None:
        """Replaces the machines' ``values``, (J,), by their sum, which is the same on each to the bit."""
        if self._size == 2:  # as many bytes in one message as below in two
            theirs = np.empty_like(values)
            self._exchange([values, values], [theirs, theirs])
            values += theirs
            return
        parts = np.array_split(values, self._size)  # each machine adds up a part
        found = [np.empty_like(parts[self._number]) for _ in parts]
        self._exchange(parts, found)
        found[self._number] = parts[self._number].copy()
        np.add.reduce(found, axis=0, out=parts[self._number])
        self._exchange([parts[self._number]] * self._size, parts)

    def all_gather(self, arrays: Sequence[Floats]) -> None:
        """Each machine's own one of the ``arrays``, on all of them; any sizes."""
        self._exchange([arrays[self._number]] * self._size, arrays)

    def _exchange(self, sent: Sequence[Floats], received: Sequence[Floats]) -> None:
        """Sends ``sent[i]`` to machine i, and fills ``received[i]`` by what it sends."""
        pending = {
            connection: [_bytes_of(out), _bytes_of(into)]
            for connection, out, into in zip(self._sockets, sent, received, strict=True)
            if connection
        }
        try:
            while pending := {connection: both for connection, both in pending.items() if both[0] or both[1]}:
                if not any([_moved(connection, both) for connection, both in pending.items()]):
                    _wait(pending)
        except OSError as error:
            raise LostPeer(f"another machine: {error.strerror}") from None

    def close(self) -> None:
        for connection in filter(None, self._sockets):
            connection.close()


def _bytes_of(array: Floats) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _moved(connection: socket.socket, both: list[memoryview]) -> bool:
    """Sends and receives what can be at once, and shortens ``both`` by it. Whether it was anything."""
    sent = received = 0
    with suppress(BlockingIOError):
        sent = connection.send(both[0]) if both[0] else 0
        both[0] = both[0][sent:]
    with suppress(BlockingIOError):
        if both[1]:
            received = connection.recv_into(both[1])
            if not received:
                raise LostPeer("another machine closed its connection")
            both[1] = both[1][received:]
    return bool(sent or received)


def _wait(pending: dict[socket.socket, list[memoryview]]) -> None:
    poll = select.poll()
    for connection, (out, into) in pending.items():
        poll.register(connection, (select.POLLOUT if out else 0) | (select.POLLIN if into else 0))
    if not poll.poll(1000 * TIMEOUT.total_seconds()):
        raise LostPeer("another machine did not send anything")


def _listener() -> socket.socket:
    """Listens at the address of the interface that gloo takes."""
    host = address_of(os.environ.get("GLOO_SOCKET_IFNAME", "")) or own_address()
    return socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def _packed(listener: socket.socket) -> bytes:
    host, port = listener.getsockname()[:2]
    return f"{port} {host}".encode().ljust(64, b" ")


def _unpacked(place: torch.Tensor) -> tuple[str, int]:
    port, host = bytes(place.tolist()).decode().split()
    return host, int(port)


def _connected(place: tuple[str, int], nonce: bytes, number: int) -> socket.socket:
    try:
        connection = socket.create_connection(place, TIMEOUT.total_seconds())
        connection.sendall(nonce + struct.pack("<I", number))
    except OSError as error:
        found = f"{place[0]}:{place[1]}, where another machine listens, cannot be reached ({error.strerror or error})"
        raise RankError(f"{found}; name the interface between the machines by GLOO_SOCKET_IFNAME") from None
    return _made_fast(connection)


def _accepted(listener: socket.socket, nonce: bytes) -> tuple[int, socket.socket]:
    """The number of another machine, and the connection with it. Closes those of strangers."""
    listener.settimeout(TIMEOUT.total_seconds())
    while True:
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            raise RankError("another machine did not connect; name the interface by GLOO_SOCKET_IFNAME") from None
        connection.settimeout(10)
        with suppress(OSError):
            greeting = connection.recv(_NONCE_BYTES + 4, socket.MSG_WAITALL)
            if greeting[:_NONCE_BYTES] == nonce and len(greeting) == _NONCE_BYTES + 4:
                return struct.unpack("<I", greeting[_NONCE_BYTES:])[0], _made_fast(connection)
        connection.close()


def _made_fast(connection: socket.socket) -> socket.socket:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection
