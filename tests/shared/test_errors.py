"""Laws of error lines: whatever a file's name or content puts into one, it is one line that a terminal shows."""

import pytest

from pipeline.shared.errors import LONGEST, one_line, tell

ODD = ["a\nb", "a\r\nb", "a\0b", "a\x1b[2Jb", "a\u2028b", "a\x85b", "a\ud800b", "a\x08b"]


@pytest.mark.parametrize("text", ODD)
def test_a_line_to_stderr_is_one_and_printable(capsys: pytest.CaptureFixture[str], text: str) -> None:
    tell(f"error: {text}: not there")
    printed = capsys.readouterr().err
    assert printed.endswith("\n")
    assert printed[:-1].isprintable()
    assert printed.startswith("error: a\\")


def test_a_printable_line_stays_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    tell("error: 数据 'Émile' \\n")
    assert capsys.readouterr().err == "error: 数据 'Émile' \\n\n"


@pytest.mark.parametrize("text", [*ODD, *(text * 10**5 for text in ODD)])
def test_another_librarys_message_is_printable_and_short(text: str) -> None:
    found = one_line(ValueError(f"begin {text} end"))
    assert found.isprintable()
    assert len(found) <= LONGEST + 5
    assert found.startswith("begin")
    assert found.endswith("end")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("part", ["x", "x.", "x=", "%", "a:/", "secret"])
def test_a_long_line_is_printed_in_time(capsys: pytest.CaptureFixture[str], part: str) -> None:
    """Whatever looks for secrets in it."""
    tell(f"error: {part * (300_000 // len(part))}")
    assert capsys.readouterr().err.startswith("error: ")
