"""A year of a corpus that grows by a month's text: what is good is published, what is not is refused, and readers, who
load the published vectors in a loop, never notice.
"""

import gzip
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle, islice, pairwise
from pathlib import Path

import pytest
from conftest import ROOT, data_file
from retrain_project import Real, shuffle

from jobs.retraining.workspace import Workspace

FIRST_LINES, LINES_A_MONTH = 12_000, 1_000
SUBJECT = {
    *("war", "wars", "army", "navy", "military", "battle", "battles", "troops", "forces", "soldiers"),
    *("invasion", "regiment", "infantry", "commander"),
}

READER = """
import sys, time
from pathlib import Path
from training.vectors.word_vectors import Vectors
folder, stop = map(Path, sys.argv[1:])
loads, versions = 0, set()
while not stop.exists():
    vectors = Vectors.load(folder)
    assert len(vectors.most_similar("city", 10)) == 10
    loads += 1
    versions.add(folder.resolve().name)
    time.sleep(0.05)
print(loads, *sorted(versions))
"""


@pytest.mark.long
@pytest.mark.parametrize(("months", "shuffled", "one_subject"), [(3, 2, None), (12, 5, 9)])
def test_good_months_are_published_and_bad_ones_refused_while_readers_read(
    months: int, shuffled: int, one_subject: int | None, tmp_path: Path
) -> None:
    project = Real(
        tmp_path / "project",
        prepare={"tokenizer": "words", "lowercase": True, "min_count": 5, "sample": 1e-3, "num_shards": 2},
        train={"sync_every": 4, "epochs": 15, "global_batch": 16_384},
        warm_start={"epochs": 3, "lr": 0.0125},
        gates={"pairs": [str(data_file("eval/wordsim353.txt", "what bad months do to vectors"))]},
    )
    lines = wiki_lines(FIRST_LINES + LINES_A_MONTH * (months - 1))
    published = [take(project, lines, 1)]
    with reading(project.workspace / "current") as reader:
        for month in range(2, months + 1):
            bad = {shuffled: shuffle, one_subject: of_one_subject}.get(month)
            version = take(project, lines, month, bad)
            assert version == (published[-1] if bad else f"{len(published) + 1:06d}")
            published += [] if bad else [version]
    assert list(Workspace(project.workspace).publications()) == published
    loads, *versions = reader.said
    assert (int(loads) > 10 * months, versions) == (True, published)
    assert project.load("models:/words@champion", "city") == project.load(str(project.workspace / "current"), "city")


def take(project: Real, lines: list[str], month: int, bad: Callable[[list[str]], list[str]] | None = None) -> str:
    """A cycle on the corpus of ``month``, all of it made ``bad`` or not; the version that is published then."""
    for path in project.corpus.iterdir():
        path.unlink()
    ends = [FIRST_LINES + LINES_A_MONTH * number for number in range(month)]
    if bad:
        project.add("all.txt", bad(lines[: ends[-1]]))
    else:
        for number, (begin, end) in enumerate(pairwise([0, *ends]), 1):
            project.add(f"month-{number:02}.txt", lines[begin:end])
    ended = project("run")
    decision = project.cycle.read("decision")
    assert decision is not None, ended
    print(f"month {month}\n{decision['text']}\n")
    assert ended.code == (4 if bad else 0), ended
    assert sum(gate["passed"] is False for gate in decision["gates"]) >= (2 if bad else 0)
    return Path(os.readlink(project.workspace / "current")).name


def wiki_lines(num_lines: int) -> list[str]:
    """Paragraphs of Wikipedia, titles and leftovers of markup left out."""
    path = data_file("wiki/wiki-plain30.txt.gz", "a year of retraining")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = list(islice((line.strip() for line in file if len(line) > 100), num_lines))
    assert len(lines) == num_lines
    return lines


def of_one_subject(lines: list[str]) -> list[str]:
    """As many bytes, all from lines that have at least two of the subject's words."""
    chosen = [line for line in lines if len(SUBJECT & set(line.lower().split())) > 1]
    assert len(chosen) > 300
    size, found = sum(map(len, lines)), []
    for line in cycle(chosen):
        found.append(line)
        size -= len(line)
        if size < 0:
            return found
    raise AssertionError


@dataclass
class Reader:
    """What a process has said that loaded the published vectors over and over."""

    said: list[str] = field(default_factory=list)


@contextmanager
def reading(current: Path) -> Iterator[Reader]:
    """Reads all the while, in a process of its own. Fails when that has met anything that was not whole."""
    found, stop = Reader(), current.parent.with_name("stop-reading")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READER, str(current), str(stop)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield found
            stop.touch()
            found.said = process.communicate(timeout=60)[0].split()
            assert process.returncode == 0
        finally:
            process.kill()
