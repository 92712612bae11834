"""docs/math.md is a program: its blocks print what it says they print."""

import contextlib
import io
import re
from typing import Any

import pytest
from conftest import ROOT

MATH = ROOT / "docs" / "math.md"


def test_every_block_prints_the_lines_below_it() -> None:
    """Blocks run in order and share their names. Lines that begin with ``# `` are output."""
    blocks = re.findall(r"^```python\n(.*?)^```$", MATH.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 8
    names: dict[str, Any] = {}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, str(MATH), "exec"), names)
        shown = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
        assert printed.getvalue().splitlines() == shown, block


@pytest.mark.parametrize("page", ["math.md", "negative-sampling.md"])
def test_the_files_and_tests_that_a_page_names_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:tests|training|pipeline)/[\w/]+\.py)(?:::(\w+))?`", text))
    links = re.findall(r"\]\((?!http)([^)#]+)\)", text)
    assert named
    assert links
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8")
    for target in links:
        assert (ROOT / "docs" / target).is_file(), target
