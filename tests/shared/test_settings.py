"""Laws of settings: what a field says is what the flag, the help, the error lines and a section of YAML go by."""

import argparse
import pickle
from dataclasses import FrozenInstanceError, asdict, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from jobs.config_sections import CorpusSettings
from jobs.retraining.gates import Gates
from jobs.retraining.retrain_config import RegistrySettings, RetrainConfig, WarmStart
from pipeline.pipeline_config import PipelineConfig, Source
from pipeline.shared.cli import Parser
from pipeline.shared.errors import InputError
from pipeline.shared.settings import (
    ListOf,
    LocalPath,
    Number,
    OneOrMore,
    Text,
    add_flags,
    fields_of,
    from_section,
    setting,
    settings,
)
from training.train_config import TrainCommand, TrainConfig

CONFIGS = [
    *(Source, PipelineConfig, TrainConfig, TrainCommand),
    *(CorpusSettings, WarmStart, Gates, RegistrySettings, RetrainConfig),
]


@settings()
class Oven:
    heat: int = setting(default=180, ge=50, le=2000, group="heat", help="degrees Celsius")
    share: Number = setting(default=0.5, ge=0, le=1, group="heat", help="of the power")
    rate: Number | None = setting(default=None, gt=0, le=9, group="heat", help="degrees a second (default: any)")
    mode: Literal["top", "bottom"] = setting(default="top", group="heat", help="which side")
    timer_s: int = setting(default_factory=lambda given: given["heat"] * 2, ge=1, group="time", help="seconds")
    light: bool = setting(default=True, group="time", help="no light")
    fan: bool = setting(default=False, group="time", help="a fan")
    log: LocalPath | None = setting(default=None, group="time", help="a file", flag={"metavar": "FILE"})
    name: Text = setting(default="oven", help="without a flag")
    dishes: OneOrMore[Text] = setting(default=(), help="on the trays")
    orders: ListOf[Text] = setting(default=(), help="one after the other")

    def __post_init__(self) -> None:
        if self.fan and self.mode == "top":
            raise InputError("--fan: found it with --mode top, expected --mode bottom")


def parsed(*arguments: str, **defaults: object) -> dict[str, Any]:
    parser = Parser("oven.py", "Bakes.", "python oven.py")
    add_flags(parser, Oven, "mode", **defaults)
    return vars(parser.parse_args(arguments))


def test_help_says_what_the_fields_say(capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser("oven.py", "Bakes.", "python oven.py")
    add_flags(parser, Oven)
    parser.print_help()
    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert shown[shown.index("heat:") : shown.index("example:")] == [
        "heat:",
        "--heat N degrees Celsius (default: 180)",
        "--share X of the power (default: 0.5)",
        "--rate X degrees a second (default: any)",
        "--mode {top,bottom} which side (default: top)",
        "",
        "time:",
        "--timer-s N seconds",
        "--no-light no light",
        "--fan a fan",
        "--log FILE a file",
        "",
    ]


def test_a_flag_gives_a_value_of_the_fields_type() -> None:
    given = parsed("--heat", "200", "--rate", "2", "--no-light", "--log", "a/b")
    assert given == {"heat": 200, "share": 0.5, "rate": 2.0, "light": False, "fan": False, "log": Path("a/b")}
    assert Oven(**given).timer_s == 400


def test_a_job_may_omit_flags_and_have_defaults_of_its_own() -> None:
    assert parsed(heat=90)["heat"] == 90
    parser = Parser("oven.py", "Bakes.", "python oven.py")
    add_flags(parser, Oven, rate=2.0)
    assert "--rate X degrees a second (default: 2.0)" in " ".join(parser.format_help().split())
    with pytest.raises(InputError, match="--mode"):
        parsed("--mode", "top")


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"heat": 20}, "--heat: found 20, expected 50 to 2,000"),
        ({"share": 2.0}, "--share: found 2.0, expected a number in [0, 1]"),
        ({"share": float("nan")}, "--share: found nan, expected a number in [0, 1]"),
        ({"rate": 0.0}, "--rate: found 0.0, expected a number above 0, 9 at most"),
        ({"mode": "left"}, "--mode: found left, expected top or bottom"),
        ({"timer_s": 0}, "--timer-s: found 0, expected 1 or more"),
        ({"heat": 5.0}, "--heat: found 5.0, expected a whole number"),
        ({"fan": True}, "--fan: found it with --mode top, expected --mode bottom"),
    ],
)
def test_a_value_that_cannot_be_is_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError) as refusal:
        Oven(**given)
    assert str(refusal.value) == line


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"heat": 20}, "oven.heat: found 20, expected 50 to 2,000"),
        ({"heat": True}, "oven.heat: found True, expected a whole number"),
        ({"heat": "200"}, "oven.heat: found '200', expected a whole number"),
        ({"heat": 200.0}, "oven.heat: found 200, expected a whole number"),
        ({"heat": None}, "oven.heat: found None, expected a whole number"),
        ({"share": 2}, "oven.share: found 2, expected 0 to 1"),
        ({"share": False}, "oven.share: found False, expected a number"),
        ({"share": "high"}, "oven.share: found 'high', expected a number"),
        ({"rate": 10}, "oven.rate: found 10, expected a number above 0, 9 at most, or null"),
        ({"rate": "fast"}, "oven.rate: found 'fast', expected a number or null"),
        ({"mode": 3}, "oven.mode: found 3, expected top or bottom"),
        ({"light": "no"}, "oven.light: found 'no', expected true or false"),
        ({"log": ""}, "oven.log: found '', expected a path or null"),
        ({"log": 7}, "oven.log: found 7, expected a path or null"),
        ({"name": ""}, "oven.name: found '', expected text"),
        ({"name": False}, "oven.name: found False, expected text, in quotes"),
        ({"dishes": {"pie": 1}}, "oven.dishes: found {'pie': 1}, expected a list"),
        ({"dishes": ["pie", 3]}, "oven.dishes: found 3, expected text, in quotes"),
        ({"orders": "--bake 2"}, "oven.orders: found '--bake 2', expected a list, such as ['--bake', '2']"),
        ({"orders": None}, "oven.orders: found None, expected a list"),
        ({"fan": True}, "oven: --fan: found it with --mode top, expected --mode bottom"),
        ([1], "oven: found [1], expected settings, one 'name: value' a line"),
        ({1: 2}, "oven: found {1: 2}, expected settings, one 'name: value' a line"),
        (
            {"heat": 20, "haet": 1},
            "oven: found haet, expected one of heat, share, rate, mode, timer_s, light, fan, log, name, dishes, orders",
        ),
    ],
)
def test_a_section_that_cannot_be_is_one_line_and_nothing_is_converted(given: object, line: str) -> None:
    with pytest.raises(InputError) as refusal:
        from_section(Oven, given, "oven")
    assert str(refusal.value) == line


