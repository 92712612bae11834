"""Checkpoints of a run: written atomically, in the background, and verified when they are read.

RUN/checkpoints/step-00001234/state.safetensors   tables and the optimizer's state
RUN/checkpoints/step-00001234/checkpoint.json     the run's progress and settings, and digests of both files
RUN/checkpoints/latest                            the newest one's name; replaced when all of it is on the disk

Nothing is ever unpickled.
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from xxhash import xxh3_64, xxh3_64_hexdigest

from pipeline.shared.errors import InputError, one_line, shown
from pipeline.shared.files import fsync
from pipeline.shared.records import RecordError, loads
from training.model.blocks import Blocks
from training.model.memory import is_finite
from training.runs.state_file import save

FOLDER = "checkpoints"
LATEST = "latest"
STATE = "state.safetensors"
RECORD = "checkpoint.json"
SPARE = ".spare"
FORMAT_VERSION = 1
OF_THE_FILE = ("format_version", "step", "state_xxh3")
"""The fields of a record that ``Writer`` adds."""

_READ_AT_ONCE = 1 << 24

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointError(InputError):
    """A checkpoint is damaged, or cannot be read or written; the message says where and what to do."""


@dataclass(frozen=True)
class Checkpoint:
    """``record`` is JSON; ``state`` holds the tensors, by name."""

    record: dict[str, Any]
    state: dict[str, Tensor]


class Writer:
    """Writes the checkpoints of one run in a thread, one at a time, so that training does not wait for the disk.

    Each new checkpoint overwrites the files of the oldest one: allocating and freeing disk space takes as long as
    writing. So the disk holds one more checkpoint than ``keep``.
    """

    def __init__(self, run: Path, keep: int):
        self.folder, self._metrics, self._keep = run / FOLDER, run / "metrics.jsonl", keep
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None
        self._spare = self.folder / SPARE
        for left in (*self.folder.glob(".step-*"), self._spare):  # left behind by a run that was killed
            shutil.rmtree(left, ignore_errors=True)

    def save(self, step: int, state: Callable[[], Mapping[str, Tensor | Blocks]], record: dict[str, Any]) -> None:
        """Starts to write ``state()`` and ``record`` as the checkpoint after ``step`` steps of the run.

        First waits for the previous checkpoint, and raises its CheckpointError. The tensors that ``state`` returned
        must not change until this checkpoint is written. Blocks are written before this returns: there is no copy of
        them.
        """
        self.wait()
        tensors = state()
        self._writing = self._pool.submit(self._write, step, tensors, record)
        if any(isinstance(tensor, Blocks) for tensor in tensors.values()):
            self.wait()

    def wait(self) -> None:
        """Returns when everything is on the disk. Raises CheckpointError if it could not be written."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def close(self) -> None:
        """Waits for the thread and ignores its errors: for runs that end with another error."""
        self._pool.shutdown()
        shutil.rmtree(self._spare, ignore_errors=True)

    def _write(self, step: int, state: Mapping[str, Tensor | Blocks], record: dict[str, Any]) -> None:
        name = name_of(step)
        beside, final = self.folder / f".{name}", self.folder / name
        if not all(is_finite(tensor) for tensor in state.values() if isinstance(tensor, Tensor)):
            raise self._not_finite(final)
        state = {
            name: tensor if isinstance(tensor, Tensor) else tensor._replace(blocks=partial(_finite, tensor))
            for name, tensor in state.items()
        }
        try:
            self.folder.mkdir(exist_ok=True)
            shutil.rmtree(beside, ignore_errors=True)
            if self._spare.exists():
                self._spare.rename(beside)
            else:
                beside.mkdir()
            body = {
                "format_version": FORMAT_VERSION,
                "step": step,
                **record,
                "state_xxh3": save(beside / STATE, state),
            }
            _write_text(beside / RECORD, _text({**body, "xxh3": _digest(body)}))
            for path in (self._metrics, self.folder.parent, beside):
                fsync(path)
            if final.exists():  # written before the run was resumed from an earlier checkpoint
                shutil.rmtree(final)
            beside.rename(final)
            fsync(self.folder)
            _write_text(self.folder / f".{LATEST}", f"{name}\n")
            (self.folder / f".{LATEST}").replace(self.folder / LATEST)
            fsync(self.folder)
            self._remove_old(step)
        except _NotFiniteError:
            shutil.rmtree(beside, ignore_errors=True)
            raise self._not_finite(final) from None
        except OSError as error:
            shutil.rmtree(beside, ignore_errors=True)
            raise CheckpointError(
                f"{final}: cannot be written ({error.strerror}); {self._good()}make room and go on with --resume"
            ) from None

    def _not_finite(self, final: Path) -> CheckpointError:
        return CheckpointError(f"{final}: found tables with numbers that are not finite; {self._good()}lower --lr")

    def _good(self) -> str:
        good = newest(self.folder.parent)
        return "" if good is None else f"the one of step {good} is good; "

    def _remove_old(self, step: int) -> None:
        """Removes all but ``keep`` checkpoints, and those later than ``step``, which an earlier resume left behind."""
        with suppress(OSError):  # the next checkpoint tries again
            present = steps(self.folder.parent)
            for old in present:
                if old > step or old in [found for found in present if found <= step][: -self._keep]:
                    if self._spare.exists():
                        shutil.rmtree(self.folder / name_of(old))
                    else:
                        (self.folder / name_of(old)).rename(self._spare)


