"""What the pages say of this tree is so: links, paths, tests, commands, flags; of two of them every figure.

docs/tutorial.md is run by test_tutorial.py; of docs/retraining.md test_schedulers.py reads the examples.
"""

import argparse
import contextlib
import fnmatch
import importlib
import io
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import PurePosixPath
from typing import Any

import pytest
from conftest import ROOT

from jobs.config_sections import CorpusSettings
from jobs.retraining.gates import Gates
from jobs.retraining.retrain_config import RegistrySettings, RetrainConfig, WarmStart
from pipeline.shared.settings import fields_of
from tools.settings_page import page


@cache
def tracked() -> frozenset[str]:
    """The files that git has, and their folders."""
    if not (ROOT / ".git").exists():
        pytest.skip("no git here, which knows what is part of the tree")
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files"], capture_output=True, text=True, check=True)
    files = [PurePosixPath(line) for line in listed.stdout.splitlines()]
    return frozenset(map(str, (path for file in files for path in (file, *file.parents))))


PAGES = sorted(
    str(file.relative_to(ROOT))
    for pattern in (
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "docs/*.md",
        "benchmarks/reports/*.md",
    )
    for file in ROOT.glob(pattern)
)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:(?<=\n\n)|^)(?: {4}.*\n(?:\n(?= {4}))*)+", re.MULTILINE)
SPAN = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose(page: str) -> str:
    """A page without its blocks of code."""
    return INDENTED.sub("\n", FENCED.sub("", text_of(page)))


# Programs: every block runs


@pytest.mark.parametrize(("page", "num_blocks"), [("math.md", 8), ("glossary.md", 10)])
def test_every_block_prints_the_lines_below_it(page: str, num_blocks: int) -> None:
    """Blocks run in order and share their names. Lines that begin with ``# `` are output."""
    blocks = [block for language, block in FENCED.findall(text_of(f"docs/{page}")) if language == "python"]
    assert len(blocks) >= num_blocks
    names: dict[str, Any] = {}
    for block in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(block, page, "exec"), names)
        shown = [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]
        assert printed.getvalue().splitlines() == shown, block


# Settings


def test_the_page_of_settings_is_that_of_the_fields() -> None:
    assert text_of("docs/settings.md").splitlines() == "\n".join(page()).splitlines(), "see tools/settings_page.py"


