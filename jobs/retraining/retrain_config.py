"""RetrainConfig: what one YAML file says of a model that is retrained, checked before anything runs."""

import types
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from jobs.retraining.gates import Gates
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError, one_line
from training.train_config import TrainConfig
from training.vectors.mlflow_uri import INSTALL

Section = TypeVar("Section")

HOLDOUT = 0.01
"""Share of sequences held out where the file names none: gates need some."""

OURS = ("data", "output", "overwrite", "resume", "init_from", "freeze_epochs", "verbosity")
"""Settings of a training run that a cycle decides itself."""


@dataclass(frozen=True)
class CorpusSettings:
    """Where sequences come from: ``demo``, or what jobs/prepare.py's flags of these names say."""

    input: tuple[str, ...] = ()
    """Files, folders, patterns, URIs."""
    demo: bool = False
    """The built-in demo corpus."""
    format: str = "text"
    column: str | None = None
    changed_by: str = "times"
    """What tells an unchanged file: ``times`` (and size), or its ``content``, which is then read once more."""
    may_shrink: bool = False
    """Whether a corpus smaller than the published vectors' may replace it."""

    def __post_init__(self) -> None:
        if bool(self.input) == self.demo:
            found = "both input and demo" if self.demo else "no input"
            raise InputError(f"found {found}, expected input (files, folders, patterns or URIs), or demo: true")
        if self.changed_by not in ("times", "content"):
            raise InputError(f"changed_by: found {self.changed_by}, expected times or content")


@dataclass(frozen=True)
class WarmStart:
    """How a challenger is trained that begins with the published vectors; None is as ``train`` has it."""

    enabled: bool = True
    epochs: int | None = None
    lr: float | None = None
    freeze_epochs: int = 0
    """Epochs in which known words stay as they are, and only new ones move."""

    def __post_init__(self) -> None:
        given = [name for name in ("epochs", "lr", "freeze_epochs") if getattr(self, name)]
        if not self.enabled and given:
            raise InputError(f"found enabled: false and {', '.join(given)}, which then has no effect; leave one out")


@dataclass(frozen=True)
class RegistrySettings:
    """Where MLflow keeps runs and models."""

    tracking_uri: str | None = None
    """None: an SQLite file and a folder in the workspace."""
    if_unreachable: str = "fail"
    """``fail``: before training; ``publish_locally``: the workspace alone, and the registry when it is back."""

    def __post_init__(self) -> None:
        if self.if_unreachable not in ("fail", "publish_locally"):
            raise InputError(f"if_unreachable: found {self.if_unreachable}, expected fail or publish_locally")


@dataclass(frozen=True)
class RetrainConfig:
    """Everything a cycle goes by."""

    name: str
    """Of the registered model."""
    workspace: Path
    """The folder of all that cycles make; one model each."""
    corpus: CorpusSettings
    prepare: PipelineConfig
    train: dict[str, Any]
    """Settings of TrainConfig that the file names, and nproc."""
    warm_start: WarmStart
    gates: Gates
    registry: RegistrySettings
    spark_submit: tuple[str, ...] = ()
    """Arguments of spark-submit itself, such as --master yarn."""
    torchrun: tuple[str, ...] = ()
    """Arguments of torchrun itself, such as --nproc-per-node 8."""
    keep: int = 5
    """How many published versions stay, the newest."""

    def __post_init__(self) -> None:
        if not self.name or set(self.name) & set("/:@ ") or not self.name.isprintable():
            raise InputError(f"name: found {self.name!r}, expected a name without / : @ or blanks")
        if self.keep < 2:
            raise InputError(f"keep: found {self.keep}, expected 2 or more: the published version and the one before")
        if self.gates.heldout_increase is not None and self.prepare.holdout == 0:
            raise InputError(
                "gates.heldout_increase: found it with prepare.holdout 0, which holds out nothing to judge by; "
                "expected a holdout such as 0.01, or heldout_increase: null"
            )
        if "nproc" in self.train and self.torchrun:
            raise InputError("torchrun: found it with train.nproc, expected one of them, since both make processes")

    @property
    def numbers(self) -> dict[str, Any]:
        """All settings that change the vectors: with the corpus they make a cycle's run id."""
        kept = ("corpus", "prepare", "train", "warm_start", "torchrun")
        found = {name: value for name, value in asdict(self).items() if name in kept}
        for name in ("input", "demo", "may_shrink"):  # which files there are is the corpus' state
            del found["corpus"][name]
        return found


