"""A run's files: their names, and the checked content of those that are JSON."""

from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

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


Lines = list[dict[str, Any]]
Line = Annotated[StepLine | EpochLine, Field(discriminator="kind")]


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


def is_finished(run: Path) -> bool:
    """Whether the folder holds a summary. A cut one, which a crash of the machine may leave, is none."""
    try:
        return isinstance(read(Location.of(run / SUMMARY)), dict)
    except (OSError, RecordError):
        return False


def read_summary(run: Path) -> dict[str, Any]:
    """A ``Summary``. Raises InputError."""
    return _read(run / SUMMARY, Summary)


def read_config(run: Path) -> dict[str, Any]:
    """A ``RunConfig``. Raises InputError."""
    return _read(run / CONFIG, RunConfig)


def read_metrics(run: Path) -> tuple[Lines, Lines]:
    """The lines of metrics.jsonl, by their kind. Raises InputError."""
    path = run / METRICS
    try:
        with path.open("rb") as file:
            return parsed_metrics(file.read())
    except (OSError, RecordError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); train again") from None


def parsed_metrics(content: bytes) -> tuple[Lines, Lines]:
    """The lines by their kind. Raises RecordError, which names the line."""
    steps: Lines = []
    epochs: Lines = []
    for number, text in enumerate(content.splitlines(), 1):
        try:
            line: Any = checked(loads(text), Line)  # type: ignore[arg-type]
        except RecordError as error:
            raise RecordError(f"line {number}: {error}") from None
        (steps if line["kind"] == "step" else epochs).append(line)
    return steps, epochs


def _read(path: Path, kind: Any) -> dict[str, Any]:
    try:
        return dict(checked(read(Location.of(path)), kind))
    except (OSError, RecordError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); train again") from None
