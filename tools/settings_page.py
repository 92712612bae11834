"""Prints docs/settings.md: a table of all settings, generated from the fields of the config classes.

python tools/settings_page.py > docs/settings.md
"""

import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[: not sys.flags.safe_path] = [str(Path(__file__).resolve().parent.parent)]

from jobs.config_sections import CorpusSettings
from jobs.retraining.gates import Gates
from jobs.retraining.retrain_config import RegistrySettings, RetrainConfig, WarmStart
from jobs.tuning.tune_config import JudgeSettings, TuneConfig
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.cli import Parser
from pipeline.shared.settings import DEFAULT_NOTE, fields_of, limits
from training.train_config import TrainCommand

SECTIONS: tuple[tuple[str, str, type], ...] = (
    (
        "Sampling",
        "Flags of `jobs/prepare.py`, with `-` for `_`; section `prepare` of a retraining config, and of a study's.",
        PipelineConfig,
    ),
    (
        "Training",
        "Flags of `training/train.py`, with `-` for `_`; section `train` of a retraining config, and of a study's.",
        TrainCommand,
    ),
    (
        "Retraining",
        "The config of `jobs/retrain.py`, a YAML file; see [retraining.md](retraining.md#the-config).",
        RetrainConfig,
    ),
    ("`corpus`", "Section of a retraining config, and of a study's.", CorpusSettings),
    ("`warm_start`", "Section of a retraining config: runs that start from the published vectors.", WarmStart),
    ("`gates`", "Section of a retraining config: bounds for new vectors; `null` turns a gate off.", Gates),
    ("`registry`", "Section of a retraining config: MLflow.", RegistrySettings),
    ("Tuning", "The config of `jobs/tune.py`, a YAML file; see [tuning.md](tuning.md).", TuneConfig),
    ("`judge`", "Section of a study's config: what is better.", JudgeSettings),
)


def page() -> Iterator[str]:
    yield "# Settings\n"
    yield "`python tools/settings_page.py > docs/settings.md` generates this page from the config classes."
    for title, about, kind in SECTIONS:
        yield f"\n## {title}\n\n{about}\n"
        yield "| setting | default | values | meaning |\n|---|---|---|---|"
        for name, field in fields_of(kind).items():
            if name != "verbosity":
                yield row(name, field)


def row(name: str, field: FieldInfo) -> str:
    """The row of a field. If the default depends on other settings, the text of the field gives it."""
    text = str(field.description).replace("<unk>", "`<unk>`")
    note = DEFAULT_NOTE.search(text)
    default = note[1] if note else "must be given" if field.is_required() else shown(field.default)
    return f"| `{name}` | {default} | {limits(field, is_flag=False)} | {text.replace(note[0], '') if note else text} |"


def shown(default: Any) -> str:
    """A default as YAML writes it."""
    if is_dataclass(default):
        return "see its section"
    if default in (None, (), PydanticUndefined):
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def main() -> None:
    example = "python tools/settings_page.py > docs/settings.md"
    Parser("tools/settings_page.py", "Prints docs/settings.md, a table of all settings.", example).parse_args()
    print("\n".join(page()))


if __name__ == "__main__":
    main()
