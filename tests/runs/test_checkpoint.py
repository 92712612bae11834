"""Laws of training/runs/checkpoint.py: a checkpoint is whole or not there, and what is read is what was written."""

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from xxhash import xxh3_64_hexdigest

from training.model.memory import PAGE, page_aligned
from training.runs.checkpoint import CheckpointError, Writer, name_of, newest, read, read_record, steps
from training.runs.state_file import save as save_state

RECORD = {"text": "é", "loss": 0.1 + 0.2, "nothing": None, "list": [1, 2.5]}


def state_of(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {
        "center": torch.randn(7, 5, generator=generator),
        "last": torch.full((2, 7), step, dtype=torch.int32),
        "since": torch.tensor(step),
        "step": torch.tensor(float(step)),
    }


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    return tmp_path


@pytest.fixture
def writer(run: Path) -> Iterator[Writer]:
    with closing(Writer(run, keep=2)) as made:
        yield made


def save(writer: Writer, *at: int) -> None:
    for step in at:
        writer.save(step, lambda step=step: state_of(step), {**RECORD, "at": step})  # type: ignore[misc]
    writer.wait()


def assert_whole(run: Path, step: int) -> None:
    found = read(run, step)
    assert {name: found.record[name] for name in RECORD} == RECORD
    assert (found.record["step"], found.record["at"]) == (step, step)
    expected = state_of(step)
    assert set(found.state) == set(expected)
    for name, tensor in expected.items():
        assert found.state[name].dtype == tensor.dtype
        assert torch.equal(found.state[name], tensor)


def test_what_is_read_is_what_was_written(run: Path, writer: Writer) -> None:
    save(writer, 3)
    assert_whole(run, 3)
    assert newest(run) == 3
    theirs = load_file(run / "checkpoints" / name_of(3) / "state.safetensors")
    assert all(torch.equal(theirs[name], tensor) for name, tensor in state_of(3).items())


def test_the_newest_stay_and_what_a_run_went_back_from_goes(run: Path, writer: Writer) -> None:
    save(writer, 10, 20, 30)
    assert (steps(run), newest(run)) == ([20, 30], 30)
    save(writer, 25)
    assert (steps(run), newest(run)) == ([20, 25], 25)
    save(writer, 20)  # again, over the one that is there
    assert (steps(run), newest(run)) == ([20], 20)
    assert_whole(run, 20)
    writer.close()
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["latest", name_of(20)]


def test_a_longer_or_shorter_state_over_an_old_one_is_read_as_it_is(run: Path, writer: Writer) -> None:
    sizes = (5000, 700_000, 6, 700_001, 9000)
    for step, size in enumerate(sizes, 1):
        writer.save(step, lambda size=size: {"rows": torch.arange(size, dtype=torch.float32)}, RECORD)  # type: ignore[misc]
        writer.wait()
        assert torch.equal(read(run, step).state["rows"], torch.arange(size, dtype=torch.float32))
    assert steps(run) == [4, 5]


@pytest.mark.parametrize("size", [1, 1023, 1024, 1025, 5000, 700_001])
def test_pages_written_past_the_cache_are_those_that_are_read(tmp_path: Path, size: int) -> None:
    """Memory that begins with a page goes past it, other memory does not; the files are the same."""
    aligned = page_aligned(size)
    assert aligned.data_ptr() % PAGE == 0
    aligned.copy_(torch.randn(size))
    other = page_aligned(size + 1)[1:]
    other.copy_(aligned)
    digests = [
        save_state(tmp_path / name, {"rows": rows, "n": torch.tensor(7)})
        for name, rows in (("a", aligned), ("b", other))
    ]
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert digests == [xxh3_64_hexdigest((tmp_path / "a").read_bytes())] * 2
    assert torch.equal(load_file(tmp_path / "a")["rows"], aligned)


def test_a_state_is_asked_for_when_the_one_before_is_written(
    run: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its memory is the same."""
    events, may_end = [], threading.Event()
    write = writer._write

    def slow(step: int, *arguments: Any) -> None:
        assert may_end.wait(30)
        write(step, *arguments)
        events.append(f"written {step}")

    def state(step: int) -> dict[str, Tensor]:
        events.append(f"asked {step}")
        return state_of(step)

    monkeypatch.setattr(writer, "_write", slow)
    writer.save(1, lambda: state(1), {**RECORD, "at": 1})
    second = threading.Thread(target=writer.save, args=(2, lambda: state(2), {**RECORD, "at": 2}))
    second.start()
    second.join(0.2)
    assert events == ["asked 1"]
    may_end.set()
    second.join(30)
    writer.wait()
    assert events == ["asked 1", "written 1", "asked 2", "written 2"]
    assert_whole(run, 1)
    assert_whole(run, 2)


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
def test_any_flipped_bit_is_found_and_the_one_before_offered(run: Path, writer: Writer, name: str) -> None:
    save(writer, 10, 20)
    path = run / "checkpoints" / name_of(20) / name
    content = path.read_bytes()
    for offset in range(len(content)):
        path.write_bytes(content[:offset] + bytes([content[offset] ^ 1 << offset % 8]) + content[offset + 1 :])
        with pytest.raises(CheckpointError, match="--resume 10") as refused:
            read(run, 20)
        assert str(refused.value).startswith(f"{path}: ") or b"format_version" in content[offset - 25 : offset + 25]
    path.write_bytes(content)
    assert_whole(run, 20)


@pytest.mark.parametrize("name", ["state.safetensors", "checkpoint.json"])
@pytest.mark.parametrize("change", [lambda old: old[:-1], lambda old: b"", None], ids=["shorter", "empty", "missing"])
def test_a_file_that_is_not_whole_is_refused(
    run: Path, writer: Writer, name: str, change: Callable[[bytes], bytes] | None
) -> None:
    save(writer, 20)
    path = run / "checkpoints" / name_of(20) / name
    if change:
        path.write_bytes(change(path.read_bytes()))
    else:
        path.unlink()
    with pytest.raises(CheckpointError, match=r"damaged or unreadable \(.*there is none before it"):
        read(run, 20)


def test_a_newer_format_is_named(run: Path, writer: Writer) -> None:
    save(writer, 20)
    path = run / "checkpoints" / name_of(20) / "checkpoint.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    with pytest.raises(CheckpointError, match="found format version 2, expected 1"):
        read_record(run, 20)


@pytest.mark.parametrize("text", ["step-x\n", "", "../step-00000010\n", "\udcff"])
def test_a_latest_that_names_nothing_is_refused(run: Path, writer: Writer, text: str) -> None:
    save(writer, 10)
    (run / "checkpoints" / "latest").write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(CheckpointError, match=r"latest"):
        newest(run)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_never_saved(run: Path, writer: Writer, value: float) -> None:
    save(writer, 10)
    broken = state_of(20)
    broken["center"][6, 4] = value
    writer.save(20, lambda: broken, RECORD)
    with pytest.raises(CheckpointError, match="the one of step 10 is good"):
        writer.wait()
    assert (steps(run), newest(run)) == ([10], 10)


class PowerCutError(BaseException):
    """Ends a run in the middle of whatever it does."""


@pytest.mark.parametrize("before", [(), (10,), (10, 20)], ids="after {}".format)
def test_a_run_that_ends_at_any_moment_leaves_a_newest_that_is_whole(
    run: Path, monkeypatch: pytest.MonkeyPatch, before: tuple[int, ...]
) -> None:
    """Every call that changes the disk, or waits for it, is once the one that never happens."""
    calls = 0
    last = 10**9

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls > last:
                raise PowerCutError
            return function(*arguments, **options)

        return call

    for owner, name in (
        (os, "fsync"),
        (shutil, "rmtree"),
        (os, "open"),
        *((Path, name) for name in ("open", "mkdir", "rename", "replace")),
    ):
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))

    def attempt(allowed: int) -> bool:
        """Whether checkpoint 30 was written with so many calls."""
        nonlocal calls, last
        last = 10**9
        shutil.rmtree(run / "checkpoints", ignore_errors=True)
        with closing(Writer(run, keep=2)) as writer:
            save(writer, *before)
            calls, last = 0, allowed
            try:
                save(writer, 30)
            except PowerCutError:
                return False
            finally:
                last = 10**9
        return True

    allowed = 0
    while not attempt(allowed):
        found = newest(run)
        assert found in (30, max(before, default=None))
        assert (found is None) == (steps(run) == [])
        if found is not None:
            assert_whole(run, found)
        with closing(Writer(run, keep=2)) as writer:  # and the next run goes on from there
            save(writer, 40)
        assert_whole(run, 40)
        present = {path.name for path in (run / "checkpoints").iterdir()}
        earlier = present - {"latest", name_of(40)}
        assert len(earlier) == (found is not None)
        assert earlier <= {name_of(30), *map(name_of, before[-1:])}
        allowed += 1
    assert allowed > 10


def test_the_data_are_on_the_disk_before_latest_names_them(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(os.readlink(f"/proc/self/fd/{fd}")))
    replace = Path.replace

    def noted(self: Path, to: Path) -> Path:
        events.append(f"now {to.name}")
        return replace(self, to)

    monkeypatch.setattr(Path, "replace", noted)
    with closing(Writer(run, keep=2)) as writer:
        save(writer, 10)
    before = [Path(event).name for event in events[: events.index("now latest")]]
    beside = f".{name_of(10)}"
    files = ["state.safetensors", "checkpoint.json", "metrics.jsonl"]
    assert before == [*files, run.name, beside, "checkpoints", ".latest"]


@pytest.mark.parametrize("link", [os.link, os.symlink])
def test_a_copy_by_links_keeps_its_content(
    run: Path, writer: Writer, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    """As backups make it by ``cp -al``; the files of old checkpoints are otherwise written over."""
    save(writer, 1)
    file = run / "checkpoints" / name_of(1) / "state.safetensors"
    content = file.read_bytes()
    copy = tmp_path / "copy"
    if link is os.link:
        link(file, copy)
    else:
        file.rename(copy)
        link(copy, file)
    save(writer, 2, 3, 4, 5)
    assert copy.read_bytes() == content
    assert_whole(run, 5)
