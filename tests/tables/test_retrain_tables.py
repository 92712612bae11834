"""Laws of retraining on a table: the log says whether something is new, and whether rows were lost."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from conftest import Ended, run_here
from deltalake import DeltaTable, write_deltalake
from retrain_tools import DIM, Project, flags

from jobs import retrain

CORPUS: dict[str, Any] = {"input": "t", "format": "delta", "column": "items"}


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Project:
    made = Project(tmp_path, capsys, monkeypatch)
    append(0, 3)
    append(3, 4)
    made.configure(corpus=CORPUS, train={"dim": DIM, "epochs": 3})
    return made


def append(start: int, stop: int) -> None:
    write_deltalake("t", pa.table({"id": range(start, stop), "items": ["a b c"] * (stop - start)}), mode="append")


@pytest.fixture
def command(project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(name: str) -> Ended:
        return run_here(retrain.main, (name, "--config", "c.yaml"), monkeypatch, capsys)

    return run


def test_a_table_is_judged_by_its_log(project: Project, command: Any) -> None:
    ended = command("run")
    assert ended.code == 0, ended
    assert "version 1, 4 rows" in ended.stdout
    given = flags(project.tools.calls[0])
    assert (given["--input"], given["--format"], given["--column"]) == ("t", "delta", "items")

    table = DeltaTable("t")
    assert table.optimize.compact()["numFilesRemoved"] == 2
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    assert command("plan").code == retrain.NOTHING_NEW

    append(4, 6)
    assert "6 rows, +50.0% since version 000001" in command("plan").stdout

    DeltaTable("t").delete("id < 4")
    command("plan").assert_refused(
        "corpus: found version", "2 rows", "expected the 4 rows of version 000001", "may_shr"
    )


def test_settings_of_events_reach_prepare(project: Project, command: Any) -> None:
    events = {"column": "items", "group_by": "id", "order_by": "id2", "max_gap": "30m"}
    write_deltalake("e", pa.table({"id": [1, 1], "items": ["a", "b"], "id2": [1, 2]}))
    project.configure(corpus={"input": "e", "format": "delta", "as_of": 0, **events})
    command("run")
    given = flags(project.tools.calls[0])
    assert [given[name] for name in ("--group-by", "--order-by", "--max-gap", "--as-of")] == ["id", "id2", "30m", "0"]
    project.configure(corpus={"table": "shop.t", "where": "x > '1'", **events, "max_gap": "soon"})
    command("plan").assert_refused("corpus: --max-gap: found soon", "30m")
    project.configure(corpus={"table": "shop.t", "input": "e", "column": "items"})
    command("plan").assert_refused("corpus: found both input and table", "demo: true")
