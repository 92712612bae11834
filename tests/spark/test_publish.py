"""Of several runs of prepare that publish at the same time into an object store, at most one succeeds.

Two runs, as threads, take turns at every request to the store, in an order that is drawn by a seed.
"""

import os
import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Condition, local
from typing import Any

import pytest
from tiny import write_tiny_dataset

from pipeline.dataset.manifest_file import FILE_NAME, Manifest
from pipeline.shared.errors import InputError
from pipeline.shared.storage import Location
from pipeline.spark import generation
from pipeline.spark.generation import CLAIM, current_generation, publish

REQUESTS = "put", "entries", "read_bytes", "open", "remove"


class Turns:
    """Lets one thread at a time make a request: whichever the seed chooses of those that wait."""

    def __init__(self, seed: int, num_threads: int):
        self._random, self._running = random.Random(seed), num_threads
        self._waiting: list[int] = []
        self._next: int | None = None
        self._changed = Condition()

    def wait(self, thread: int) -> None:
        with self._changed:
            self._waiting.append(thread)
            self._choose()
            assert self._changed.wait_for(lambda: self._next == thread, timeout=30)
            self._next = None
            self._waiting.remove(thread)

    def end(self) -> None:
        with self._changed:
            self._running -= 1
            self._choose()

    def _choose(self) -> None:
        """Once every running thread waits for its turn."""
        if self._waiting and len(self._waiting) == self._running and self._next is None:
            self._next = self._random.choice(sorted(self._waiting))
        self._changed.notify_all()


@pytest.fixture
def manifests(tmp_path: Path) -> list[Manifest]:
    made = write_tiny_dataset(tmp_path, num_sequences=20)

    def named(name: str) -> Manifest:
        shards = tuple(replace(shard, path=shard.path.replace(made.generation, name, 1)) for shard in made.shards)
        return replace(made, generation=name, shards=shards)

    return [named(f"gen-{number:012x}") for number in range(4)]


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Location]:
    found = Location.of(f"memory://{os.path.basename(tmp_path)}")
    yield found
    found.remove()


def race(output: Location, manifests: list[Manifest], seed: int, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Which of the runs succeeded."""
    turns, here, before = Turns(seed, len(manifests)), local(), current_generation(output)

    def in_turn(method: Callable[..., Any]) -> Callable[..., Any]:
        def request(self: Location, *arguments: Any) -> Any:
            if hasattr(here, "number") and self.path.startswith(output.path):
                turns.wait(here.number)
            return method(self, *arguments)

        return request

    def run(number: int) -> bool:
        here.number = number
        try:
            publish(manifests[number], output, before)
        except InputError:
            return False
        finally:
            turns.end()
        return True

    with monkeypatch.context() as patch, ThreadPoolExecutor(len(manifests)) as pool:
        for name in REQUESTS:
            patch.setattr(Location, name, in_turn(getattr(Location, name)))
        patch.setattr(time, "sleep", lambda _: None)
        return list(pool.map(run, range(len(manifests))))


@pytest.mark.parametrize("has_before", [False, True])
@pytest.mark.parametrize("num_runs", [2, 3])
def test_at_most_one_of_several_runs_succeeds(
    output: Location, manifests: list[Manifest], has_before: bool, num_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    successes = 0
    for seed in range(150):
        output.remove()
        if has_before:
            manifests[3].save(output)
        ended = race(output, manifests[:num_runs], seed, monkeypatch)
        assert sum(ended) <= 1, seed
        if any(ended):
            assert Manifest.load(output) == manifests[ended.index(True)], seed
        assert [entry.base_name for entry in output.entries() if entry.base_name != FILE_NAME] == [], seed
        successes += sum(ended)
    assert successes > 75  # giving way is not all that they do


def test_a_killed_runs_claim_ends(output: Location, manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (output / f"{CLAIM}{time.time():.0f}-0123456789ab").put(b"")
    with pytest.raises(InputError, match="about to publish"):
        publish(manifests[0], output, None)
    assert current_generation(output) is None
    monkeypatch.setattr(generation, "CLAIM_LASTS_S", -1)
    publish(manifests[0], output, None)
    assert Manifest.load(output) == manifests[0]