def rows_of(page: str, heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its own heading."""
    below = text_of(page).partition(f"## {heading}\n")[2]
    lines = re.findall(r"^\|(.*)\|$", below.partition("\n## ")[0], re.MULTILINE)
    return [[cell.strip() for cell in line.split(" | ")] for line in lines[2:]]


def test_the_table_of_gates_has_their_defaults() -> None:
    told: dict[str, str] = {}
    for names, defaults, *_ in rows_of("docs/retraining.md", "Gates")[:7]:
        told |= dict(zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True))
    words = {"()": "none", "None": "null"}
    found = {name: words.get(str(field.default), str(field.default)) for name, field in fields_of(Gates).items()}
    assert told == {**found, "analogies": "none"}


def test_the_table_of_sections_has_their_settings() -> None:
    rows = rows_of("docs/retraining.md", "The config")
    named = [name for names, *_ in rows for name in re.findall(r"`(\w+)`", names)]
    assert sorted(named) == sorted(fields_of(RetrainConfig))
    texts = dict(row[:2] for row in rows)
    for section, kind in (("corpus", CorpusSettings), ("warm_start", WarmStart), ("registry", RegistrySettings)):
        assert set(re.findall(r"`(\w+)", texts[f"`{section}`"])) >= fields_of(kind).keys()


# Links


@cache
def anchors(page: str) -> frozenset[str]:
    """The anchors that GitHub gives a page's headings: lower case, without punctuation, numbered where they repeat."""
    seen: Counter[str] = Counter()
    found = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *$", prose(page), re.MULTILINE):
        title = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", title).replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return frozenset(found)


def links(page: str) -> list[tuple[str, str]]:
    """(path within the tree, anchor) of each link that does not leave it."""
    found = []
    for target in LINK.findall(SPAN.sub("", prose(page))):
        if not re.match(r"\w+:", target):
            path, _, anchor = target.partition("#")
            resolved = (ROOT / page).parent.joinpath(path).resolve() if path else ROOT / page
            found.append((resolved.relative_to(ROOT).as_posix(), anchor))
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings_that_are_there(page: str) -> None:
    wrong = [path for path, _ in links(page) if path not in tracked()]
    wrong += [f"{path}#{anchor}" for path, anchor in links(page) if anchor and anchor not in anchors(path)]
    assert wrong == []


def test_every_page_of_docs_is_reached_from_the_readme() -> None:
    reached, new = set[str](), {"README.md"}
    while new:
        reached |= new
        new = {path for page in new for path, _ in links(page) if path.endswith(".md") and path in tracked()} - reached
    assert [page for page in PAGES if page.startswith("docs/") and page not in reached] == []


def test_the_tree_of_the_architecture_page_has_a_line_for_every_folder() -> None:
    """Of this tree, but for data, hidden folders and those of tests, which mirror the parts."""
    lines = FENCED.findall(text_of("docs/architecture.md"))[1][1].splitlines()
    named, parents = set(), [""]
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        parents[depth + 1 :] = [parents[depth] + line.split()[0]]
        named.add(parents[depth + 1])
    files = [PurePosixPath(path) for path in tracked() if PurePosixPath(path).suffix]
    folders = {f"{folder}/" for file in files for folder in file.parents if folder.name and folder.parts[0][0] != "."}
    assert named == {folder for folder in folders if not folder.startswith("tests/")} | {"tests/"}


# Paths and tests

FOLDERS = "benchmarks|docs|examples|jobs|pipeline|tests|tools|training"
PATH = re.compile(rf"(?<![\w/.-])((?:{FOLDERS})/(?:[\w./*-]*[./*][\w*]+|(?:\w+/)*(?!\w)))(?:::(\w+))?")
"""With an extension, or a folder that ends with /; so "examples/s" is none."""


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_are_named_are_there(page: str) -> None:
    """Those below a folder of the tree, with a test behind ``::``; and names of files of code without their folder."""
    names = {PurePosixPath(path).name for path in tracked()}
    wrong = [
        name for span in SPAN.findall(prose(page)) for name in re.findall(r"^[\w-]+\.py$", span) if name not in names
    ]
    for path, test in PATH.findall(text_of(page)):
        if not fnmatch.filter(tracked(), path.rstrip("/")):
            wrong.append(path)
        elif test and not re.search(rf"^def {test}\(", text_of(path), re.MULTILINE):
            wrong.append(f"{path}::{test}")
    assert wrong == []


# Commands

PROGRAM = re.compile(r"(?:[^\s,]*?/)??(?:(jobs|training|benchmarks|tools)/)?(\w+)\.py")
FLAG = re.compile(r"^-(?:[a-z]|-[\w-]+)\b")
ENDS = {"&&", "||", "|", ";", ">", ">>"}
OTHERS_FLAGS = {"--archives", "--conf", "--driver-memory", "--executor-memory", "--py-files", "--no-serve-artifacts"}
"""Of spark-submit and MLflow, where they stand alone."""


def commands(page: str) -> Iterator[list[str]]:
    """The words of every command, in blocks and in spans of code; of what else is there, too."""
    parts = [block for _, block in FENCED.findall(text_of(page))]
    parts += INDENTED.findall(FENCED.sub("", text_of(page)))
    lines = [line for part in parts for line in part.replace("\\\n", " ").splitlines()]
    lines += [" ".join(span.split()) for span in SPAN.findall(prose(page))]
    for line in lines:
        try:
            words = shlex.split(line.strip().removeprefix("$ "), comments=True)
        except ValueError:  # an apostrophe: no command
            continue
        while words:
            end = next((place for place, word in enumerate(words) if word in ENDS), len(words))
            yield words[:end]
            words = words[end + 1 :]


class _Asked(BaseException):
    """A parser that was about to parse."""


@cache
def parser_of(module: str) -> argparse.ArgumentParser:
    """The parser of the command whose code is ``module``: what its main() makes before all else."""
    asked: list[argparse.ArgumentParser] = []

    def parse_args(parser: argparse.ArgumentParser, *_: object) -> None:
        asked.append(parser)
        raise _Asked

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
        patch.setattr(sys, "argv", [module])
        main = getattr(importlib.import_module(module), "main", lambda *_: None)
        with contextlib.suppress(_Asked):
            main()
    if not asked:
        raise ImportError(f"{module} is no command")
    return asked[0]


def flags(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings}


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    return {
        name: subparser
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
        for name, subparser in action.choices.items()
    }


def module_of(words: list[str]) -> tuple[str | None, list[str]]:
    """The module that a command runs, if it is one of this tree, and the arguments behind it."""
    for place, word in enumerate(words):
        if word == "-m" and "python" in words[place - 1] and words[place + 1 :]:
            name = words[place + 1]
            return (name if name.startswith(("training.", "pipeline.")) else None), words[place + 2 :]
        script = PROGRAM.fullmatch(word)
        if script and (script[1] or place == 0) and (place or words[1:]):
            folder = script[1] or next((name for name in ("jobs", "training") if f"{name}/{word}" in tracked()), "")
            if folder:
                return f"{folder}.{script[2]}", words[place + 1 :]
    return None, []


def wrong_in(words: list[str]) -> Iterator[str]:
    """What a command names that is not there."""
    module, arguments = module_of(words)
    if module is not None:
        try:
            parser = parser_of(module)
        except ImportError as error:
            yield str(error)
            return
        if (own := subcommands(parser)) and arguments and arguments[0][0].isalpha():
            names = arguments[0].split("|")
            if not own.keys() >= set(names):
                yield f"{module} has no {arguments[0]}"
                return
            parser = own[names[0]]
        yield from (word for word in arguments if word.startswith("-") and word.partition("=")[0] not in flags(parser))
    elif words[:1] == ["make"]:
        targets = re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE)
        yield from (word for word in words[1:] if "=" not in word and word not in targets)
    elif words[:1] == ["pytest"]:
        files = [word for word in words[1:] if word.startswith("tests/") and not word.endswith("/")]
        chosen = words[words.index("-k") + 1] if "-k" in words else ""
        for file in files:
            if not re.search(rf"^def test_\w*{chosen}", text_of(file), re.MULTILINE):
                yield f"{file} -k {chosen}"


