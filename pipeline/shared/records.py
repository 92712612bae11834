"""Records: the JSON files that one process writes and another reads. Nothing is used before all of it is checked.

A record is a frozen dataclass, made by ``record``. The types of its fields, with pydantic's limits, are the check.
"""

import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated, Any, TypeVar, cast, dataclass_transform

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.shared.errors import one_line, shown
from pipeline.shared.storage import Location

T = TypeVar("T")

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of things. JSON readers in other languages keep whole numbers up to 2^53."""
Seconds = Annotated[float, Field(ge=0)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Xxh3 = Annotated[str, Field(pattern="^[0-9a-f]{16}$")]
"""XXH3 with 64 bits."""

MAX_BYTES = 256 << 20
"""More than any record: the manifest of a million shards has this size."""

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""No conversions (5.0 is no whole number), no unknown fields."""


class RecordError(ValueError):
    """A record is not what its type says."""


@dataclass_transform(frozen_default=True, field_specifiers=(field,))
def record(kind: type[T]) -> type[T]:
    """Makes a class of fields a frozen dataclass that ``checked`` can make. Its constructor checks nothing."""
    setattr(kind, "__pydantic_config__", STRICT)  # noqa: B010
    return dataclass(frozen=True)(kind)


def read(path: Location, max_bytes: int = MAX_BYTES) -> Any:
    """The JSON in a file. Raises OSError, and RecordError if it is no JSON, is too large, or has a key twice."""
    with path.open() as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise RecordError(f"found more than {max_bytes:,} bytes")
    return loads(content)


def loads(content: bytes) -> Any:
    """Parsed JSON. Raises RecordError for anything else, also for NaN, and for an object that has a key twice."""
    try:
        found = json.loads(content, object_pairs_hook=_object, parse_constant=_constant)
        if b"\\ud" in content or b"\\uD" in content:
            json.dumps(found, ensure_ascii=False).encode()  # raises for half a character, which nothing can write
        return found
    except RecursionError:
        raise RecordError("is nested too deeply") from None
    except RecordError:
        raise
    except ValueError as error:
        raise RecordError(f"is no JSON: {one_line(error)}") from None


def checked(found: Any, kind: type[T]) -> T:
    """A record of type ``kind`` from parsed JSON. Raises RecordError "FIELD: found ..., expected ..."."""
    try:
        return cast(T, _adapter(kind).validate_json(json.dumps(found)))
    except ValidationError as error:
        raise RecordError(_line(error)) from None


_adapter: Any = lru_cache(maxsize=64)(TypeAdapter)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise RecordError(f"found {shown(next(name for name in names if names.count(name) > 1))} twice in one object")
    return found


def _constant(name: str) -> Any:
    raise RecordError(f"found {name}, expected a number")


def _line(error: ValidationError) -> str:
    """The first error: which field, what was found, what was expected."""
    problem = error.errors(include_url=False)[0]
    where = ".".join(map(str, problem["loc"]))
    if cause := problem.get("ctx", {}).get("error"):
        return f"{where}: {cause}".removeprefix(": ")
    if problem["type"] == "missing":
        return f"found no {where}"
    if problem["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"found a field {shown(problem['loc'][-1])}, which is not known"
    expected = re.sub(r"^[\w ]+ should (be )?", "", problem["msg"]).replace("match pattern", "text of the form", 1)
    return f"{where}: found {shown(problem['input'])}, expected {expected}".removeprefix(": ")


def digest(value: object) -> str:
    """The SHA-256 of a value's JSON: names are sorted, paths are text."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()
