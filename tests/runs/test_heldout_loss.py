"""Laws of the held-out loss while a run trains: it is what judges a finished run find, and it says when to stop."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Command, Stop
from ranks import train_here
from safetensors.numpy import load_file
from tiny import write_held_out, write_tiny_dataset

from training import train
from training.judging.heldout import Heldout, losses
from training.runs import heldout_loss, report_page
from training.runs.metrics import Evaluation
from training.runs.progress import Progress
from training.vectors import Tables, Vectors

FLAGS = "--dim", "40", "--epochs", "3", "--global-batch", "256", "--threads", "1", "--device", "cpu", "--no-tensorboard"
IN_PLACE = "--sync-every", "4"
OVERFITS = "--lr", "0.2", "--epochs", "8"
"""The loss of the held-out examples soon rises."""

pytestmark = pytest.mark.usefixtures("no_pages", "threads")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_held_out(folder)
    return folder


def run(nproc: int, data: Path, output: Path, *flags: str) -> Path:
    given = "--nproc", nproc, "--data", data, "--output", output, *FLAGS, *flags
    ended = train_here(*given, logs=output.parent)
    assert ended.code == 0, ended.stderr
    return output


def lines(run: Path, kind: str = "heldout") -> list[dict[str, Any]]:
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in found if line["kind"] == kind]


def summary(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "summary.json").read_text())["heldout"]
    return found


def judged(data: Path, run: Path) -> float:
    tables = Tables.load(run)
    found = losses(Heldout.of_dataset(data), tables, tables)
    assert found
    return found.first


@pytest.mark.parametrize(
    ("nproc", "mode"),
    [
        (1, ()),
        (2, ()),
        (2, IN_PLACE),
        pytest.param(1, IN_PLACE, marks=pytest.mark.long),
        pytest.param(2, ("--sharding=replicated",), marks=pytest.mark.long),
        pytest.param(2, (*IN_PLACE, "--sharding=replicated"), marks=pytest.mark.long),
        pytest.param(1, ("--kernel=reference",), marks=pytest.mark.long),
    ],
)
def test_it_is_the_loss_that_judges_find(data: Path, tmp_path: Path, nproc: int, mode: tuple[str, ...]) -> None:
    """Of the last vectors, and of those in best/, also when these are not the last ones."""
    found = run(nproc, data, tmp_path / "run", *mode, *(OVERFITS if not mode else ()))
    evaluated = lines(found)
    assert [line["step"] for line in evaluated] == [line["step"] for line in lines(found, "epoch")]
    assert judged(data, found) == pytest.approx(evaluated[-1]["loss"], rel=1e-6)
    best = min(evaluated, key=lambda line: float(line["loss"]))
    assert summary(found)["best"] == {name: best[name] for name in ("epoch", "step", "loss")}
    assert judged(data, found / "best") == pytest.approx(best["loss"], rel=1e-6)
    assert (best == evaluated[-1]) == bool(mode)
    assert Vectors.load(found / "best").words == Vectors.load(found).words


def test_it_is_the_same_on_any_number_of_ranks(data: Path, tmp_path: Path) -> None:
    """To the bit where the tables are, and so the ranks stop at the same step."""
    flags = "--deterministic", *OVERFITS, "--patience=1", "--evaluate-every=5"
    one, two = (run(nproc, data, tmp_path / str(nproc), *flags) for nproc in (1, 2))
    assert lines(one) == lines(two)
    assert summary(one) == summary(two)


def test_it_changes_nothing(data: Path, tmp_path: Path) -> None:
    expected = load_file(run(1, data, tmp_path / "often", "--evaluate-every=3") / "vectors.safetensors")
    found = load_file(run(1, data, tmp_path / "seldom") / "vectors.safetensors")
    assert all(np.array_equal(found[name], expected[name]) for name in expected)


def test_patience_stops_where_the_loss_has_not_fallen(data: Path, tmp_path: Path) -> None:
    whole = [line["loss"] for line in lines(run(1, data, tmp_path / "whole", *OVERFITS))]
    lowest = int(np.argmin(whole))
    assert lowest < len(whole) - 3
    for patience in (1, 2):
        found = run(1, data, tmp_path / str(patience), *OVERFITS, f"--patience={patience}")
        assert [line["loss"] for line in lines(found)] == pytest.approx(whole[: lowest + 1 + patience], rel=1e-12)
        assert summary(found)["best"]["epoch"] == lowest
        assert summary(found)["stopped_early"]
        assert len(lines(found, "epoch")) == lowest + 1 + patience


def test_patience_may_end_within_an_epoch(data: Path, tmp_path: Path) -> None:
    found = run(1, data, tmp_path / "run", *OVERFITS, "--evaluate-every=2", "--patience=1")
    last = lines(found)[-1]
    assert last["step"] == json.loads((found / "summary.json").read_text())["steps"]
    assert last["step"] % 2 == 0
    assert lines(found, "epoch")[-1]["step"] == last["step"]
    assert judged(data, found) == pytest.approx(last["loss"], rel=1e-6)


@pytest.mark.parametrize("batch", [1, 12])
def test_a_stopped_run_goes_on_with_its_best(
    call: Command, data: Path, tmp_path: Path, stop_after: Stop, batch: int
) -> None:
    """It stops by itself where the whole run does, with the same best/, and, resumed once more, trains no further."""
    flags = *OVERFITS, "--patience=2", "--evaluate-every=7", "--deterministic"
    whole = run(1, data, tmp_path / "whole", *flags)
    given = "--data", data, "--output", tmp_path / "run", *FLAGS, *flags
    stop_after(batch)
    assert call(train.main, *given).code == 143
    for _ in range(2):
        assert call(train.main, *given, "--resume").code == 0
        assert lines(tmp_path / "run") == lines(whole)
        assert summary(tmp_path / "run") == summary(whole)
        for name in ("vectors.safetensors", "best/vectors.safetensors", "best/summary.json", "best/vocab.parquet"):
            assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes()


def test_a_run_that_replaces_another_replaces_its_best(call: Command, data: Path, tmp_path: Path) -> None:
    given = "--data", data, "--output", tmp_path / "run", *FLAGS, "--epochs=1"
    first = run(1, data, tmp_path / "run", "--epochs=1")
    before = (first / "best" / "vectors.safetensors").read_bytes()
    assert call(train.main, *given, "--seed=5", "--overwrite").code == 0
    assert (first / "best" / "vectors.safetensors").read_bytes() != before
    nothing = tmp_path / "nothing held out"
    write_tiny_dataset(nothing)
    assert call(train.main, *given, "--data", nothing, "--overwrite").code == 0
    assert not (first / "best").exists()
    assert not lines(first)


@pytest.mark.parametrize("flag", ["--patience", "--evaluate-every"])
def test_nothing_held_out_is_one_line(call: Command, tmp_path: Path, flag: str) -> None:
    write_tiny_dataset(tmp_path / "data")
    ended = call(train.main, "--data", tmp_path / "data", "--output", tmp_path / "run", flag, 1)
    ended.assert_refused(flag, str(tmp_path / "data"), "found no held-out examples", "prepare with a holdout")
    assert not (tmp_path / "run").exists()


def test_the_first_of_equal_losses_is_the_best() -> None:
    progress = Progress()
    for done, loss in enumerate([0.5, 0.4, 0.4, 0.3, 0.3], 1):
        progress.done = done
        progress.evaluate(loss)
    assert progress.best == Evaluation(0, 4, 0.3)
    assert [progress.is_out_of(patience) for patience in (None, 1, 2)] == [False, True, False]


def test_only_the_rows_of_its_words_are_kept() -> None:
    from training.model.blocks import initial_tables

    center, _ = initial_tables(40_000, 3, 0)  # three blocks
    words_U = np.array([0, 5, 16_383, 16_384, 32_767, 32_768, 39_999])
    assert np.array_equal(heldout_loss.rows_of(center, words_U), center.whole().numpy()[words_U])


def test_a_best_that_is_gone_is_said(call: Command, data: Path, tmp_path: Path, stop_after: Stop) -> None:
    given = "--data", data, "--output", tmp_path / "run", *FLAGS, *OVERFITS
    stop_after(7)
    assert call(train.main, *given).code == 143
    shutil.rmtree(tmp_path / "run" / "best")
    ended = call(train.main, *given, "--resume")
    assert ended.code == 0
    assert f"warning: {tmp_path / 'run' / 'best'} is gone" in ended.stderr
    assert ("has the vectors of the lowest" in ended.stdout) == (tmp_path / "run" / "best").exists()


def test_the_report_of_best_names_the_run(call: Command, data: Path, tmp_path: Path) -> None:
    found = run(1, data, tmp_path / "run", "--epochs=1")
    call(report_page.main, found / "best").assert_refused(f"name {found}")
