"""Files for evaluation: pairs of words with scores, and analogies.

UTF-8 text. Blank lines and lines that begin with # are skipped. Any other malformed line is refused: skipping it
silently would change the result.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.shared.errors import InputError
from pipeline.shared.files import os_errors


def read_pairs(file: Path) -> list[tuple[str, str, float]]:
    """Two words and a score from each line, separated by tabs, semicolons, commas or blanks.

    The first line may be a header, whose third column has no digit. Raises InputError.
    """
    pairs = []
    for index, (number, line) in enumerate(lines_of(file)):
        mark = next((mark for mark in "\t;," if mark in line), None)
        fields = [field.strip() for field in line.split(mark)]
        if len(fields) != 3 or not all(fields):
            raise InputError(
                f"{file}:{number}: found {line!r:.80}, expected two words and a score, with tabs, semicolons, commas "
                "or blanks between them; fix the line, or begin it with # to leave it out"
            )
        try:
            score = float(fields[2])
        except ValueError:
            if index == 0 and not any(map(str.isdigit, fields[2])):
                continue
            score = np.nan
        if not np.isfinite(score):
            raise InputError(
                f"{file}:{number}: found {fields[2]!r:.40} as the score, expected a number such as 7.35; "
                "fix the line, or begin it with # to leave it out"
            )
        pairs.append((fields[0], fields[1], score))
    if not pairs:
        raise InputError(f"{file}: found no pairs, expected lines of two words and a score; name another file")
    return pairs


def read_analogies(file: Path) -> list[tuple[str, list[list[str]]]]:
    """Sections in the file's order: name, and questions of four words in upper case. Raises InputError."""
    sections: list[tuple[str, list[list[str]]]] = []
    for number, line in lines_of(file):
        words = line.split()
        if words[0] == ":":
            sections.append((" ".join(words[1:]), []))
        elif len(words) == 4 and sections:
            sections[-1][1].append([word.upper() for word in words])
        else:
            expected = "four words between blanks" if sections else "a section's name before the questions"
            raise InputError(
                f"{file}:{number}: found {line!r:.80}, expected {expected}, as in ': capitals' and then "
                "'Athens Greece Oslo Norway'; fix the file"
            )
    if not any(questions for _, questions in sections):
        raise InputError(f"{file}: found no questions, expected lines of four words; name another file")
    return sections


def lines_of(file: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines that are neither blank nor comments (#). Raises InputError."""
    with os_errors(f"{file}: cannot be read", "name a text file"):
        content = file.read_bytes()
    try:
        text = content.decode().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        number = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{file}:{number}: found bytes that are not UTF-8; convert the file to UTF-8") from None
    for number, line in enumerate(map(str.strip, text.split("\n")), start=1):
        if line and not line.startswith("#"):
            yield number, line
