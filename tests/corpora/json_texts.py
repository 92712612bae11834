"""Corpora of JSON lines as other people have them."""

import json
from typing import Any

from corpora.kinds import File, Input, Read, Refused

BOM = b"\xef\xbb\xbf"
MANY = 2000


def lines(*values: Any) -> bytes:
    return b"".join(json.dumps({"id": 1, "items": value}).encode() + b"\n" for value in values)


def read(content: bytes | dict[str, File], *expected: str, **counts: int) -> Read:
    files: dict[str, File] = content if isinstance(content, dict) else {"x": content}
    return Read(files, format="json", column="items", expected=expected, counts=counts)


def refused(content: bytes | dict[str, File], *words: str, column: str = "items") -> Refused:
    files: dict[str, File] = content if isinstance(content, dict) else {"x": content}
    return Refused(files, format="json", column=column, words=words)


STRINGS = lines(*["a b"] * MANY)
ARRAYS = lines(*[["a", "b"]] * MANY)
READ = ("a b",) * MANY
OTHERS = (["g"], {"k": "h"}, 3, 1.5, True)

JSONS: dict[str, Input] = {
    "strings": read(lines("a b", "c d"), "a b", "c d"),
    "arrays": read(lines(["a", "b c"], ["d"]), "a b c", "d", too_short=1),
    "integers": read(lines([1, 2**70, -3], ["x", 4]), f"1 {2**70} -3", "x 4"),
    "nulls": read(lines(["a", None, "", "b"], None, []) + b'{"id": 2}\n', "a b", nulls=4, too_short=1),
    "other kinds late": read(STRINGS + lines(*OTHERS), *READ, nulls=len(OTHERS)),
    "other kinds first": read(lines(*OTHERS) + STRINGS, *READ, nulls=len(OTHERS)),
    "other kinds in another file": read({"a": STRINGS, "b": lines(*OTHERS)}, *READ, nulls=len(OTHERS)),
    "arrays of other kinds": read(ARRAYS + lines([1.0], [True], [["a"]], [{}], "a b"), *READ, nulls=5),
    "two objects on a line": read(ARRAYS + b'{"items": ["a"]}{"items": ["b"]}\n', *READ, nulls=1),
    "no JSON": read(ARRAYS + b'{"items": ["a", "b"\nnothing\n[1]\n3\n', *READ, nulls=4),
    "a bracket too many": read(ARRAYS + b'{"items": ' + b"[" * 100_000 + b"\n", *READ, nulls=1),
    "many brackets": read(ARRAYS + b'{"items": ' + b"[" * 600 + b"]" * 600 + b"}\n", *READ, nulls=1),
    "a number of many digits": read(ARRAYS + b'{"items": [' + b"9" * 5000 + b"]}\n", *READ, nulls=1),
    "blank lines": read(b"\n" + lines("a b") + b"  \r\n\n" + lines("c d"), "a b", "c d"),
    "byte order marks": read(BOM + lines("a b") + BOM + lines("\ufeffc d"), "a b", "c d"),
    "undecodable bytes": read(b'{"items": "caf\xe9 b"}\n', "caf\ufffd b", invalid_utf8_lines=1),
    "undecodable bytes in an array": read(
        b'{"items": ["caf\xe9", "b\xff", "c"]}\n', "caf\ufffd b\ufffd c", invalid_utf8_lines=1
    ),
    "undecodable bytes elsewhere": read(b'{"items": "a b", "x": "caf\xe9"}\n', "a b"),
    "half a character": read(b'{"items": "a\\ud83d b"}\n', "a\ufffd b", invalid_utf8_lines=1),
    "half a character in an array": read(b'{"items": ["a\\udc80", "b"]}\n', "a\ufffd b", invalid_utf8_lines=1),
    "a character of two halves": read(b'{"items": "\\ud83d\\ude00 b"}\n', "\U0001f600 b"),
    "zero characters": read(b'{"items": ["a\\u0000", "b"]}\n', "a\ufffd b", invalid_utf8_lines=1),
    "spaces in an element": read(lines(["new york", "b"]), "new york b"),
    "line ends in a string": read(lines("a\nb\r\nc"), "a b c"),
    "columns that are no UTF-8": read(b'{"caf\xe9": 1, "items": "a b", "\\ud83d": 2}\n', "a b"),
    "a key twice": read(b'{"items": "x y", "items": "a b"}\n', "a b"),
    "not a number": read(b'{"items": "a b", "x": NaN}\n', "a b"),
    # Refused
    "two kinds": refused(STRINGS + ARRAYS, "string", "array<string>", "2,000"),
    "two kinds in two files": refused({"a": STRINGS, "b": ARRAYS}, "string", "array<string>", "2,000"),
    "two objects on most lines": refused(
        b'{"items": "a b"}{"items": "a b"}\n' * 99 + lines("a b"), "not one JSON object", "string"
    ),
    "text beside": refused({"a": lines(*["a b"] * 50), "b": b"a b\n" * 50}, "not one JSON object", "50"),
    "other columns that are no UTF-8": refused(b'{"caf\xe9": 1}\n', "caf\\udce9"),
    "numbers": refused(lines(1, 2, 3), "integer"),
    "arrays of numbers": refused(lines([1.5], [2.5]), "array of number"),
    "objects": refused(lines({"a": 1}), "object"),
    "another column": refused(lines("a b"), "words", "id, items", column="words"),
    "an array": refused(json.dumps([{"items": "a b"}] * 3).encode(), "JSON array", "jq"),
    "an array in lines": refused(BOM + b'  [\n{"items": "a b"},\n{"items": "a b"}\n]\n', "JSON array", "jq"),
    "an object of several lines": refused(
        json.dumps({"items": "a b"}, indent=1).encode(), "no line is a JSON object", "jq"
    ),
    "CSV": refused(b"id,items\n1,a b\n", "no line is a JSON object"),
    "Parquet": refused(b"PAR1\x15\x04" + bytes(50), "Parquet"),
    "UTF-16": refused(lines("a b").decode().encode("utf-16"), "UTF-16"),
}