@pytest.mark.parametrize(
    ("command", "wrong"),
    [
        ("torchrun training/train.py --nproc 4", []),
        ("torchrun --nproc-per-node 4 training/train.py --nprocs 4", ["--nprocs"]),
        (
            "spark-submit --master yarn --py-files pipeline.zip,jobs/session.py jobs/prepare.py --window 5 --epoch=2",
            ["--epoch=2"],
        ),
        ("spark-submit local:///opt/shardvec/jobs/prepare.py --windows 5", ["--windows"]),
        ("python jobs/retrain.py run|plann --config x", ["jobs.retrain has no run|plann"]),
        ("python jobs/retrain.py run --to 1", ["--to"]),
        (".venv/bin/python -m training.neighbors runs/ptb chip --top 3", ["--top"]),
        ("python -m training.neighbours runs/ptb", ["No module named 'training.neighbours'"]),
        ("python -m training.distributed", ["training.distributed is no command"]),
        ("prepare.py --min-counts 5", ["--min-counts"]),
        ("python benchmarks/pipeline.py --corpora ptb", ["--corpora"]),
        ("make test-all test-short INPUT=x", ["test-short"]),
        ("pytest tests/commands/test_end_to_end.py -k planted", []),
        ("pytest tests/commands/test_end_to_end.py -k planed", ["tests/commands/test_end_to_end.py -k planed"]),
    ],
)
def test_a_command_that_is_not_there_is_found(command: str, wrong: list[str]) -> None:
    assert list(wrong_in(shlex.split(command))) == wrong


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_their_flags_are_there(page: str) -> None:
    """Of python, spark-submit and torchrun: ours, without abbreviations; of make: targets; of pytest: tests."""
    wrong = [(" ".join(words), found) for words in commands(page) for found in wrong_in(words)]
    assert wrong == []


def test_flags_that_stand_alone_are_those_of_some_command() -> None:
    """As in ``--epochs`` of prepare, whose command is not named beside it."""
    modules = {module_of(words)[0] for page in PAGES for words in commands(page)} - {None}
    parsers = [parser_of(module) for module in modules if module]
    parsers += [own for parser in parsers for own in subcommands(parser).values()]
    known = OTHERS_FLAGS.union(*map(flags, parsers))
    alone = [(page, flag) for page in PAGES for span in SPAN.findall(prose(page)) for flag in FLAG.findall(span)]
    assert len(alone) > 50
    assert [(page, flag) for page, flag in alone if flag not in known] == []
