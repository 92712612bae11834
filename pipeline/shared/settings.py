"""Settings: one field of a config class defines a setting completely. To add a setting, add a field:

    window: int = setting(default=5, ge=1, group="sampling", help="largest distance of a context, in tokens")

From it follow the flag ``--window N``, with its text and default in ``--help``; the key ``prepare: {window: 5}`` of a
YAML file; the error lines ``--window: found 0, expected 1 or more`` and ``prepare.window: found 'x', expected a whole
number``; and the setting's row in docs/settings.md.
"""

import argparse
import os
import re
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, dataclass_transform, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails, PydanticCustomError, PydanticUndefined

from pipeline.shared.cli import Parser, path
from pipeline.shared.errors import InputError, shown

DEFAULT_NOTE = re.compile(r" ?\(default: ([^)]*)\)")
"""What a help text says of a default that depends on other settings, or that needs words."""

Config = TypeVar("Config")
Element = TypeVar("Element")


# Types of fields. Values are not converted (True is no number, 5.0 no whole number), except as these types allow.


def _number(found: object) -> object:
    try:
        return float(found) if isinstance(found, str) else found
    except ValueError:
        return found


def _path(found: object) -> object:
    if found == "":
        raise PydanticCustomError("path_type", "an empty path comes from a variable that is not set")
    if isinstance(found, str | Path) and not _may_exist(str(found)):
        raise PydanticCustomError("path_type", "no file system has such a name")
    try:
        return path(found) if isinstance(found, str) else found
    except argparse.ArgumentTypeError as error:
        raise ValueError(str(error)) from None


def _may_exist(name: str) -> bool:
    """False for a path of which Linux knows, without a look at the disk, that it cannot be."""
    try:
        encoded = os.fsencode(name)
    except UnicodeEncodeError:
        return False
    return b"\0" not in encoded and len(encoded) < 4096 and all(len(part) < 256 for part in encoded.split(b"/"))


def _tuple(found: object) -> object:
    return tuple(found) if isinstance(found, list) else found


Number = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
"""A finite float, or its text: YAML reads 1e-3, which has no point, as text."""
Text = Annotated[str, Field(min_length=1)]
LocalPath = Annotated[Path, BeforeValidator(_path), Field(strict=False)]
"""A Path, its text, or a file: URI."""
ListOf = Annotated[tuple[Element, ...], BeforeValidator(_tuple)]
"""A tuple, or a list."""
OneOrMore = Annotated[ListOf[Element], BeforeValidator(lambda found: [found] if isinstance(found, str) else found)]
"""A tuple, a list, or text, which stands for a list of one."""


def setting(*, help: str, group: str | None = None, flag: Mapping[str, Any] | None = None, **field: Any) -> Any:
    """A field with its help text and its flag's group in ``--help`` (None: it has no flag).

    ``field`` goes to pydantic's Field: a ``default``, or a ``default_factory``, which gets the settings above it; and
    the limits ge, gt and le. ``flag`` has options of add_argument that do not follow from the field's type.
    """
    return Field(description=help, json_schema_extra={"group": group, **(flag or {})}, **field)


@dataclass_transform(frozen_default=True, field_specifiers=(setting,))
def settings(section: str | None = None) -> Callable[[type[Config]], type[Config]]:
    """Makes a class of fields a frozen dataclass whose constructor checks all values. Raises InputError.

    Errors name flags, or, if ``section`` is given, keys of that section of a YAML file ("" is the whole file).
    """

    def decorate(kind: type[Config]) -> type[Config]:
        made: Any = dataclass(kind, frozen=True, config=ConfigDict(strict=True, extra="forbid"))
        unchecked = made.__init__

        @wraps(unchecked)
        def __init__(self: Config, *args: Any, **given: Any) -> None:
            try:
                unchecked(self, *args, **given)
            except ValidationError as error:
                raise InputError(_line(error, made, section)) from error

        made.__init__ = __init__
        return cast(type[Config], made)

    return decorate


def fields_of(kind: type) -> dict[str, FieldInfo]:
    """The settings of a config class, by name, in order."""
    fields: dict[str, FieldInfo] = vars(kind)["__pydantic_fields__"]
    return fields


def from_section(kind: type[Config], given: object, section: str) -> Config:
    """The config in a section of a YAML file; null is an empty section. Raises InputError, which names the section."""
    found = mapping(given, section)
    for name in found:  # now: the constructor takes no names that are its own, such as self
        if name not in fields_of(kind):
            raise InputError(f"{section or 'the file'}: found {name:.60}, expected one of {', '.join(fields_of(kind))}")
    try:
        return kind(**found)
    except InputError as error:
        if isinstance(error.__cause__, ValidationError):
            raise InputError(_line(error.__cause__, kind, section)) from None
        raise


def mapping(given: object, section: str) -> Mapping[str, Any]:
    """A section's settings by name. Raises InputError if the section is not a mapping."""
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{section or 'the file'}: found {shown(given)}, expected settings, one 'name: value' a line")
    return given


def is_whole(field: FieldInfo) -> bool:
    """Whether the numbers that a field accepts are whole."""
    return int in _types(field)


