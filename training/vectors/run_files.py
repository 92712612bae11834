"""A run's files: their names, the checked content of those that are JSON, and its tables.

V words, D dimensions.
"""

import json
import math
import mmap
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, NotRequired

import numpy as np
import numpy.typing as npt
from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one up to Python 3.11

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.records import STRICT, Count, RecordError, Seconds, checked, loads, read
from pipeline.shared.storage import Location

SUMMARY = "summary.json"
VECTORS = "vectors.safetensors"
VOCAB = "vocab.parquet"
CONFIG = "config.json"
METRICS = "metrics.jsonl"
REPORT = "report.html"
BOARD = "tensorboard"
BEST = "best"
"""A folder with the vectors of the lowest held-out loss, whose summary.json says which that was."""

MAX_HEADER_BYTES = 100_000_000
"""Of a .safetensors file, as safetensors has it; less than eight letters of text read as a number."""

Float32 = npt.NDArray[np.float32]
Speed = Annotated[float, Field(ge=0)]


@with_config(STRICT)
class StepLine(TypedDict):
    """A line of metrics.jsonl, about the steps since the last such line. ``step`` counts the run's steps."""

    kind: Literal["step"]
    epoch: Count
    step: Count
    loss: float
    lr: float
    tokens_per_s: Speed
    wait_share: float


@with_config(STRICT)
class EpochLine(TypedDict):
    """A line of metrics.jsonl, about a whole epoch. ``mean_loss`` is the run's so far."""

    kind: Literal["epoch"]
    epoch: Count
    step: Count
    loss: float
    mean_loss: float
    examples: Count
    seconds: Seconds
    tokens_per_s: Speed
    wait_share: float


@with_config(STRICT)
class HeldoutLine(TypedDict):
    """A line of metrics.jsonl: the loss of the held-out examples after ``step`` steps of the run."""

    kind: Literal["heldout"]
    epoch: Count
    step: Count
    loss: float


Lines = list[dict[str, Any]]
Line = Annotated[StepLine | EpochLine | HeldoutLine, Field(discriminator="kind")]


@with_config(STRICT)
class Evaluated(TypedDict):
    """The held-out loss in epoch ``epoch``, after ``step`` steps of the run."""

    epoch: Count
    step: Count
    loss: float


@with_config(STRICT)
class HeldoutSummary(TypedDict):
    """The last held-out loss and the lowest; and whether the run stopped early because none was lower."""

    last: Evaluated
    best: Evaluated
    stopped_early: bool


@with_config(STRICT)
class Summary(TypedDict):
    """summary.json, which marks a run as finished. The loss is the last epoch's, ``mean_loss`` the whole run's."""

    loss: float
    mean_loss: float
    examples: Count
    steps: Count
    seconds: Seconds
    tokens_per_s: Speed
    wait_share: float
    world_size: Count
    threads: Count
    kernel: str
    device: str
    sharding: NotRequired[str]
    group_size: NotRequired[Count]
    heldout: NotRequired[HeldoutSummary]
    vocabulary_growth: NotRequired[dict[str, int | float]]
    epochs: list[EpochLine]
    dataset_id: str
    vocab_size: Count
    versions: dict[str, str]
    commit: str | None


@with_config(ConfigDict(strict=True, extra="allow"))
class RunConfig(TypedDict):
    """The settings that config.json holds, as far as other code than the run's uses them."""

    data: str
    log_every: Annotated[int, Field(ge=1)]
    init_from: NotRequired[str | None]


@with_config(STRICT)
class TensorEntry(TypedDict):
    """What the header of a .safetensors file says of a tensor; the offsets are those of its bytes after the header."""

    dtype: str
    shape: list[Count]
    data_offsets: tuple[Count, Count]


def is_finished(run: Path) -> bool:
    """Whether the folder holds a summary. A cut one, which a crash of the machine may leave, is none."""
    try:
        return isinstance(read(Location.of(run / SUMMARY)), dict)
    except (OSError, RecordError):
        return False


def read_summary(run: Path) -> dict[str, Any]:
    """A ``Summary``. Raises InputError."""
    if run.name == BEST and (run.parent / CONFIG).is_file():
        raise InputError(f"{run}: found the best vectors of a run, expected the run's folder; name {run.parent}")
    return _read(run / SUMMARY, Summary)


