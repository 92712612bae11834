"""Prints docs/settings.md, in which every setting has a row, from the fields of the config classes:

python tools/settings_page.py > docs/settings.md
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

if __name__ == "__main__":  # run as a script: the project's root belongs on the path
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from jobs.retraining.gates import Gates
from jobs.retraining.retrain_config import CorpusSettings, RegistrySettings, RetrainConfig, WarmStart
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.cli import Parser
from pipeline.shared.settings import fields_of, limits
from training.train_config import TrainCommand

SECTIONS: tuple[tuple[str, str, type], ...] = (
    (
        "Sampling",
        "Flags of `jobs/prepare.py`, with `-` for `_`; section `prepare` of a retraining config.",
        PipelineConfig,
    ),
    (
        "Training",
        "Flags of `training/train.py`, with `-` for `_`; section `train` of a retraining config.",
        TrainCommand,
    ),
    (
        "Retraining",
        "The config of `jobs/retrain.py`, a YAML file; see [retraining.md](retraining.md#the-config).",
        RetrainConfig,
    ),
    ("`corpus`", "Its section for the corpus.", CorpusSettings),
    ("`warm_start`", "Its section for training that begins with the published vectors.", WarmStart),
    ("`gates`", "Its section for what new vectors must reach; `null` turns a gate off.", Gates),
    ("`registry`", "Its section for MLflow.", RegistrySettings),
)


def page() -> Iterator[str]:
    yield "# Settings\n"
    yield "Every setting, from the fields of the config classes, by `python tools/settings_page.py > docs/settings.md`."
    for title, about, kind in SECTIONS:
        yield f"\n## {title}\n\n{about}\n"
        yield "| setting | default | values | meaning |\n|---|---|---|---|"
        for name, field in fields_of(kind).items():
            if name != "verbosity":
                yield row(name, field)


def row(name: str, field: FieldInfo) -> str:
    """A field's row. Where the default depends on other settings, the field's text says it."""
    text = str(field.description).replace("<unk>", "`<unk>`")
    told = re.search(r" ?\(default: ([^)]*)\)", text)
    default = told[1] if told else "must be given" if field.is_required() else shown(field.default)
    return f"| `{name}` | {default} | {limits(field, is_flag=False)} | {text.replace(told[0], '') if told else text} |"


def shown(default: Any) -> str:
    """A default as YAML has it."""
    if is_dataclass(default):
        return "see its section"
    if default in (None, (), PydanticUndefined):
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def main() -> None:
    example = "python tools/settings_page.py > docs/settings.md"
    Parser("tools/settings_page.py", "Prints docs/settings.md, in which every setting has a row.", example).parse_args()
    print("\n".join(page()))


if __name__ == "__main__":
    main()
