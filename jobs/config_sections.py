"""Sections that the YAML files of several jobs have: where sequences come from, and how to train."""

import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.pipeline_config import Source
from pipeline.shared.errors import InputError, shown
from pipeline.shared.settings import fields_of, from_section, mapping, setting, settings
from pipeline.shared.storage import refuse_credentials
from training.train_config import TrainCommand

Config = TypeVar("Config")


@settings(section="corpus")
class CorpusSettings(Source):
    """Where sequences come from: the demo corpus, or the settings of jobs/prepare.py's flags of the same names."""

    demo: bool = setting(default=False, help="the built-in demo corpus, instead of input")
    changed_by: Literal["times", "content"] = setting(
        default="times",
        help="how to detect a changed file: by its time and size, or by its content, which is then read twice",
    )
    may_shrink: bool = setting(default=False, help="accept a corpus that has become smaller")

    def __post_init__(self) -> None:
        given = [name for name, value in (("input", self.input), ("table", self.table), ("demo", self.demo)) if value]
        if len(given) != 1:
            found = f"both {' and '.join(given)}" if given else "no input"
            expected = "input (files, folders, patterns or URIs), table, or demo: true"
            raise InputError(f"found {found}, expected one of {expected}")
        self.check_columns()
        for uri in self.input:
            refuse_credentials(uri)


def check_name(name: str) -> None:
    """Raises InputError unless a model's registry takes the name."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise InputError(f"name: found {shown(name)}, expected only letters, digits and . _ -, as MLflow requires")


def train_section(given: object, elsewhere: Mapping[str, str]) -> dict[str, Any]:
    """The checked settings of the section ``train``, without defaults.

    ``elsewhere`` has the names of settings that are not given there, with what is expected instead. Raises InputError.
    """
    found = mapping(given, "train")
    if ours := [name for name in found if name in elsewhere]:
        raise InputError(f"train: found {ours[0]}, expected {elsewhere[ours[0]]}")
    known = [name for name in fields_of(TrainCommand) if name not in elsewhere]
    if unknown := [name for name in found if name not in known]:
        raise InputError(f"train: found {unknown[0]:.60}, expected one of {', '.join(known)}")
    config = from_section(TrainCommand, found, "train")
    try:
        config.check_world(config.nproc or 1)
    except InputError as error:
        raise InputError(f"train: {error}") from None
    values = {name: getattr(config, name) for name in found if name != "nproc" or config.nproc}
    if config.shard_cache:
        refuse_credentials(str(config.shard_cache))
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def from_sections(kind: type[Config], own: dict[str, Any]) -> Config:
    """The config of a file whose sections are configs themselves. Raises InputError, which names the section."""
    for name, field in fields_of(kind).items():
        section = field.annotation
        if name in own and is_dataclass(section) and isinstance(section, type) and not isinstance(own[name], section):
            own[name] = from_section(section, own[name], name)
    return from_section(kind, own, "")
