"""Laws of pipeline.shared.records: nothing but a whole record, of the right types and within its limits, is read."""

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import Field

from pipeline.shared.records import Count, RecordError, checked, loads, read, record
from pipeline.shared.storage import Location


@record
class Inner:
    share: Annotated[float, Field(ge=0, le=1)]


@record
class Outer:
    number: Count
    inner: tuple[Inner, ...]
    name: Annotated[str, Field(pattern="^[a-z]$")] | None = None


GOOD = {"number": 3, "inner": [{"share": 0.5}, {"share": 1}], "name": "x"}


def test_a_good_record_is_read() -> None:
    assert checked(loads(json.dumps(GOOD).encode()), Outer) == Outer(3, (Inner(0.5), Inner(1)), "x")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"number": -1}, "number: found -1, expected greater than or equal to 0"),
        ({"number": 5.0}, "number: found 5.0, expected a valid integer"),
        ({"number": True}, "number: found True, expected a valid integer"),
        ({"number": "5"}, "number: found '5', expected a valid integer"),
        ({"number": 1 << 60}, f"number: found {1 << 60}, expected less than or equal to {1 << 53}"),
        ({"inner": {"share": 1}}, "inner: found {'share': 1}, expected a valid array"),
        ({"inner": [{"share": 2}]}, "inner.0.share: found 2, expected less than or equal to 1"),
        ({"inner": [{}]}, "found no inner.0.share"),
        ({"inner": [None]}, "inner.0: found None, expected an object"),
        ({"name": "../x"}, "name: found '../x', expected text of the form '^[a-z]$'"),
        ({"more": 1}, "found a field 'more', which is not known"),
    ],
)
def test_a_wrong_field_is_named_with_what_was_found_and_expected(change: dict[str, Any], line: str) -> None:
    with pytest.raises(RecordError) as caught:
        checked({**GOOD, **change}, Outer)
    assert str(caught.value) == line


@pytest.mark.parametrize("found", [None, [], 1, "x", [GOOD]])
def test_another_kind_of_json_is_no_record(found: object) -> None:
    with pytest.raises(RecordError, match="expected an object"):
        checked(found, Outer)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no JSON"),
        (b'{"a": 1', "no JSON"),
        (b"\xff{}", "no JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "'c' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "no JSON"),
    ],
)
def test_what_is_no_json_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(RecordError, match=words) as caught:
        loads(content)
    assert len(str(caught.value)) < 200
    assert "\n" not in str(caught.value)


def test_a_large_value_is_not_formatted_whole() -> None:
    with pytest.raises(RecordError) as caught:
        checked({**GOOD, "number": ["x" * 10**5] * 100}, Outer)
    assert len(str(caught.value)) < 200


def test_a_file_above_the_limit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(b"1" * 11)
    with pytest.raises(RecordError, match="more than 10 bytes"):
        read(Location.of(path), max_bytes=10)
    path.write_bytes(b"1" * 10)
    assert read(Location.of(path), max_bytes=10) == 1111111111


def test_half_a_character_is_no_text_and_two_halves_are_one() -> None:
    with pytest.raises(RecordError, match="no JSON"):
        loads(rb'{"a": ["\ud800"]}')
    assert loads(rb'{"a": "\ud83d\uDE00"}') == {"a": "\U0001f600"}