def read_config(file: Path) -> RetrainConfig:
    """The checked config in a YAML file. Raises InputError: file, section, what was found and what was expected."""
    try:
        import yaml
    except ModuleNotFoundError:
        raise InputError(f"--config {file}: PyYAML is not installed; {INSTALL}") from None
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"--config {file}: cannot be read ({error.strerror}); name a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(
            f"--config {file}: is no YAML ({one_line(error)}); examples/retrain-demo.yaml shows one"
        ) from None
    try:
        return config_of(given)
    except InputError as error:
        raise InputError(f"--config {file}: {error}") from None


def config_of(given: object) -> RetrainConfig:
    """The config that a YAML document says. Raises InputError, which names the section."""
    own = _mapping(given, "the file")
    _known(own, [entry.name for entry in fields(RetrainConfig)], "the file")
    if missing := [name for name in ("name", "workspace", "corpus") if name not in own]:
        raise InputError(f"found no {' and no '.join(missing)}, expected name, workspace and corpus")
    sections = {"corpus": CorpusSettings, "warm_start": WarmStart, "gates": Gates, "registry": RegistrySettings}
    made: dict[str, Any] = {name: _section(kind, own.get(name), name) for name, kind in sections.items()}
    made["prepare"] = _section(
        PipelineConfig, {"holdout": HOLDOUT, **_mapping(own.get("prepare"), "prepare")}, "prepare"
    )
    made["train"] = _train(_mapping(own.get("train"), "train"))
    rest = {name: value for name, value in own.items() if name not in made}
    return RetrainConfig(**_values(RetrainConfig, rest, ""), **made)


def _train(given: Mapping[str, Any]) -> dict[str, Any]:
    """The section ``train``, checked as train.py would; only what was given."""
    if ours := [name for name in given if name in OURS]:
        where = "warm_start" if ours[0] == "freeze_epochs" else "nowhere: a cycle sets it itself"
        raise InputError(f"train: found {ours[0]}, expected {where}")
    known = [entry.name for entry in fields(TrainConfig) if entry.name not in OURS]
    _known(given, [*known, "nproc"], "train")
    found = _values(TrainConfig, {name: given[name] for name in given if name != "nproc"}, "train.")
    nproc = given.get("nproc")
    if nproc is not None:
        found["nproc"] = _value(nproc, int, "train.nproc")
    try:
        settings = {name: value for name, value in found.items() if name != "nproc"}
        TrainConfig(**settings).check_world(found.get("nproc", 1))
    except InputError as error:
        raise InputError(f"train: {error}") from None
    return {name: str(value) if isinstance(value, Path) else value for name, value in found.items()}


def _section(kind: type[Section], given: object, name: str) -> Section:
    values = _mapping(given, name)
    _known(values, [entry.name for entry in fields(kind)], name)  # type: ignore[arg-type]
    try:
        return kind(**_values(kind, values, f"{name}."))
    except InputError as error:
        where = "" if str(error).startswith(f"{name}.") else f"{name}: "
        raise InputError(f"{where}{error}") from None


def _mapping(given: object, name: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(key, str) for key in given):
        raise InputError(f"{name}: found {given!r:.60}, expected settings, one 'name: value' a line")
    return given


def _known(given: Mapping[str, Any], known: list[str], name: str) -> None:
    if unknown := [key for key in given if key not in known]:
        raise InputError(f"{name}: found {unknown[0]}, expected one of {', '.join(known)}")


def _values(kind: type, given: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {name: _value(value, hints[name], f"{prefix}{name}") for name, value in given.items()}


def _value(found: Any, hint: Any, where: str) -> Any:
    """``found`` as the type of its field. Raises InputError where it is of another."""
    hints = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    for kind in hints:
        is_number = isinstance(found, int | float) and not isinstance(found, bool)
        if kind is type(None) and found is None:
            return None
        if kind is float and (is_number or (isinstance(found, str) and _is_number(found))):
            return float(found)  # YAML takes 1e-3, without a point, for text
        if get_origin(kind) is tuple and isinstance(found, str | list):
            inner = get_args(kind)[0]
            return tuple(_value(element, inner, where) for element in ([found] if isinstance(found, str) else found))
        if kind is Path and isinstance(found, str) and found:
            return Path(found)
        if kind in (int, str, bool) and type(found) is kind and found != "":
            return found
    expected = " or ".join(_SPELLED.get(kind, "a list") for kind in hints)
    raise InputError(f"{where}: found {found!r:.60}, expected {expected}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


_SPELLED: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    Path: "a path",
    type(None): "null",
}
