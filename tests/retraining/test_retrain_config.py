"""What a retraining config may say, and what is said of one that may not."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from jobs.retraining.cycle_plan import run_id_of
from jobs.retraining.retrain_config import RetrainConfig, config_of, read_config
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


def test_run_ids_stay_as_they_are_in_workspaces() -> None:
    """Another id would train and publish an unchanged corpus again."""
    config = config_of({**LEAST, "train": {"nproc": 2, "lr": 0.01}, "torchrun": []})
    assert run_id_of([{"path": "texts/a.txt", "bytes": 3, "mtime_ns": 5}], config) == "87221d313bee160c"


def test_every_section_may_be_left_out_but_the_corpus() -> None:
    config = config_of(LEAST)
    assert config.corpus.input == ("texts",)
    assert (config.prepare.holdout, config.prepare.window) == (0.01, 5)
    assert config.warm_start.enabled
    assert config.registry.tracking_uri is None


def test_a_preset_gives_usual_values_and_what_the_file_says_wins() -> None:
    prepare = config_of(with_(prepare=yaml.safe_load("preset: items\nwindow: sequence\nsample: 1e-3"))).prepare
    assert prepare == PipelineConfig(preset="items", window="sequence", sample=1e-3, holdout=0.01)


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
        *((with_(name=name), [f"name: found {name!r}"]) for name in ("a/b", "a:b", "a@b", "a'b", " a", "a\n")),
        (with_(name=""), ["name", "text"]),
        (with_(keep=1), ["keep", "found 1", "2 or more"]),
        (with_(keep="five"), ["keep", "'five'", "a whole number"]),
        (with_(corpus={"input": "t", "demo": True}), ["corpus", "both input and demo"]),
        (with_(corpus={"input": "t", "changed_by": "moon"}), ["changed_by", "moon", "times or content"]),
        (with_(corpus={"input": {"a": 1}}), ["corpus.input", "a list"]),
        (with_(corpus="texts"), ["corpus", "'texts'", "settings"]),
        (with_(prepare={"windw": 3}), ["prepare", "windw", "window"]),
        (with_(prepare={"self": 3}), ["prepare", "found self", "window"]),
        (with_(prepare={"__dataclass_self__": 3}), ["prepare", "found __dataclass_self__", "window"]),
        (with_(self=3), ["found self", "workspace"]),
        (with_(prepare={"window": 0}), ["prepare.window", "found 0", "1 or more"]),
        (with_(prepare={"window": True}), ["prepare.window", "True", "a whole number or sequence"]),
        (with_(prepare={"preset": "item"}), ["prepare.preset", "'item'", "words or items"]),
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
        (with_(registry={"tracking_uri": ["a"]}), ["registry.tracking_uri", "['a']", "text or null"]),
        (
            with_(spark_submit="--master yarn"),
            ["spark_submit", "'--master yarn'", "a list, such as ['--master', 'yarn']"],
        ),
        (with_(torchrun="--nnodes 2"), ["torchrun", "'--nnodes 2'", "a list, such as ['--nnodes', '2']"]),
        (with_(torchrun=["--nnodes", 2]), ["torchrun", "found 2", "text, in quotes"]),
        (with_(spark_submit=None), ["spark_submit", "found None", "a list"]),
        (with_(corpus=None), ["corpus", "no input", "demo: true"]),
        (with_(workspace="x" * 300), ["workspace", "xxx...xxx", "a path"]),
        (with_(workspace="x/" * 3000), ["workspace", "a path"]),
        (with_(workspace="a\0b"), ["workspace", "'a\\x00b'", "a path"]),
        (with_(workspace="\ud800"), ["workspace", "a path"]),
        (with_(gates={"pairs": ["a\0b"]}), ["gates.pairs", "a path"]),
        (with_(name=None), ["name", "found None", "text"]),
        (with_(keep=None), ["keep", "found None", "a whole number"]),
        (with_(prepare={1: 2}), ["prepare", "{1: 2}", "settings"]),
        (with_(train=[{"lr": 1}]), ["train", "[{'lr': 1}]", "settings"]),
        (with_(train={"lr": {"from": 1}}), ["train.lr", "{'from': 1}", "a number"]),
        (with_(train={"nproc": 0}), ["train.nproc", "found 0", "1 or more"]),
        (with_(train={"global_batch": 5}), ["train", "--global-batch", "found 5", "such as 16"]),
        (with_(warm_start={"epochs": -1}), ["warm_start.epochs", "found -1", "1 to 100,000"]),
        (with_(train={"epochs": 2}, warm_start={"freeze_epochs": 3}), ["warm_start", "--freeze-epochs", "--epochs 2"]),
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


LONG = "long " * 1000
LAUGHS = "a: &a [x, x]\n" + "".join(f"{y}: &{y} [*{x}, *{x}]\n" for x, y in pairwise("abcdefghijklmnopqrstuvwxy"))


@pytest.mark.parametrize(
    "content",
    [
        "[" * 1500,
        "a: " * 1500,
        "x" * (1 << 20),
        f"name: {'x' * 10**6}\n{'y' * 10**5}: 1\n",
        f"name: [{'x, ' * 20_000}]",
        f"{LAUGHS}name: *y\n",
        f"{LAUGHS}",
        f"{LAUGHS}train: {{lr: *y}}\nname: words\nworkspace: w\ncorpus: {{input: texts}}\n",
        f"name: {LONG}\nworkspace: w\ncorpus: {{demo: true}}\n",
        f"{LONG}: 1",
        f"{LONG}: 1\n{LONG}: 1",
        f"? {'0' * 5000}\n: 1",
        f"keep: {'0' * 5000}7",
        f"train: {{{LONG}: 1}}",
        f"corpus: {{input: {LONG}}}",
        f"registry: {{tracking_uri: {LONG}}}",
        f"prepare: {{min_count: {LONG}}}",
        f"spark_submit: {{{LONG}: 1}}",
    ],
)
def test_a_huge_value_is_refused_in_a_short_line(content: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(content)
    with pytest.raises(InputError) as refusal:
        read_config(file)
    line = str(refusal.value)
    assert len(line) < 1000
    assert "\n" not in line


YAML = "name: words\nworkspace: w\ncorpus: {input: texts}\n"


def read(tmp_path: Path, more: str, least: str = YAML) -> RetrainConfig:
    file = tmp_path / "c.yaml"
    file.write_text(least + more)
    return read_config(file)


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ("keep: 3\nkeep: 4\n", "line 5: found keep again, expected it once; line 4 has it too"),
        ("name: other\n", "line 4: found name again, expected it once; line 1 has it too"),
        ("train:\n  lr: 1\n  dim: 2\n  'lr': 3\n", "line 7: found lr again, expected it once; line 5 has it too"),
        ("train: {lr: 1, lr: 2}\n", "line 4: found lr again, expected it once; line 4 has it too"),
        ("gates: {pairs: [{a: 1, a: 2}]}\n", "line 4: found a again, expected it once; line 4 has it too"),
        ("gates: &g {<<: {a: 1}, a: 2, a: 3}\n", "line 4: found a again, expected it once; line 4 has it too"),
        ("1: 2\n", "line 4: found the key 1, expected a setting's name, which is text"),
        ("prepare:\n  on: 2\n", "line 5: found the key on, expected a setting's name, which is text"),
        ("? [a, b]\n: 1\n", "line 4: found the key a sequence, expected a setting's name, which is text"),
        ("keep: 012\n", "line 4: found 012, which YAML reads as a number to base 8 or 60, expected a plain decimal "),
        ("train: {dim: 1:30}\n", "line 4: found 1:30, which YAML reads as a number to base 8 or 60, expected "),
        ("train: {lr: 1:30.5}\n", "line 4: found 1:30.5, which YAML reads as a number to base 60, expected "),
        ("spark_submit: [2026-01-31]\n", "line 4: found 2026-01-31, which YAML reads as a date, expected "),
        ("registry: {tracking_uri: yes}\n", "registry.tracking_uri: found True, expected text or null, in quotes"),
        ("keep: 08\n", "keep: found '08', expected a whole number"),
        ("spark_submit: --master yarn\n", "spark_submit: found '--master yarn', expected a list, such as ["),
        ("train: &t\n  lr: *t\n", "train.lr: found {'lr': {'lr': {...}}}, expected a number"),
        ("train: !!python/object:os.system x\n", "is no YAML (could not determine a constructor"),
    ],
)
def test_what_yaml_reads_otherwise_than_it_looks_is_refused_at_any_depth(tmp_path: Path, more: str, line: str) -> None:
    with pytest.raises(InputError) as refusal:
        read(tmp_path, more)
    assert str(refusal.value).startswith(f"--config {tmp_path / 'c.yaml'}: {line}"), refusal.value
    assert len(str(refusal.value).splitlines()) == 1


def test_what_yaml_reads_as_it_looks_is_taken(tmp_path: Path) -> None:
    config = read(
        tmp_path, "prepare: {sample: 1e-3, lowercase: yes}\ntrain: {lr: '1e-2', dim: 1_000}\nspark_submit: ['012']\n"
    )
    assert (config.prepare.sample, config.prepare.lowercase, config.train) == (1e-3, True, {"lr": 1e-2, "dim": 1000})
    assert config.spark_submit == ("012",)


def test_a_merged_key_gives_way_to_the_mappings_own(tmp_path: Path) -> None:
    config = read(tmp_path, "warm_start: &usual {epochs: 2, lr: 0.1}\ntrain: {<<: *usual, epochs: 3}\n")
    assert config.train == {"epochs": 3, "lr": 0.1}
    assert config.warm_start.epochs == 2


def test_an_empty_section_has_its_defaults(tmp_path: Path) -> None:
    assert read(tmp_path, "prepare:\ntrain:\nwarm_start:\ngates:\nregistry:\n") == config_of(LEAST)


def test_an_empty_file_says_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no name and no workspace and no corpus, expected name, workspace and"):
        read(tmp_path, "", least="")


def test_gates_and_registry_do_not_make_another_cycle_and_numbers_do() -> None:
    numbers = config_of(LEAST).numbers
    assert numbers == config_of(with_(gates={"overlap": 0.5}, registry={"if_unreachable": "publish_locally"})).numbers
    assert numbers == config_of(with_(keep=9, spark_submit=["--master", "yarn"])).numbers
    for other in ({"train": {"dim": 50}}, {"prepare": {"seed": 1}}, {"warm_start": {"epochs": 2}}):
        assert numbers != config_of(with_(**other)).numbers
