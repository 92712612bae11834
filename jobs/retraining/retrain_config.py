"""RetrainConfig: the settings of a retrained model, from one YAML file, checked before anything runs."""

import re
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from jobs.retraining.gates import Gates
from pipeline.pipeline_config import PipelineConfig, Source
from pipeline.shared.errors import InputError, one_line, shown
from pipeline.shared.settings import (
    ListOf,
    LocalPath,
    Number,
    Text,
    fields_of,
    from_section,
    mapping,
    setting,
    settings,
)
from pipeline.shared.storage import refuse_credentials
from training.train_config import TrainCommand
from training.vectors.mlflow_uri import INSTALL

HOLDOUT = 0.01
"""The default share of sequences to hold out: gates need some."""

OURS = ("data", "output", "overwrite", "resume", "init_from", "freeze_epochs", "verbosity")
"""Settings of a training run that the cycle itself sets."""

MAX_BYTES, MAX_VALUES = 1 << 18, 10_000
"""More than any YAML file of settings has; values of aliases count each time."""
YAML_TAG = "tag:yaml.org,2002:"
_MISREAD = {
    "int": (re.compile(r"[-+]?0[0-7_]+|.*:.*"), "a number to base 8 or 60"),
    "float": (re.compile(r".*:.*"), "a number to base 60"),
    "timestamp": (re.compile(r".*"), "a date"),
}
"""For each of YAML 1.1's tags: the text that is refused, and what YAML would read it as."""


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


@settings(section="warm_start")
class WarmStart:
    """Training that starts from the published vectors. A setting that is null is the same as in ``train``."""

    enabled: bool = setting(default=True, help="whether training starts from the published vectors")
    epochs: int | None = setting(default=None, help="as in train")
    lr: Number | None = setting(default=None, help="as in train")
    freeze_epochs: int = setting(default=0, help="the number of first epochs in which only new words are trained")

    def __post_init__(self) -> None:
        if not self.enabled and self.changes:
            given = ", ".join(self.changes)
            raise InputError(f"found enabled: false and {given}, which then has no effect; leave one out")

    @property
    def changes(self) -> dict[str, Any]:
        """The settings that replace those of ``train``."""
        return {name: value for name, value in asdict(self).items() if name != "enabled" and value}


@settings(section="registry")
class RegistrySettings:
    """Where MLflow stores runs and models."""

    tracking_uri: Text | None = setting(
        default=None, help="a tracking server; null: an SQLite file and a folder in the workspace"
    )
    if_unreachable: Literal["fail", "publish_locally"] = setting(
        default="fail", help="fail: stop before training; publish_locally: update the registry later"
    )

    def __post_init__(self) -> None:
        refuse_credentials(self.tracking_uri or "")


@settings(section="")
class RetrainConfig:
    """All settings of a cycle."""

    name: Text = setting(help="the name of the registered model")
    workspace: LocalPath = setting(help="the folder for all results; one for each model")
    corpus: CorpusSettings = setting(help="where sequences come from")
    prepare: PipelineConfig = setting(
        default=PipelineConfig(holdout=HOLDOUT), help=f"the sampling; holdout defaults to {HOLDOUT} here"
    )
    train: dict[str, Any] = setting(default_factory=dict, help="the flags of training/train.py, including nproc")
    warm_start: WarmStart = setting(default=WarmStart(), help="training that starts from the published vectors")
    gates: Gates = setting(default=Gates(), help="bounds that new vectors must meet")
    registry: RegistrySettings = setting(default=RegistrySettings(), help="where MLflow stores runs and models")
    spark_submit: ListOf[Text] = setting(default=(), help="arguments of spark-submit itself, such as [--master, yarn]")
    torchrun: ListOf[Text] = setting(default=(), help="arguments of torchrun itself, such as [--nproc-per-node, '8']")
    keep: int = setting(default=5, ge=2, help="how many published versions to keep, the newest")

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.-]+", self.name):
            found = f"name: found {shown(self.name)}"
            raise InputError(f"{found}, expected only letters, digits and . _ -, as MLflow requires")
        if self.gates.heldout_increase is not None and self.prepare.holdout == 0:
            raise InputError(
                "gates.heldout_increase: found it with prepare.holdout 0, which holds out nothing to judge by; "
                "expected a holdout such as 0.01, or heldout_increase: null"
            )
        if "nproc" in self.train and self.torchrun:
            raise InputError("torchrun: found it with train.nproc, expected one of them, since both make processes")
        if self.warm_start.changes:
            from_section(
                TrainCommand, {**self.train, **self.warm_start.changes, "init_from": "published"}, "warm_start"
            )

    @property
    def numbers(self) -> dict[str, Any]:
        """All settings that change the vectors. They and the corpus determine a cycle's run id."""
        kept = ("corpus", "prepare", "train", "warm_start", "torchrun")
        found = {name: value for name, value in asdict(self).items() if name in kept}
        found["prepare"] = self.prepare.identity
        for name in fields_of(CorpusSettings):  # the corpus' state has the others
            if name not in ("format", "column", "changed_by"):
                del found["corpus"][name]
        return found


def read_config(file: Path) -> RetrainConfig:
    """Reads and checks a YAML file. Raises InputError, which names the file and the section."""
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
        raise InputError(f"--config {file}: is nested too deeply; examples/retrain-demo.yaml shows one") from None
    except OSError as error:
        raise InputError(f"--config {file}: cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"--config {file}: is no YAML ({one_line(error)}); examples/retrain-demo.yaml shows one"
        ) from None
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


def config_of(given: object) -> RetrainConfig:
    """The config of a parsed YAML document. Raises InputError, which names the section."""
    own = dict(mapping(given, ""))
    if "prepare" in own:
        own["prepare"] = {"holdout": HOLDOUT, **mapping(own["prepare"], "prepare")}
    if "train" in own:
        own["train"] = _train(mapping(own["train"], "train"))
    for name, field in fields_of(RetrainConfig).items():
        if name in own and is_dataclass(kind := field.annotation) and isinstance(kind, type):
            own[name] = from_section(kind, own[name], name)
    return from_section(RetrainConfig, own, "")


def _train(given: Mapping[str, Any]) -> dict[str, Any]:
    """The checked settings of the section ``train``, without defaults."""
    if ours := [name for name in given if name in OURS]:
        where = "warm_start" if ours[0] == "freeze_epochs" else "nowhere: a cycle sets it itself"
        raise InputError(f"train: found {ours[0]}, expected {where}")
    known = [name for name in fields_of(TrainCommand) if name not in OURS]
    if unknown := [name for name in given if name not in known]:
        raise InputError(f"train: found {unknown[0]:.60}, expected one of {', '.join(known)}")
    config = from_section(TrainCommand, given, "train")
    try:
        config.check_world(config.nproc or 1)
    except InputError as error:
        raise InputError(f"train: {error}") from None
    values = {name: getattr(config, name) for name in given if name != "nproc" or config.nproc}
    if config.shard_cache:
        refuse_credentials(str(config.shard_cache))
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}
