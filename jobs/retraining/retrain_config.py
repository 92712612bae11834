"""RetrainConfig: the settings of a retrained model, from one YAML file, checked before anything runs."""

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from jobs.config_sections import CorpusSettings, check_name, from_sections, train_section
from jobs.retraining.gates import Gates
from jobs.yaml_file import read_yaml
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError
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

HOLDOUT = 0.01
"""The default share of sequences to hold out: gates need some."""

OURS = dict.fromkeys(
    ("data", "output", "overwrite", "resume", "init_from", "verbosity"), "nowhere: a cycle sets it itself"
) | {"freeze_epochs": "warm_start"}
"""Settings of a training run that are not in ``train``, and where they are instead."""


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
        check_name(self.name)
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
    return read_yaml(file, config_of, "examples/retrain-demo.yaml")


def config_of(given: object) -> RetrainConfig:
    """The config of a parsed YAML document. Raises InputError, which names the section."""
    own = dict(mapping(given, ""))
    if "prepare" in own:
        own["prepare"] = {"holdout": HOLDOUT, **mapping(own["prepare"], "prepare")}
    if "train" in own:
        own["train"] = train_section(own["train"], OURS)
    return from_sections(RetrainConfig, own)
