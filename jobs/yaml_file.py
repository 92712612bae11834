"""YAML files of settings: read in full or refused, with the line."""

import re
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pipeline.shared.errors import InputError, one_line
from training.vectors.mlflow_uri import INSTALL

Config = TypeVar("Config")

MAX_BYTES, MAX_VALUES = 1 << 18, 10_000
"""More than any YAML file of settings has; values of aliases count each time."""
YAML_TAG = "tag:yaml.org,2002:"
_MISREAD = {
    "int": (re.compile(r"[-+]?0[0-7_]+|.*:.*"), "a number to base 8 or 60"),
    "float": (re.compile(r".*:.*"), "a number to base 60"),
    "timestamp": (re.compile(r".*"), "a date"),
}
"""For each of YAML 1.1's tags: the text that is refused, and what YAML would read it as."""


def read_yaml(file: Path, config_of: Callable[[object], Config], example: str) -> Config:
    """The config that ``config_of`` makes of a file's content. Raises InputError, which names the file.

    ``example`` names a file that shows what is expected.
    """
    try:
        import yaml
    except ModuleNotFoundError:
        raise InputError(f"--config {file}: PyYAML is not installed; {INSTALL}") from None
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise InputError(f"found more than {MAX_BYTES:,} bytes, expected settings")
        return config_of(loaded(content.decode()))
    except RecursionError:
        raise InputError(f"--config {file}: is nested too deeply; {example} shows one") from None
    except OSError as error:
        raise InputError(f"--config {file}: cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {file}: is no YAML ({one_line(error)}); {example} shows one") from None
    except InputError as error:
        raise InputError(f"--config {file}: {error}") from None


def loaded(text: str) -> Any:
    """Parses YAML. Raises InputError, with the line, for text that YAML 1.1 reads differently from how it looks.

    Of a key that is given twice, YAML keeps the last value; 012 is 10, 1:30 is 90, and 2026-01-31 is a date.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            if node.id == "mapping":
                _check_keys(node)
            elif node.id == "scalar":
                _check_scalar(node)
            return super().construct_object(node, deep)

    loader = Loader(text)
    node = loader.get_single_node()
    if node and (found := _num_values(node, {})) > MAX_VALUES:
        raise InputError(f"found {found:,} values, expected {MAX_VALUES:,} or fewer")
    return loader.construct_document(node) if node else None


def _num_values(node: Any, known: dict[Any, int]) -> int:
    """The number of values in a node, also in those that its aliases stand for."""
    if node not in known:
        known[node] = 1  # for aliases of the node inside itself
        children = chain.from_iterable(node.value) if node.id == "mapping" else node.value
        known[node] = 1 if node.id == "scalar" else 1 + sum(_num_values(child, known) for child in children)
    return known[node]


def _check_scalar(node: Any) -> None:
    misread, read_as = _MISREAD.get(node.tag.removeprefix(YAML_TAG), (None, ""))
    if misread and misread.fullmatch(node.value):
        raise InputError(
            f"line {node.start_mark.line + 1}: found {node.value:.60}, which YAML reads as {read_as}, expected a plain "
            f"decimal number, or text in quotes"
        )


def _check_keys(mapping_node: Any) -> None:
    lines: dict[str, int] = {}
    for key, _ in mapping_node.value:
        line = key.start_mark.line + 1
        if key.tag not in (f"{YAML_TAG}str", f"{YAML_TAG}merge"):
            found = f"{key.value:.60}" if key.id == "scalar" else f"a {key.id}"
            raise InputError(f"line {line}: found the key {found}, expected a setting's name, which is text")
        if key.value in lines:
            raise InputError(
                f"line {line}: found {key.value:.60} again, expected it once; line {lines[key.value]} has it too"
            )
        lines[key.value] = line