def test_a_section_has_the_types_of_the_fields() -> None:
    given = {"share": 1, "rate": "1e-3", "log": "a/b", "dishes": "pie", "orders": ["a", "b"]}
    made = from_section(Oven, given, "oven")
    assert (made.share, made.rate, made.log, made.dishes, made.orders) == (
        *(1.0, 1e-3, Path("a/b")),
        *(("pie",), ("a", "b")),
    )
    assert isinstance(made.share, float)
    assert from_section(Oven, None, "oven") == from_section(Oven, {}, "oven") == Oven()


def test_a_default_that_depends_on_others_is_resolved_and_then_stays() -> None:
    made = Oven(heat=100)
    assert asdict(made)["timer_s"] == 200
    assert replace(made, heat=150).timer_s == 200
    assert pickle.loads(pickle.dumps(made)) == made


def test_a_config_cannot_change_and_a_changed_copy_is_checked() -> None:
    with pytest.raises(FrozenInstanceError):
        Oven().heat = 90  # type: ignore[misc]
    with pytest.raises(InputError, match="--heat"):
        replace(Oven(), heat=0)


@pytest.mark.parametrize("kind", CONFIGS, ids=lambda kind: kind.__name__)
def test_every_setting_has_a_text(kind: type) -> None:
    assert [name for name, field in fields_of(kind).items() if not field.description] == []


@pytest.mark.parametrize("kind", [Source, PipelineConfig, TrainCommand], ids=lambda kind: kind.__name__)
def test_every_setting_of_a_command_has_a_flag(kind: type) -> None:
    parser = Parser("job.py", "A job.", "python job.py")
    add_flags(parser, kind)
    if kind is TrainCommand:
        parser.add_verbosity("more")
    flags = {action.dest for action in parser._actions if not isinstance(action, argparse._HelpAction)} - {"verbose"}
    assert flags == fields_of(kind).keys()


def test_usual_values_of_a_run_follow_from_its_mode() -> None:
    for config, found in (
        (TrainConfig(), ("adam", 0.002, 512, None)),
        (TrainConfig(optimizer="sgd"), ("sgd", 0.1, 512, None)),
        (TrainConfig(sync_every=4), ("sgd", 0.025, 65_536, None)),
        (TrainConfig(sync_every=4, optimizer="rowwise_adagrad"), ("rowwise_adagrad", 0.05, 65_536, None)),
        (TrainConfig(lanes=7, lr=1.0), ("adam", 1.0, 511, None)),
        (TrainConfig(lanes=600), ("adam", 0.002, 600, None)),
        (TrainConfig(shard_cache=Path("c")), ("adam", 0.002, 512, 10_000_000_000)),
    ):
        assert (config.optimizer, config.lr, config.global_batch, config.shard_cache_bytes) == found
