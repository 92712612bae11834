"""What a retraining config may say, and what is said of one that may not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from jobs.retraining.retrain_config import config_of, read_config
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.errors import InputError

LEAST: dict[str, Any] = {"name": "words", "workspace": "w", "corpus": {"input": "texts"}}


def with_(**changes: Any) -> dict[str, Any]:
    return {**LEAST, **changes}


def test_the_example_is_a_config() -> None:
    config = read_config(ROOT / "examples" / "retrain-demo.yaml")
    assert config.corpus.demo
    assert config.prepare == PipelineConfig(min_count=5, sample=1e-3, epochs=4, holdout=0.02)
    assert config.train == {"nproc": 2, "epochs": 4, "deterministic": True}


def test_every_section_may_be_left_out_but_the_corpus() -> None:
    config = config_of(LEAST)
    assert config.corpus.input == ("texts",)
    assert (config.prepare.holdout, config.prepare.window) == (0.01, 5)
    assert config.warm_start.enabled
    assert config.registry.tracking_uri is None


def test_a_number_that_yaml_takes_for_text_is_one() -> None:
    assert isinstance(yaml.safe_load("lr: 1e-3")["lr"], str)
    config = config_of(with_(train=yaml.safe_load("lr: 1e-3"), prepare=yaml.safe_load("sample: 1e-4")))
    assert (config.train["lr"], config.prepare.sample) == (1e-3, 1e-4)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (None, ["no name", "no workspace"]),
        ([1], ["the file", "[1]", "settings"]),
        ({"name": "words", "workspace": "w"}, ["no corpus"]),
        (with_(corpus={}), ["corpus", "no input", "demo: true"]),
        (with_(nmae=1), ["nmae", "one of name, workspace"]),
        (with_(name="a/b"), ["name", "a/b"]),
        (with_(name=""), ["name", "text"]),
        (with_(keep=1), ["keep", "found 1", "2 or more"]),
        (with_(keep="five"), ["keep", "'five'", "a whole number"]),
        (with_(corpus={"input": "t", "demo": True}), ["corpus", "both input and demo"]),
        (with_(corpus={"input": "t", "changed_by": "moon"}), ["changed_by", "moon", "times or content"]),
        (with_(corpus={"input": {"a": 1}}), ["corpus.input", "a list"]),
        (with_(corpus="texts"), ["corpus", "'texts'", "settings"]),
        (with_(prepare={"windw": 3}), ["prepare", "windw", "window"]),
        (with_(prepare={"window": 0}), ["prepare.window", "found 0", "1 or more"]),
        (with_(prepare={"window": True}), ["prepare.window", "True", "a whole number"]),
        (with_(prepare={"holdout": 0}), ["heldout_increase", "holdout 0", "null"]),
        (with_(train={"data": "x"}), ["train", "found data", "a cycle sets it"]),
        (with_(train={"freeze_epochs": 1}), ["train", "freeze_epochs", "warm_start"]),
        (with_(train={"epoch": 1}), ["train", "epoch", "epochs"]),
        (with_(train={"lr": -1}), ["train.lr", "-1", "above 0"]),
        (with_(train={"lr": "fast"}), ["train.lr", "'fast'", "a number"]),
        (with_(train={"nproc": 3}), ["train", "3 processes", "--lanes"]),
        (with_(train={"nproc": 2}, torchrun=["--nproc-per-node", "2"]), ["torchrun", "train.nproc"]),
        (with_(warm_start={"enabled": False, "epochs": 2}), ["warm_start", "epochs", "no effect"]),
        (with_(gates={"overlap": 2}), ["gates.overlap", "found 2", "0 to 1"]),
        (with_(gates={"overlapp": 0.3}), ["gates", "overlapp"]),
        (with_(gates={"coverage": True}), ["gates.coverage", "True", "a number or null"]),
        (with_(gates={"pairs_drop": None}), ["gates.pairs_drop", "None", "expected a number"]),
        (with_(gates={"frequent_words": 10.5}), ["gates.frequent_words", "10.5", "a whole number"]),
        (with_(gates={"analogies": 3}), ["gates.analogies", "found 3", "a path or null"]),
        (with_(registry={"if_unreachable": "wait"}), ["registry", "wait", "publish_locally"]),
    ],
)
def test_what_is_wrong_is_named(given: object, words: list[str]) -> None:
    with pytest.raises(InputError) as refusal:
        config_of(given)
    assert [word for word in words if word not in str(refusal.value)] == [], refusal.value


@pytest.mark.parametrize(
    ("content", "words"), [(None, ["cannot be read"]), (b"a: [", ["no YAML"]), (b"\xff\xfe", ["no YAML"])]
)
def test_a_file_that_is_no_config_is_refused(content: bytes | None, words: list[str], tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InputError) as refusal:
        read_config(file)
    assert [word for word in ["--config", "c.yaml", *words] if word not in str(refusal.value)] == [], refusal.value
    assert len(str(refusal.value).splitlines()) == 1


def test_gates_and_registry_do_not_make_another_cycle_and_numbers_do() -> None:
    numbers = config_of(LEAST).numbers
    assert numbers == config_of(with_(gates={"overlap": 0.5}, registry={"if_unreachable": "publish_locally"})).numbers
    assert numbers == config_of(with_(keep=9, spark_submit=["--master", "yarn"])).numbers
    for other in ({"train": {"dim": 50}}, {"prepare": {"seed": 1}}, {"warm_start": {"epochs": 2}}):
        assert numbers != config_of(with_(**other)).numbers
