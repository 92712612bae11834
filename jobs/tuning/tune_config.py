"""TuneConfig: what a study tries and how it judges, from one YAML file, checked before anything runs."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from jobs.config_sections import CorpusSettings, check_name, from_sections, train_section
from jobs.tuning.search_space import PREPARE, SECTIONS, TRAIN, WINDOWS, Space, extremes, usual_training, values_of
from jobs.yaml_file import read_yaml
from pipeline.pipeline_config import SEQUENCE, PipelineConfig
from pipeline.shared.errors import InputError
from pipeline.shared.settings import (
    LocalPath,
    Number,
    OneOrMore,
    Text,
    fields_of,
    from_section,
    is_whole,
    mapping,
    setting,
    settings,
)
from training.train_config import TrainCommand

HOLDOUT = 0.05
"""The default share of sequences whose loss judges trials."""

OURS = dict.fromkeys(
    (*("data", "output", "overwrite", "resume", "init_from", "freeze_epochs"), *("tensorboard", "verbosity")),
    "nowhere: a study sets it itself",
)
"""Settings of a training run that the study itself sets."""

EXAMPLE = "examples/tune-shop.yaml"


@settings(section="judge")
class JudgeSettings:
    """What is better, and what it is measured on."""

    by: Literal["next_item", "heldout_loss", "pairs"] = setting(
        default="next_item",
        help="next_item: the last item of sequences is predicted; heldout_loss: the loss of sequences held out, by "
        "which training alone can be judged; pairs: word pairs with people's scores",
    )
    metric: Literal["ndcg", "hit_rate", "mrr"] = setting(default="ndcg", help="of next_item")
    score: Literal["model", "model_popularity", "cosine"] = setting(
        default="model", help="of next_item: what items are ranked by; that which you will serve"
    )
    topk: int = setting(default=10, ge=1, le=1000, help="of next_item: the length of a list of recommendations")
    last: int = setting(default=5, ge=1, le=1000, help="of next_item: how many items before the last one predict it")
    pairs: OneOrMore[LocalPath] = setting(
        default=(), help="of pairs: files of word pairs with people's scores, in the format of training.evaluate"
    )
    share: Number = setting(
        default=0.1,
        gt=0,
        le=0.4,
        help="the share of sequences for the test; of next_item, as many again choose between trials",
    )

    def __post_init__(self) -> None:
        if bool(self.pairs) != (self.by == "pairs"):
            found, expected = ("files", "none") if self.pairs else ("none", "one file or more")
            raise InputError(f"judge.pairs: found {found} with by: {self.by}, expected {expected}")


@settings(section="")
class TuneConfig:
    """All settings of a study."""

    name: Text = setting(help="of the model")
    output: LocalPath = setting(help="the study's folder")
    corpus: CorpusSettings = setting(help="where sequences come from")
    fraction: Number = setting(
        default=1.0, gt=0, le=1, help="the share of sequences that the study reads; --fraction replaces it"
    )
    judge: JudgeSettings = setting(default=JudgeSettings(), help="what is better")
    prepare: dict[str, Any] = setting(default_factory=dict, help="settings of prepare that are the same in every trial")
    train: dict[str, Any] = setting(
        default_factory=dict, help="the flags of training/train.py that are the same in every trial"
    )
    search: dict[str, Any] = setting(
        default_factory=dict,
        help="prepare and train: for each setting a list of values, or low and high, and log or step (default: "
        "usual ranges)",
    )
    trials: int = setting(default=100, ge=1, le=100_000, help="the study ends after so many")
    seed: int = setting(default=0, help="of the choice of sequences, and of the trials' settings")

    def __post_init__(self) -> None:
        check_name(self.name)
        both = [
            f"{section}.{name}" for section in SECTIONS for name in self.search[section] if name in self.fixed[section]
        ]
        if both:
            raise InputError(f"{both[0]}: found it in search too, expected it in one of them")
        if not any(self.search.values()):
            raise InputError("search: found nothing to search, expected a setting with several values")

    @property
    def fixed(self) -> dict[str, dict[str, Any]]:
        """The settings that are the same in every trial, by section."""
        return {PREPARE: self.prepare, TRAIN: self.train}

    @property
    def space(self) -> Space:
        return self.search

    @property
    def numbers(self) -> dict[str, Any]:
        """All settings that decide what the trials of a study give."""
        left_out = "name", "output", "trials"
        return {name: value for name, value in asdict(self).items() if name not in left_out}


def read_config(file: Path, fraction: float | None) -> TuneConfig:
    """Reads and checks a YAML file; ``fraction`` replaces its own. Raises InputError, which names file and section."""

    def config_of_file(given: object) -> TuneConfig:
        return config_of(given if fraction is None else {**mapping(given, ""), "fraction": fraction})

    return read_yaml(file, config_of_file, EXAMPLE)


def config_of(given: object) -> TuneConfig:
    """The config of a parsed YAML document. Raises InputError, which names the section."""
    own = dict(mapping(given, ""))
    judge = own["judge"] = from_section(JudgeSettings, own.get("judge"), "judge")
    own["train"] = train_section(own.get("train"), OURS)
    own["prepare"] = _prepare(mapping(own.get("prepare"), "prepare"), judge)
    fixed = {PREPARE: own["prepare"], TRAIN: own["train"]}
    own["search"] = _search(mapping(own.get("search"), "search"), fixed, judge)
    return from_sections(TuneConfig, own)


def _prepare(given: Mapping[str, Any], judge: JudgeSettings) -> dict[str, Any]:
    """The checked settings of the section ``prepare``, without defaults."""
    if judge.by == "heldout_loss":
        given = {"holdout": HOLDOUT, **given}
    config = from_section(PipelineConfig, given, PREPARE)
    if judge.by == "heldout_loss" and not config.holdout:
        raise InputError("prepare.holdout: found 0 with judge.by heldout_loss, expected a share such as 0.05")
    return {name: getattr(config, name) for name in given}


def _search(given: Mapping[str, Any], fixed: dict[str, dict[str, Any]], judge: JudgeSettings) -> Space:
    """The values to try, each checked together with what is fixed."""
    if unknown := [name for name in given if name not in SECTIONS]:
        raise InputError(f"search: found {unknown[0]:.60}, expected {' or '.join(SECTIONS)}")
    if not given:
        training = usual_training(TrainCommand(**fixed[TRAIN]).lr)
        windows = {} if judge.by == "heldout_loss" else dict(WINDOWS)
        if fixed[PREPARE].get("window") == SEQUENCE:
            windows.pop("window_kind", None)  # it has no radius
        wanted = {PREPARE: windows, TRAIN: training}
        given = {
            section: {name: values for name, values in usual.items() if name not in fixed[section]}
            for section, usual in wanted.items()
        }
    kinds: dict[str, type] = {PREPARE: PipelineConfig, TRAIN: TrainCommand}
    space: Space = {}
    for section in SECTIONS:
        space[section] = {}
        for name, values in mapping(given.get(section), f"search.{section}").items():
            where = f"search.{section}.{name}"
            if judge.by == "heldout_loss" and section == PREPARE:
                raise InputError(
                    f"{where:.80}: found it with judge.by heldout_loss, expected settings of train alone: the losses "
                    "of other examples cannot be compared"
                )
            if name not in fields_of(kinds[section]) or name in (OURS if section == TRAIN else ("preset", "seed")):
                raise InputError(f"{where:.80}: found it, expected a setting of {section} that changes vectors")
            space[section][name] = found = values_of(values, where, is_whole(fields_of(kinds[section])[name]))
            for value in extremes(found):
                try:
                    from_section(kinds[section], {**fixed[section], name: value}, section)
                except InputError as error:
                    raise InputError(f"search.{error}") from None
    return space