def folder_of_vectors(run: Path) -> Path:
    """Where a finished run has its vectors: of one that its patience ended, those of the lowest held-out loss.

    Those of its end are known to be worse. Raises InputError.
    """
    summary = read_summary(run)
    return run / BEST if "heldout" in summary and summary["heldout"]["stopped_early"] else run


def read_config(run: Path) -> dict[str, Any]:
    """A ``RunConfig``. Raises InputError."""
    return _read(run / CONFIG, RunConfig)


def read_metrics(run: Path) -> dict[str, Lines]:
    """The lines of metrics.jsonl by their kind: "step", "epoch", "heldout". Raises InputError."""
    path = run / METRICS
    try:
        with path.open("rb") as file:
            return parsed_metrics(file.read())
    except (OSError, RecordError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); train again") from None


def parsed_metrics(content: bytes) -> dict[str, Lines]:
    """The lines by their kind. Raises RecordError, which names the line."""
    lines: dict[str, Lines] = {"step": [], "epoch": [], "heldout": []}
    for number, text in enumerate(content.splitlines(), 1):
        try:
            line: Any = checked(loads(text), Line)  # type: ignore[arg-type]
        except RecordError as error:
            raise RecordError(f"line {number}: {error}") from None
        lines[line["kind"]].append(line)
    return lines


def _read(path: Path, kind: Any) -> dict[str, Any]:
    try:
        return dict(checked(read(Location.of(path)), kind))
    except (OSError, RecordError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); train again") from None


# Tables: a .safetensors file is the length of its header in 8 bytes, the header, which is JSON, and the tensors.
# Source: the description of the format in safetensors' README. safetensors itself copies what it reads.


def is_safetensors(file: Path) -> bool:
    """Whether the file begins with a length in 8 bytes and a JSON header. Raises OSError."""
    with file.open("rb") as opened:
        head = opened.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES


def map_tables(file: Path, *names: str) -> list[Float32]:
    """The tables ``names`` of a .safetensors file, each (V, D): read-only views of the file, mapped into memory.

    Costs no memory but the page cache's, whose pages the system can drop at any time. A view stays valid if the file is
    replaced or removed. If it is overwritten in place, the view changes, and if it is cut, reading the view ends the
    process by SIGBUS: replace files, as ``atomic_write`` does. Values are not checked. Raises OSError, and ValueError
    for a file that is not whole, or has no such tables.
    """
    with file.open("rb") as opened:
        content = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    begin = 8 + int.from_bytes(content[:8], "little")
    if begin > min(len(content), 8 + MAX_HEADER_BYTES):
        raise RecordError(f"found a header of {begin - 8:,} bytes in a file of {len(content):,}")
    header = checked(loads(content[8:begin]), dict)
    header.pop("__metadata__", None)
    entries = {name: checked(entry, TensorEntry) for name, entry in header.items()}
    spans = sorted(entry["data_offsets"] for entry in entries.values())
    gapless = [(0, 0), *spans, (len(content) - begin, 0)]
    if any(first[1] != second[0] for first, second in pairwise(gapless)):
        raise RecordError(f"found tensors that do not fill its {len(content):,} bytes")
    return [_view(content, begin, name, entries.get(name)) for name in names]


def _view(content: mmap.mmap, begin: int, name: str, entry: TensorEntry | None) -> Float32:
    """A table whose offsets count from ``begin``."""
    if entry is None:
        raise RecordError(f"found no table {name}")
    (first, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    if dtype != "F32" or len(shape) != 2 or not math.prod(shape):
        raise RecordError(f"found {name} of shape {shape} and {dtype}, expected F32 of words and dimensions")
    if end - first != 4 * math.prod(shape):
        raise RecordError(f"found {end - first:,} bytes of {name}, expected those of shape {shape}")
    return np.frombuffer(content, np.float32, math.prod(shape), begin + first).reshape(shape)


def write_tables(file: BinaryIO, shape: tuple[int, ...], tables: Mapping[str, Iterable[Float32]]) -> None:
    """Writes tables of one ``shape``, each given in blocks of rows, to a .safetensors file: safetensors' own bytes."""
    names, num_bytes = sorted(tables), 4 * math.prod(shape)
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [index * num_bytes, (index + 1) * num_bytes]}
        for index, name in enumerate(names)
    }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in names:
        for block_BD in tables[name]:
            file.write(np.ascontiguousarray(block_BD).data)
