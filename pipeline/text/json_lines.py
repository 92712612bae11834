"""JSON lines: one object a line, of which one column holds strings, or arrays of strings or integers.

Python parses the lines, in Spark's workers: so one law holds for every line, wherever it stands, and nothing is lost
without being counted. Spark's own reader infers a type from a sample and forces later lines into it.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pipeline.shared.errors import InputError

STRING, ARRAY = "string", "array<string>"
"""The kinds of values that are sequences. An array may hold integers too: their digits are its words."""
INTEGER, NULL, EMPTY = "integer", "null", "empty array"
NO_OBJECT = "not one JSON object"
_KINDS = {str: STRING, int: INTEGER, type(None): NULL, bool: "true or false", float: "number", dict: "object"}
_KINDS[list] = "array"
COLUMN = "column: "
"""Before the name of a column in ``found``."""

MAX_OTHERS = 0.01
"""The largest share of lines that are no objects, or whose value is of another kind than the corpus has. So few are
dirt, and not a mixture of two corpora."""
MAX_COLUMNS = 20

_HALF_CHARACTER = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def found(lines: pa.Array, column: str) -> Counter[str]:
    """How many lines hold a value of which kind in ``column``, and how many objects have which other columns."""
    counts: Counter[str] = Counter()
    for row in _rows(lines):
        counts[NO_OBJECT if row is None else _kind(row.get(column))] += 1
        for name in map(_printable, row or ()):
            if name == column or COLUMN + name in counts or len(counts) < MAX_COLUMNS:
                counts[COLUMN + name] += 1
    return counts


def kind_of_corpus(counts: Counter[str], column: str, description: str) -> str:
    """STRING or ARRAY, the kind that a corpus has, whatever the order of its lines. Values of other kinds are null.

    Raises InputError if it has neither, or if more than MAX_OTHERS of the lines have something else.
    """
    columns = [name.removeprefix(COLUMN) for name in counts if name.startswith(COLUMN)]
    kinds = Counter({kind: number for kind, number in counts.items() if not kind.startswith(COLUMN)})
    if not columns:
        raise InputError(
            f"--input {description}: no line is a JSON object, expected one object a line (JSON lines); "
            f"jq -c '.[]' makes them of an array, and jq -c . of objects that take several lines"
        )
    if column not in columns:
        raise InputError(f"--column {column}: not in {description}; it has {', '.join(sorted(columns))}")
    values = Counter({kind: number for kind, number in kinds.items() if kind not in (NULL, EMPTY)})
    if values.keys() <= {NO_OBJECT}:
        return ARRAY
    kind, number = min(values.items(), key=lambda item: (item[0] == NO_OBJECT, -item[1], item[0]))
    if kind not in (STRING, ARRAY):
        raise InputError(
            f"--column {column}: is {kind} in {description}, expected string, or an array of strings or integers"
        )
    if values.total() - number > MAX_OTHERS * values.total():
        names = sorted(values)
        each, lines = " and ".join(names), " and ".join(f"{values[name]:,}" for name in names)
        raise InputError(
            f"--column {column}: is {each} in {description} (in {lines} lines), expected one kind; split it by kind"
        )
    return kind


def values(lines: pa.Array, column: str, kind: str) -> pa.Array:
    """The values of ``kind``, STRING or ARRAY, as bytes or lists of bytes; null for every other line.

    The bytes may be invalid UTF-8, as those of the line are, or where a line has half a character (``"\\ud83d"``).
    Blank lines give no value.
    """
    taken: list[Any] = []
    for row in _rows(lines):
        value: Any = None if row is None else row.get(column)
        if kind == ARRAY and value == []:
            taken.append(value)
        elif _kind(value) != kind:
            taken.append(None)
        else:
            taken.append(value if kind == STRING else _texts(value))
    text_type, bytes_type = pa.string(), pa.binary()
    if kind == ARRAY:
        text_type, bytes_type = pa.list_(text_type), pa.list_(bytes_type)
    try:
        return pa.array(taken, text_type).cast(bytes_type)
    except UnicodeEncodeError:
        if kind == STRING:
            return pa.array([_encoded(value) for value in taken], bytes_type)
        encoded = [None if value is None else [_encoded(element) for element in value] for value in taken]
        return pa.array(encoded, bytes_type)


def _rows(lines: pa.Array) -> Iterator[dict[str, Any] | None]:
    """The object of every line that is not blank; None for anything else."""
    for line in lines.cast(pa.binary()).to_pylist():
        text = line.decode("utf-8", errors="surrogateescape").lstrip("\ufeff")
        if text and not text.isspace():
            try:
                row = json.loads(text)
            except (ValueError, RecursionError):  # the latter: thousands of brackets
                row = None
            yield row if isinstance(row, dict) else None


def _kind(value: object) -> str:
    """The kind of a value in plain words."""
    if not isinstance(value, list):
        return _KINDS[type(value)]
    elements = set(map(type, value))  # this line decides how fast JSON is read
    others = sorted(_KINDS[kind] for kind in elements - {str, int, type(None)})
    if others:
        return f"array of {others[0]}"
    return EMPTY if elements <= {type(None)} else ARRAY


def _texts(elements: list[str | int | None]) -> list[str | None]:
    if int not in map(type, elements):
        return elements  # type: ignore[return-value]
    return [str(element) if isinstance(element, int) else element for element in elements]


def _printable(name: str) -> str:
    """The name of a column, which may have undecodable bytes, for messages."""
    return name.encode(errors="backslashreplace").decode()


def _encoded(text: str | None) -> bytes | None:
    """UTF-8, with the bytes of the line that were none, and FF, which is none, for half a character."""
    return None if text is None else _HALF_CHARACTER.sub("\udcff", text).encode("utf-8", errors="surrogateescape")
