"""Messages between machines: threads of this process stand for the first rank of each."""

import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from training.distributed import LostPeer, RankError, World
from training.model.kernels import links
from training.model.kernels.links import Links

T = TypeVar("T")
WAIT_S = 30


@dataclass(frozen=True)
class Meeting(World):
    """A world whose ranks are threads."""

    meeting: threading.Barrier = field(default_factory=lambda: threading.Barrier(1))
    told: dict[int, Any] = field(default_factory=dict)

    def broadcast(self, record: Any, tensors: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
        return self._told(record)[0], tensors

    def all_gather(self, values: Tensor) -> Tensor:
        return torch.stack(self._told(values))

    def _told(self, mine: Any) -> list[Any]:
        self.told[self.rank] = mine
        self.meeting.wait(WAIT_S)
        everybodys = [self.told[rank] for rank in range(self.world_size)]
        self.meeting.wait(WAIT_S)
        return everybodys


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "29500")


def on_machines(size: int, work: Callable[[int, Links], T]) -> list[T]:
    meeting, told = threading.Barrier(size), dict[int, Any]()

    def be(number: int) -> T:
        own = Links(Meeting(number, size, 0, 1, meeting=meeting, told=told))
        try:
            return work(number, own)
        finally:
            own.close()

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(be, range(size)))


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("count", [0, 1, 4, 1000, 3_000_000])
def test_all_machines_get_the_same_sum(size: int, count: int) -> None:
    """Also of messages that fill all buffers on the way, sent by all at the same time, three times in a row."""
    made = np.random.default_rng(count)
    values = [made.standard_normal(count).astype(np.float32) for _ in range(size)]

    def work(number: int, own: Links) -> list[Any]:
        found = []
        for turn in range(3):
            mine = values[number] * np.float32(turn + 1)
            own.all_reduce(mine)
            found.append(mine)
        return found

    first, *others = on_machines(size, work)
    for turn in range(3):
        np.testing.assert_allclose(first[turn], np.sum(values, axis=0) * (turn + 1), rtol=1e-5, atol=1e-5)
        assert all(np.array_equal(first[turn], other[turn]) for other in others)


@pytest.mark.parametrize("size", [2, 3])
def test_all_machines_get_all_arrays(size: int) -> None:
    """Of different sizes, and of none."""
    arrays = [np.full((number, 1000), number, dtype=np.float32) for number in range(size)]

    def work(number: int, own: Links) -> list[Any]:
        mine = [array if at == number else np.empty_like(array) for at, array in enumerate(arrays)]
        own.all_gather(mine)
        return mine

    for found in on_machines(size, work):
        assert all(map(np.array_equal, found, arrays))


def test_a_machine_that_ends_is_noticed() -> None:
    def work(number: int, own: Links) -> str:
        if number:
            return "ended"
        with pytest.raises(LostPeer):
            own.all_reduce(np.ones(3_000_000, dtype=np.float32))
        return "noticed"

    assert on_machines(2, work) == ["noticed", "ended"]


def test_a_strangers_connection_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that says something else, one that leaves at once, and one that says too little."""
    made = links._listener

    def visited() -> socket.socket:
        listener = made()
        assert listener.getsockname()[0] == "127.0.0.1"
        for greeting in (b"GET / HTTP/1.1\r\nHost: here\r\n\r\n", b"", b"short"):
            with socket.create_connection(listener.getsockname()[:2]) as stranger:
                stranger.sendall(greeting)
        return listener

    monkeypatch.setattr(links, "_listener", visited)
    assert on_machines(2, lambda number, own: own.all_gather([np.ones(1, np.float32)] * 2)) == [None, None]


def test_a_machine_that_cannot_be_reached_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        place = closed.getsockname()[:2]
    with pytest.raises(RankError, match=rf"127.0.0.1:{place[1]}, .* cannot be reached .*GLOO_SOCKET_IFNAME"):
        links._connected(place, bytes(16), 1)


def test_without_a_named_interface_it_listens_where_it_reaches_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("none-such", None):
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", name) if name else monkeypatch.delenv("GLOO_SOCKET_IFNAME")
        with links._listener() as listener:
            assert listener.getsockname()[0] == "127.0.0.1"
