"""The file of a study: what is accepted, and what is refused in one line."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs.tuning.search_space import Range
from jobs.tuning.tune_config import EXAMPLE, TuneConfig, config_of, read_config
from pipeline.shared.errors import InputError

SHOP: dict[str, Any] = {
    "name": "shop",
    "output": "data/tune",
    "corpus": {"input": ["sessions.parquet"], "format": "parquet", "column": "items"},
}
SEARCH = {"train": {"dim": [16, 32]}}


def made(**given: Any) -> TuneConfig:
    return config_of({**SHOP, **given})


def test_without_a_search_usual_ranges_are_searched_but_not_what_is_fixed() -> None:
    found = made(prepare={"window": 3}, train={"dim": 8, "sync_every": 4})
    assert "window" not in found.space["prepare"]
    assert found.space["prepare"]["window_side"] == ("both", "right")
    assert found.space["train"]["lr"] == Range(0.025 / 4, 0.025 * 8, True, None)
    assert [*found.space["train"]] == ["lr", "epochs"]
    assert found.space["train"]["epochs"] == Range(3, 30, True, None)


def test_a_fixed_window_that_is_a_sequence_leaves_its_kind_out_of_the_usual_ranges() -> None:
    assert {"window", "window_kind"}.isdisjoint(made(prepare={"window": "sequence"}).space["prepare"])


def test_numbers_of_whole_settings_are_whole() -> None:
    values = {"window": {"low": 1, "high": 5}, "ns_exponent": {"low": -1, "high": 1, "step": 0.5}}
    found = made(search={"prepare": values}).space["prepare"]
    window, exponent = found["window"], found["ns_exponent"]
    assert isinstance(window, Range)
    assert isinstance(exponent, Range)
    assert (type(window.low), type(window.high)) == (int, int)
    assert (type(exponent.low), exponent.step) == (float, 0.5)


def test_what_decides_the_trials_is_known_and_what_does_not_is_not() -> None:
    base = made(search=SEARCH)
    same = made(search=SEARCH, trials=7, output="elsewhere", name="x")
    assert base.numbers == same.numbers
    for other in ({"seed": 1}, {"fraction": 0.5}, {"prepare": {"window": 2}}, {"judge": {"topk": 5}}):
        assert made(search=SEARCH, **other).numbers != base.numbers


def test_the_fraction_of_the_command_line_replaces_that_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tune.yaml"
    file.write_text(yaml.safe_dump({**SHOP, "fraction": 0.5}))
    assert read_config(file, None).fraction == 0.5
    assert read_config(file, 0.1).fraction == 0.1
    with pytest.raises(InputError, match=r"fraction: found 2, expected a number above 0, 1 at most"):
        read_config(file, 2.0)


def test_the_example_is_one() -> None:
    config = read_config(Path(__file__).resolve().parents[2] / EXAMPLE, None)
    assert asdict(config)["judge"]["by"] == "next_item"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": {"train": {"dims": [1, 2]}}}, "search.train.dims: found it, expected a setting of train"),
        ({"search": {"train": {"output": ["a", "b"]}}}, "search.train.output: found it, expected a setting of train"),
        ({"search": {"prepare": {"seed": [1, 2]}}}, "search.prepare.seed: found it, expected a setting of prepare"),
        ({"search": {"prepare": {"window": [0, 2]}}}, "search.prepare.window: found 0, expected 1 or more"),
        ({"search": {"prepare": {"window": 3}}}, "search.prepare.window: found 3, expected a list of values, or low"),
        ({"search": {"prepare": {"window": []}}}, "search.prepare.window: found [], expected 1 to 100 values"),
        ({"search": {"prepare": {"window": [2, 2]}}}, "search.prepare.window: found a value twice in [2, 2]"),
        (
            {"search": {"prepare": {"window": {"low": 1, "high": 2.5}}}},
            "found 2.5, expected whole numbers",
        ),
        ({"search": {"prepare": {"window": {"low": 3, "high": 3}}}}, "search.prepare.window: found low 3 and high 3"),
        ({"search": {"train": {"lr": {"low": 0, "high": 1, "log": True}}}}, "found low 0 with log: true"),
        ({"search": {"train": {"lr": {"low": 0.1}}}}, "search.train.lr: found no high, expected low and high"),
        ({"search": {"prepare": {"window": {"low": 1, "high": 6, "step": 2}}}}, "found 2.5 steps of 2 from 1 to 6"),
        ({"search": {"train": {"lr": {"low": 0.1, "high": 0.3, "step": 5}}}}, "found 0.04 steps of 5 from 0.1 to 0.3"),
        ({"search": {"train": {"lr": {"low": 0.1, "high": 1, "step": 1e-300}}}}, "a whole number of them, 1,000,000"),
        (
            {"search": {"train": {"lr": {"low": 0.1, "high": 1, "base": 2}}}},
            "search.train.lr: found base, expected",
        ),
        ({"search": {"train": {"dim": [8, 16]}}, "train": {"dim": 8}}, "train.dim: found it in search too"),
        ({"search": {"tain": {}}}, "search: found tain, expected prepare or train"),
        ({"search": {"train": {}}}, "search: found nothing to search"),
        ({"train": {"tensorboard": True}}, "train: found tensorboard, expected nowhere: a study sets it itself"),
        ({"prepare": {"windw": 3}}, "prepare: found windw, expected one of"),
        ({"judge": {"by": "pairs"}}, "judge.pairs: found none with by: pairs, expected one file or more"),
        ({"judge": {"by": "next_item", "pairs": "a.txt"}}, "judge.pairs: found files with by: next_item"),
        ({"judge": {"share": 0.5}}, "judge.share: found 0.5, expected a number above 0, 0.4 at most"),
        (
            {"judge": {"by": "heldout_loss"}, "search": {"prepare": {"window": [1, 2]}}},
            "expected settings of train",
        ),
        ({"judge": {"by": "heldout_loss"}, "prepare": {"holdout": 0}}, "prepare.holdout: found 0 with judge.by"),
        ({"name": "a/b"}, "name: found 'a/b', expected only letters"),
        ({"fraction": 0}, "fraction: found 0, expected a number above 0"),
        ({"corpus": {"input": "x", "table": "y"}}, "corpus: found both input and table"),
        ({"trial": 3}, "the file: found trial, expected one of"),
    ],
)
def test_a_mistake_is_said_in_a_line_that_names_the_place(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as caught:
        made(**changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
