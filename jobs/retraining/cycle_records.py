"""The records of a workspace, checked when they are read: what each step of a cycle writes when it is finished.

A record that is empty or cut counts as absent, and its step is repeated: a crash of the machine may leave one. A whole
record with wrong content is refused.
"""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import ConfigDict, Field, with_config
from typing_extensions import TypedDict  # pydantic needs this one up to Python 3.11

from pipeline.shared.errors import InputError, one_line
from pipeline.shared.records import STRICT, Count, RecordError, Sha256, checked, read
from pipeline.shared.storage import Location
from training.vectors.run_files import SUMMARY

RunId = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
Version = Annotated[str, Field(pattern="^[0-9]{6,18}$")]
Command = list[str]


@with_config(STRICT)
class Pointer(TypedDict):
    """cycle.json: the newest cycle."""

    run_id: RunId


@with_config(STRICT)
class Plan(TypedDict):
    """plan.json: the corpus, the version that training starts from, and the commands to come."""

    run_id: RunId
    planned: str
    base: Version | None
    source_state: list[dict[str, str | int]]
    prepare: Command
    train: Command
    settings: dict[str, Any]


@with_config(STRICT)
class Prepared(TypedDict):
    """prepare.json."""

    prepared: str
    dataset_id: str


@with_config(STRICT)
class Trained(TypedDict):
    """train.json."""

    trained: str


@with_config(ConfigDict(strict=True, extra="allow"))
class Decided(TypedDict):
    """decision.json: what the gates found. The outcome of each gate is for people and for MLflow."""

    key: Sha256
    vectors: NotRequired[Sha256]
    decided: str
    champion: Version | None
    accepted: bool
    gates: list[dict[str, Any]]
    text: str
    reason: str


@with_config(STRICT)
class Publication(TypedDict):
    """publish.json."""

    published: str
    version: Version
    supersedes: Version | None


@with_config(STRICT)
class Registered(TypedDict):
    """registry.json: the version's number in MLflow's registry."""

    version: str | int


@with_config(ConfigDict(strict=True, extra="allow"))
class Card(TypedDict):
    """The summary of a published version."""

    run_id: RunId
    dim: Count
    vocab_size: Count
    supersedes: Version | None


KINDS: dict[str, Any] = {
    "cycle": Pointer,
    "plan": Plan,
    "prepare": Prepared,
    "train": Trained,
    "decision": Decided,
    "publish": Publication,
    "registry": Registered,
}


def read_record(path: Path) -> dict[str, Any] | None:
    """The record, whose kind is the file's name; None if it is missing or cut. Raises InputError if it is wrong."""
    try:
        found = read(Location.of(path))
    except (FileNotFoundError, NotADirectoryError, RecordError):
        return None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)}); remove it, and its step is repeated") from None
    try:
        return dict(checked(found, KINDS[path.stem]))
    except RecordError as error:
        raise InputError(f"{path}: {error}; remove it, and its step is repeated") from None


def card(version: Path) -> dict[str, Any]:
    """The summary of a published version. Raises InputError if it is damaged."""
    try:
        return dict(checked(read(Location.of(version / SUMMARY)), Card))
    except (OSError, RecordError) as error:
        raise InputError(
            f"{version / SUMMARY}: damaged ({one_line(error)}); bring it back, or roll back and remove it"
        ) from None