class _NotFiniteError(Exception):
    """A block holds NaN or infinity."""


def _finite(tensor: Blocks) -> Iterator[Tensor]:
    for block in tensor.blocks():
        if not is_finite(block):
            raise _NotFiniteError
        yield block


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def steps(run: Path) -> list[int]:
    """The steps of all checkpoints, in rising order. Any of them may be damaged."""
    folder = run / FOLDER
    names = [_NAME.fullmatch(entry.name) for entry in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in names if match)


def newest(run: Path) -> int | None:
    """The step of the checkpoint that ``latest`` names; None if there is no checkpoint."""
    try:
        match = _NAME.fullmatch((run / FOLDER / LATEST).read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return max(steps(run), default=None)  # the run was killed before it named its first one
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{run / FOLDER / LATEST}: cannot be read ({error})") from None
    if match:
        return int(match[1])
    found = ", ".join(map(str, steps(run)))
    raise CheckpointError(f"{run / FOLDER / LATEST}: names no checkpoint; name one with --resume STEP, of {found}")


def read_record(run: Path, step: int) -> dict[str, Any]:
    """The record of the checkpoint. Raises CheckpointError unless every byte is as it was written."""
    try:
        content = (run / FOLDER / name_of(step) / RECORD).read_bytes()
        record = loads(content)
        version = record["format_version"]
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{run / FOLDER / name_of(step) / RECORD}: found format version {shown(version)}, expected "
                f"{FORMAT_VERSION}; use the shardvec that wrote it"
            )
        body = {name: value for name, value in record.items() if name != "xxh3"}
        if record["xxh3"] != _digest(body) or content != _text(record).encode():
            raise RecordError("its checksum does not fit")
        if not all(isinstance(body[name], kind) for name, kind in (("step", int), ("state_xxh3", str))):
            raise RecordError("found no step or no checksum of the tensors")
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(run, step, RECORD, error) from None
    return body


def read(run: Path, step: int) -> Checkpoint:
    """The checkpoint after ``step`` steps. Raises CheckpointError unless every byte is as it was written."""
    record = read_record(run, step)
    state = read_state(run, step)
    file = state_file(run, step)
    try:
        digest = xxh3_64()
        with file.open("rb") as content:
            while part := content.read(_READ_AT_ONCE):
                digest.update(part)
        if digest.hexdigest() != record["state_xxh3"]:
            raise ValueError("its checksum does not fit")
    except (OSError, ValueError) as error:
        raise damaged(run, step, STATE, error) from None
    return Checkpoint(record, state)


def state_file(run: Path, step: int) -> Path:
    """The file of the checkpoint's tensors."""
    return run / FOLDER / name_of(step) / STATE


def read_state(run: Path, step: int, file: Path | None = None) -> dict[str, Tensor]:
    """The tensors, mapped into memory: do not keep them, since a later checkpoint may overwrite the file.

    ``file``: where it is on this machine. Raises CheckpointError if they cannot be read, and does not look at the
    checksum.
    """
    try:
        return load_file(file or state_file(run, step))
    except (OSError, ValueError, KeyError, SafetensorError) as error:  # KeyError: a type that torch does not know
        raise damaged(run, step, STATE, error) from None


def damaged(run: Path, step: int, file: str, error: Exception) -> CheckpointError:
    """The error of a file, RECORD or STATE, of the checkpoint after ``step`` steps."""
    earlier = [other for other in steps(run) if other < step]
    folder = run / FOLDER / name_of(step)
    if earlier:
        remedy = f"go on from the one before with --resume {earlier[-1]}"
    else:
        remedy = f"there is none before it; begin again with --overwrite, or bring {folder} back"
    reason = getattr(error, "strerror", None) or one_line(error)
    return CheckpointError(f"{folder / file}: damaged or unreadable ({reason}); {remedy}")


def _text(record: dict[str, Any]) -> str:
    return f"{json.dumps(record, indent=1)}\n"


def _digest(body: dict[str, Any]) -> str:
    return xxh3_64_hexdigest(json.dumps(body, sort_keys=True).encode())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