def add_flags(parser: Parser, kind: type, *omitted: str, **defaults: object) -> None:
    """Adds the flags of a config class to ``parser``, except ``omitted``. ``defaults`` replace those of the fields."""
    for name, field in fields_of(kind).items():
        about = cast(dict[str, Any], field.json_schema_extra)
        if about["group"] and name not in omitted:
            options = _options(name, field, defaults.get(name, field.default)) | about
            if name in defaults:  # the parser shows it
                options["help"] = DEFAULT_NOTE.sub("", options["help"])
            parser.group(options.pop("group")).add_argument(options.pop("flag"), **options)


def _options(name: str, field: FieldInfo, default: object) -> dict[str, Any]:
    """The options of add_argument for a field. An absent flag with no default, None or () sets nothing."""
    shown = argparse.SUPPRESS if default in (None, (), PydanticUndefined) else default
    options: dict[str, Any] = {"flag": f"--{name.replace('_', '-')}", "help": field.description, "default": shown}
    kind = _types(field)[0]
    if kind is bool and default:
        return options | {"flag": f"--no-{name}", "dest": name, "action": "store_false"}
    if kind is bool:
        return options | {"action": "store_true"}
    if get_origin(kind) is Literal:
        return options | {"choices": get_args(kind)}
    return options | {"type": path if kind is Path else kind}


# Error lines


def _types(field: FieldInfo) -> list[Any]:
    """The types that a field accepts, without their annotations."""
    hint = field.annotation
    hints = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return [_bare(each) for each in hints]


def _bare(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


_LIMITS = ("greater_than_equal", "greater_than", "less_than_equal", "finite_number", "literal_error")
_SPELLED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    NoneType: "null",
}


def _line(error: ValidationError, kind: type, section: str | None) -> str:
    """One line for the first error: where, found, expected."""
    problems = sorted(error.errors(include_url=False), key=lambda problem: problem["type"] != "missing")
    problem, fields = problems[0], fields_of(kind)
    cause = problem.get("ctx", {}).get("error")
    if cause and not problem["loc"]:  # a check of several settings together
        return str(cause) if not section or str(cause).startswith(f"{section}.") else f"{section}: {cause}"
    name = str(problem["loc"][0])
    if problem["type"] == "missing":
        missing = " and no ".join(str(each["loc"][0]) for each in problems if each["type"] == "missing")
        needed = [name for name, field in fields.items() if field.is_required()]
        return f"found no {missing}, expected {', '.join(needed[:-1])} and {needed[-1]}"
    found, is_flag = problem["input"], section is None
    where = f"--{name.replace('_', '-')}" if is_flag else f"{section}.{name}".lstrip(".")
    if cause:
        return f"{where}: {cause}"
    value = str(found) if is_flag else f"{found:g}" if isinstance(found, float) else shown(found)
    return f"{where}: found {value}, expected {_expected(problem, fields[name], is_flag)}"


def _expected(problem: ErrorDetails, field: FieldInfo, is_flag: bool) -> str:
    kinds, found = _types(field), problem["input"]
    if problem["type"] in _LIMITS:
        null = ", or null" if NoneType in kinds and not is_flag else ""
        return limits(field, is_flag) + null
    if get_origin(kinds[0]) is tuple:
        if len(problem["loc"]) == 1:
            return f"a list, such as {shown(found.split())}" if isinstance(found, str) else "a list"
        kinds = [_bare(get_args(kinds[0])[0])]
    quotes = ", in quotes" if kinds[0] is str and found is not None and not isinstance(found, str | list | dict) else ""
    return " or ".join(_SPELLED.get(kind) or _words(kind) for kind in kinds) + quotes


def limits(field: FieldInfo, is_flag: bool = True) -> str:
    """The values that a field accepts, for people."""
    kind, *others = _types(field)
    if get_origin(kind) is Literal:
        return _words(kind)
    words = "".join(f", or {_words(other)}" for other in others if get_origin(other) is Literal)
    return _numbers(kind, _bounds(field), is_flag) + words


def _words(kind: Any) -> str:
    """The values of a Literal, or the name of another type."""
    return " or ".join(map(str, get_args(kind) or [kind]))


def _bounds(field: FieldInfo) -> dict[str, Any]:
    """The limits of a field, and of the first of its types if that has its own."""
    first = (get_args(field.annotation) or (None,))[0]
    own = [entry for info in getattr(first, "__metadata__", ()) for entry in getattr(info, "metadata", ())]
    entries = [*field.metadata, *own]
    return {name: getattr(entry, name) for entry in entries for name in ("ge", "gt", "le") if hasattr(entry, name)}


def _numbers(kind: Any, bounds: dict[str, Any], is_flag: bool) -> str:
    """The numbers within ``bounds``; without any, what a type accepts."""
    least, above, most = map(bounds.get, ("ge", "gt", "le"))
    if above is not None:
        return f"a number above {above:,}, {most:g} at most"
    if least is None:
        return _SPELLED.get(kind, "a list" if get_origin(kind) is tuple else "settings")
    if most is None:
        return f"{least:,} or more"
    return f"a number in [{least}, {most}]" if kind is float and is_flag else f"{least:,} to {most:,}"
