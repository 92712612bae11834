"""The order of a retraining cycle: what is done, what is not done again, and what readers see meanwhile.

Spark, the trainer and MLflow have stand-ins here (retrain_tools.py); test_retrain_real.py has the real ones.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import retrain_tools
from conftest import Command, Ended, run_here
from retrain_tools import Point, Project, flags, killed, script_of
from tiny import tree

from jobs import retrain
from jobs.retraining.workspace import RECORDS, Workspace
from training.vectors.word_vectors import Tables, Vectors


class Here(Project):
    """A project whose commands run in this process."""

    def __call__(self, command: str, *more: object) -> Ended:
        return run_here(retrain.main, (command, "--config", "c.yaml", *more), self._monkeypatch, self._capsys)

    def publish(self, num_bytes: int) -> None:
        self.grow(num_bytes)
        ended = self("run")
        assert ended.code == 0, ended

    def programs(self) -> list[str]:
        """What was called since this was asked last."""
        found = [script_of(call) for call in self.tools.calls]
        self.tools.calls.clear()
        return found

    def record(self, step: str) -> dict[str, Any]:
        newest = Workspace(self.workspace).newest()
        assert newest is not None
        found = newest.read(step)
        assert found is not None
        return found

    def registry(self) -> retrain_tools.FileRegistry:
        return retrain_tools.FileRegistry(f"sqlite:///{self.workspace / 'mlflow.db'}", "words", None)


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(tmp_path, capsys, monkeypatch)


BOTH = ["prepare.py", "train.py"]


# Nothing twice


def test_the_first_run_publishes_and_the_second_says_that_nothing_is_new(project: Here) -> None:
    ended = project("run")
    assert (ended.code, project.programs(), project.current) == (0, BOTH, "000001")
    assert "published version 000001" in ended.stdout
    before = project.bytes_published()
    again = project("run")
    assert (again.code, project.programs()) == (0, [])
    assert again.stdout == "nothing is new: this corpus with these settings was published as version 000001\n"
    assert project("plan").code == retrain.NOTHING_NEW
    assert project.bytes_published() == before


def test_steps_one_by_one_are_a_run_and_each_may_be_given_twice(project: Here) -> None:
    for step in RECORDS:
        first, second = project(step), project(step)
        assert (first.code, second.code) == (0, 0), (first, second)
        assert step in ("plan", "evaluate") or second.stdout.startswith(f"{step}: already done")
    assert project.programs() == BOTH
    assert project.current == "000001"


@pytest.mark.parametrize(("step", "missing"), [("prepare", "plan"), ("evaluate", "train"), ("publish", "evaluate")])
def test_a_step_before_its_turn_is_refused(step: str, missing: str, project: Here) -> None:
    if step != "prepare":
        project("plan")
    project(step).assert_refused(f"run `{missing}` first")
    assert project.programs() == []


def test_argument_lists_are_shown_and_logged(project: Here) -> None:
    project("run")
    plan = project.record("plan")
    assert [plan["prepare"], plan["train"]] == project.tools.calls
    assert flags(plan["prepare"])["--input"] == "corpus.txt"
    assert "--no-lowercase" in plan["prepare"]
    assert (flags(plan["train"])["--epochs"], flags(plan["train"])["--resume"]) == ("3", "auto")


@pytest.mark.parametrize(
    ("changes", "launcher", "processes"),
    [
        ({"train": {"nproc": 2}}, [sys.executable], "2"),
        ({"train": {}}, [sys.executable], None),
        ({"train": {}, "torchrun": ["--nproc-per-node", "2"]}, ["torchrun", "--nproc-per-node", "2"], None),
    ],
)
def test_the_trainer_starts_its_processes_unless_torchrun_is_given_arguments(
    changes: dict[str, Any], launcher: list[str], processes: str | None, project: Here
) -> None:
    """The torchrun that torch installs takes ``--nproc``, even after the script, for its own, and refuses it."""
    project.configure(**changes)
    assert project("plan").code == 0
    command = project.record("plan")["train"]
    script = next(place for place, word in enumerate(command) if word.endswith("train.py"))
    assert command[:script] == launcher
    assert flags(command[script:]).get("--nproc") == processes


# What is new


def test_a_grown_corpus_is_trained_from_the_published_vectors_and_becomes_the_next_version(project: Here) -> None:
    project.configure(warm_start={"epochs": 1, "lr": 0.001})
    project.publish(600)
    assert "--init-from" not in flags(project.tools.calls[1])
    project.publish(700)
    given = flags(project.tools.calls[3])
    assert (given["--init-from"], given["--epochs"], given["--lr"]) == ("w/published/000001", "1", "0.001")
    assert project.current == "000002"
    assert project.record("decision")["champion"] == "000001"


def test_without_warm_start_every_version_begins_anew(project: Here) -> None:
    project.configure(warm_start={"enabled": False}, gates={"heldout_increase": None, "overlap": None})
    project.publish(600)
    project.publish(700)
    assert "--init-from" not in flags(project.tools.calls[3])


@pytest.mark.parametrize(("changed_by", "code"), [("times", 0), ("content", retrain.NOTHING_NEW)])
def test_a_file_that_is_touched_is_new_unless_content_is_asked_for(changed_by: str, code: int, project: Here) -> None:
    project.configure(corpus={"input": "corpus.txt", "changed_by": changed_by})
    project("run")
    os.utime(project.corpus, ns=(1, 1))
    assert project("plan").code == code


def test_other_content_of_the_same_size_and_time_is_new_where_content_is_asked_for(project: Here) -> None:
    project.configure(corpus={"input": "corpus.txt", "changed_by": "content"})
    project("run")
    stat = project.corpus.stat()
    project.corpus.write_text(project.corpus.read_text().replace("word", "verb"))
    os.utime(project.corpus, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert project("plan").code == 0


def test_other_settings_are_another_cycle(project: Here) -> None:
    project("run")
    project.configure(train={"dim": 8, "epochs": 4})
    assert project("run").code == 0
    assert project.current == "000002"


@pytest.mark.parametrize("become", [500, 0, None])
def test_a_corpus_that_has_shrunk_or_gone_is_refused(become: int | None, project: Here) -> None:
    project.publish(600)
    project.programs()
    words = ["corpus: found 1 file(s), 500 bytes", "600 bytes of version 000001", "may_shrink"]
    if become is None:
        project.corpus.unlink()
        words = ["--input corpus.txt", "not found"]
    else:
        project.grow(become)
        words = words if become else ["--input corpus.txt", "empty"]
    project("run").assert_refused(*words)
    assert (project.programs(), project.current) == ([], "000001")


def test_a_corpus_that_may_shrink_may(project: Here) -> None:
    project.publish(600)
    project.configure(
        corpus={"input": "corpus.txt", "may_shrink": True}, gates={"heldout_increase": None, "coverage": 0.5}
    )
    project.publish(500)
    assert project.current == "000002"


def test_files_that_are_gone_from_a_grown_corpus_are_named(project: Here) -> None:
    Path("more.txt").write_text("more")
    project.configure(corpus={"input": ["corpus.txt", "more.txt"]})
    project("run")
    project.configure(corpus={"input": ["corpus.txt"]})
    project.grow(700)
    assert f"1 of its files are gone ({Path('more.txt').absolute()})" in project("plan").stdout


def test_a_corpus_that_changes_after_the_plan_is_refused_by_prepare(project: Here) -> None:
    project("plan")
    project.grow(700)
    project("prepare").assert_refused("corpus: found other files, sizes or times")
    assert project.programs() == []
    assert project("run").code == 0


def test_a_corpus_that_changes_while_it_is_read_is_refused(project: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    real = project.tools.prepare

    def prepare(given: dict[str, str]) -> None:
        real(given)
        project.grow(700)

    monkeypatch.setattr(project.tools, "prepare", prepare)
    project("run").assert_refused("corpus: found other files")


def test_vectors_of_another_length_are_refused_before_anything_runs(project: Here) -> None:
    project("run")
    project.programs()
    project.configure(train={"dim": 9})
    project("run").assert_refused("train.dim: found 9, expected the 8 of version 000001")
    assert project.programs() == []


# Gates


def test_what_the_gates_refuse_is_not_published_and_not_trained_again(project: Here) -> None:
    project.publish(600)
    before = project.bytes_published()
    project.programs()
    strict = {"heldout_increase": None, "overlap": 1.0, "frequent_words": 60}
    project.configure(gates=strict)
    project.grow(700)
    refused = project("run")
    assert (refused.code, project.programs()) == (retrain.REFUSED, BOTH)
    assert "refused: overlap@10" in refused.stdout
    assert project.bytes_published() == before
    again = project("run")
    assert (again.code, project.programs()) == (0, [])
    assert "nothing is new" in again.stdout
    assert "was refused (refused: overlap@10" in again.stdout
    project("publish").assert_refused("only an accepted cycle is published")
    # A gate that is loosened asks again, without training.
    project.configure(gates={**strict, "overlap": 0.2})
    assert (project("run").code, project.programs(), project.current) == (0, [], "000002")


def test_gates_that_change_between_evaluate_and_publish_are_asked_again(project: Here) -> None:
    for step in ("plan", "prepare", "train", "evaluate"):
        project(step)
    project.configure(gates={"heldout_increase": None, "overlap": 0.4})
    project("publish").assert_refused("run `evaluate` again first")
    assert project("run").code == 0


def test_a_refused_cycle_that_comes_back_after_others_is_done_again(project: Here) -> None:
    """Its dataset and run have gone since."""
    project.publish(600)
    strict = {"heldout_increase": None, "overlap": 1.0, "frequent_words": 60}
    project.configure(gates=strict)
    project.grow(700)
    times = project.corpus.stat()
    assert project("run").code == retrain.REFUSED
    project.grow(800)
    assert project("run").code == retrain.REFUSED
    project.grow(700)
    os.utime(project.corpus, ns=(times.st_atime_ns, times.st_mtime_ns))
    project.programs()
    project.configure()
    assert (project("run").code, project.programs(), project.current) == (0, BOTH, "000002")


def test_files_of_the_gates_are_read_before_anything_runs(project: Here) -> None:
    project.configure(gates={"heldout_increase": None, "pairs": ["no-pairs.txt"]})
    project("run").assert_refused("no-pairs.txt", "cannot be read")
    assert project.programs() == []


def test_a_corpus_that_holds_out_nothing_is_refused_before_training(project: Here) -> None:
    project.configure(prepare={"holdout": 0.01}, gates={"overlap": None})
    project("run").assert_refused("prepare.holdout: found no held-out sequence", "heldout_increase: null")
    assert project.programs() == ["prepare.py"]


# What is published


def test_vectors_are_published_turned_onto_those_before_with_their_drift(project: Here) -> None:
    project.publish(600)
    project.publish(700)
    new = Tables.load(project.workspace / "current")
    names = {path.name for path in (project.workspace / "current").iterdir()}
    assert names >= {"alignment.safetensors", "drift.parquet", "vectors.safetensors", "vocab.parquet", "summary.json"}
    run = Tables.load(Workspace(project.workspace).newest().run)  # type: ignore[union-attr]
    np.testing.assert_allclose(
        np.einsum("vd,vd->v", new.center_VD, new.context_VD),
        np.einsum("vd,vd->v", run.center_VD, run.context_VD),
        rtol=1e-4,
        atol=1e-5,
    )
    assert not np.allclose(new.center_VD, run.center_VD)


def test_readers_always_find_a_whole_version(project: Here) -> None:
    """They read in a loop while versions are published and taken back."""
    project.publish(600)
    project.publish(700)
    stop, seen, errors = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                seen.add(len(Vectors.load(project.workspace / "current").words))
            except Exception as error:
                errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        assert project("rollback", "--to", "000001").code == 0
        assert project("rollback", "--to", "000002").code == 0
    project.publish(800)
    patience = time.monotonic() + 60
    while len(seen) < 3 and not errors and time.monotonic() < patience:
        time.sleep(0.01)
    stop.set()
    reader.join()
    assert (errors, len(seen)) == ([], 3)


def test_a_version_is_on_the_disk_before_readers_are_pointed_to_it(
    project: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    replace = Path.replace

    def noted(self: Path, to: Path) -> Path:
        events.append(f"now {to.name}")
        return replace(self, to)

    assert project("run").code == 0
    project.grow(700)
    for step in ("plan", "prepare", "train", "evaluate"):
        assert project(step).code == 0
    monkeypatch.setattr(os, "fsync", lambda fd: events.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name))
    monkeypatch.setattr(Path, "replace", noted)
    assert project("publish").code == 0
    added, pointed = events.index("now 000002"), events.index("now current")
    files = [path.name for path in (project.workspace / "published" / "000002").iterdir()]
    assert sorted(events[:added]) == sorted(["challenger", *files])
    assert "published" in events[added:pointed]
    assert project.workspace.name in events[pointed:]


def test_old_versions_go_but_for_the_newest_and_the_one_to_go_back_to(project: Here) -> None:
    project.configure(keep=2)
    for num_bytes in (600, 650, 700, 750):
        project.publish(num_bytes)
    assert [version.name for version in Workspace(project.workspace).versions()] == ["000003", "000004"]
    project("rollback")
    project.publish(800)
    # The third is the one that the newest has taken the place of.
    assert [version.name for version in Workspace(project.workspace).versions()] == ["000003", "000004", "000005"]


def test_only_the_newest_cycle_keeps_its_dataset_and_run(project: Here) -> None:
    project.publish(600)
    project.publish(700)
    folders = {
        cycle.run_id: sorted(path.name for path in cycle.folder.iterdir() if path.is_dir())
        for cycle in Workspace(project.workspace).cycles()
    }
    assert sorted(folders.values()) == [[], ["dataset", "run"]]


# Going back


def test_rollback_publishes_the_version_before_and_twice_changes_nothing_more(project: Here) -> None:
    for num_bytes in (600, 650, 700):
        project.publish(num_bytes)
    assert project.registry().alias("champion") == project.record("plan")["run_id"]
    for _ in range(2):
        assert project("rollback").code == 0
        assert project.current == "000002"
    assert project.registry().alias("champion") != project.record("plan")["run_id"]
    assert project("rollback", "--to", "000001").code == 0
    assert project.current == "000001"


def test_after_a_rollback_the_same_corpus_stays_unpublished_and_a_grown_one_begins_with_the_old_vectors(
    project: Here,
) -> None:
    project.publish(600)
    project.publish(700)
    project("rollback")
    project.programs()
    assert (project("run").code, project.programs(), project.current) == (0, [], "000001")
    project.publish(800)
    assert flags(project.tools.calls[1])["--init-from"] == "w/published/000001"
    assert project.current == "000003"


def test_a_cycle_that_was_begun_before_a_rollback_is_trained_from_the_version_that_is_published_now(
    project: Here,
) -> None:
    project.publish(600)
    project.publish(700)
    project.grow(800)
    for step in ("plan", "prepare", "train"):
        assert project(step).code == 0
    project("rollback")
    project.programs()
    assert project("run").code == 0
    assert list(map(script_of, project.tools.calls)) == ["train.py"]
    assert flags(project.tools.calls[0])["--init-from"] == "w/published/000001"
    assert project.record("decision")["champion"] == "000001"


def test_rollback_of_nothing_of_the_first_and_to_a_version_that_never_was(project: Here) -> None:
    project("rollback").assert_refused("found no published version")
    project.publish(600)
    project("rollback").assert_refused("version 000001: found it to be the first")
    project("rollback", "--to", "7").assert_refused("rollback --to 7", "expected one of 000001")
    assert project.current == "000001"


# What people do by hand


def test_a_champion_that_was_deleted_by_hand_is_named_and_comes_back_from_the_registry(project: Here) -> None:
    project.publish(600)
    project.publish(700)
    before = project.bytes_published()
    shutil.rmtree(project.workspace / "published" / "000002")
    project.grow(800)
    project("run").assert_refused("current", "000002 is gone or incomplete", "rollback --to", "here: 000001")
    assert "DAMAGED" in project("status").stdout
    ended = project("rollback", "--to", "000002")
    assert (ended.code, project.bytes_published()) == (0, before)
    assert "fetching it from the registry" in ended.stdout


def test_a_version_that_was_deleted_by_hand_keeps_its_number(project: Here) -> None:
    project.publish(600)
    project.publish(700)
    project("rollback")
    shutil.rmtree(project.workspace / "published" / "000002")
    project.publish(800)
    assert project.current == "000003"


def test_a_link_that_was_deleted_by_hand_is_not_taken_for_an_empty_workspace(project: Here) -> None:
    project.publish(600)
    (project.workspace / "current").unlink()
    project("run").assert_refused("current: missing", "rollback --to 000001")
    assert project("rollback", "--to", "000001").code == 0
    assert project.current == "000001"


def test_damaged_published_vectors_are_refused_before_anything_runs(project: Here) -> None:
    project.publish(600)
    project.programs()
    vectors = project.workspace / "published" / "000001" / "vectors.safetensors"
    vectors.write_bytes(vectors.read_bytes()[:-8])
    project.grow(700)
    project("run").assert_refused("published/000001", "cannot be read")
    assert project.programs() == []


@pytest.mark.parametrize("name", ["vectors.safetensors", "vocab.parquet", "summary.json"])
@pytest.mark.parametrize("damage", [lambda old: old[:-9], lambda old: old[:50] + bytes([old[50] ^ 1]) + old[51:]])
def test_vectors_that_have_changed_since_they_were_judged_are_judged_again(
    project: Here, name: str, damage: Callable[[bytes], bytes]
) -> None:
    for step in ("plan", "prepare", "train", "evaluate"):
        assert project(step).code == 0
    newest = Workspace(project.workspace).newest()
    assert newest is not None
    honest = tree(newest.challenger)
    path = newest.challenger / name
    path.write_bytes(damage(path.read_bytes()))
    project("publish").assert_refused("other vectors", "evaluate")
    assert not (project.workspace / "current").exists()
    assert project("run").code == 0
    assert tree(project.workspace / "current") == honest


def test_a_record_that_is_a_folder_is_refused(project: Here) -> None:
    assert project("run").code == 0
    newest = Workspace(project.workspace).newest()
    assert newest is not None
    for name in ("prepare.json", "decision.json"):
        (newest.folder / name).unlink()
        (newest.folder / name).mkdir()
        project("status").assert_refused(name, "remove it")
        (newest.folder / name).rmdir()


@pytest.mark.parametrize("content", ["[]", "null", '{"run_id": "../.."}', '{"prepare": ["rm"]}'])
def test_a_record_that_no_step_writes_is_refused(project: Here, content: str) -> None:
    project("plan")
    newest = Workspace(project.workspace).newest()
    assert newest is not None
    (newest.folder / "plan.json").write_text(content)
    project("prepare").assert_refused("plan.json", "remove it, and its step is repeated")


@pytest.mark.parametrize("content", ["", "{", '{"run_id": "0'])
def test_a_record_that_is_empty_or_cut_counts_as_absent(project: Here, content: str) -> None:
    """A crash of the machine leaves such files, and the next command makes them again."""
    assert project("run").code == 0
    project.grow(700)
    assert project("run").code == 0
    published = os.readlink(project.workspace / "current")
    names = [
        str(path)
        for path in project.workspace.rglob("*.json")
        if "cycles" in path.parts or path.parent == project.workspace
    ]
    assert len(names) > 5
    for name in names:
        before = Path(name).read_text()
        Path(name).write_text(content)
        ended = project("run")
        assert (ended.code, ended.stderr) == (0, ""), (name, ended)
        assert os.readlink(project.workspace / "current") == published
        Path(name).write_text(before)


def test_a_folder_that_is_no_workspace_is_refused(project: Here) -> None:
    project.workspace.mkdir()
    (project.workspace / "thesis.tex").touch()
    project("run").assert_refused("workspace: w: holds thesis.tex", "no workspace's")
    assert os.listdir(project.workspace) == ["thesis.tex"]


# The registry


def test_a_registry_that_is_down_ends_the_cycle_before_training(project: Here) -> None:
    project.configure(registry={"tracking_uri": "http://down:1"})
    project("run").assert_refused("registry http://down:1: does not answer")
    assert project.programs() == []


def test_or_what_is_published_meanwhile_is_told_when_it_is_back(project: Here) -> None:
    project.configure(registry={"tracking_uri": "http://down:1", "if_unreachable": "publish_locally"})
    ended = project("run")
    assert (ended.code, project.current) == (0, "000001")
    assert "warning: registry http://down:1: does not answer; only the workspace is updated" in ended.stderr
    Path("server-is-back").touch()
    project.publish(700)
    registry = retrain_tools.FileRegistry("http://down:1", "words", None)
    assert len(registry.read()["versions"]) == 2
    assert registry.alias("champion") == project.record("plan")["run_id"]


def test_readers_get_the_old_version_at_once_where_the_registry_is_down(project: Here) -> None:
    project.publish(600)
    project.publish(700)
    project.configure(registry={"tracking_uri": "http://down:1"})
    ended = project("rollback")
    assert (ended.code, project.current) == (1, "000001")
    assert ended.stderr == "error: registry http://down:1: does not answer\n"


# Kills. What a step was killed at, the next `run` completes, with the bytes of one that nothing killed.

STEPS, WORKSPACE, CYCLE = (
    "jobs.retraining.cycle_steps",
    "jobs.retraining.workspace:Workspace",
    "jobs.retraining.workspace:Cycle",
)
REGISTRATION, REGISTRY = "jobs.retraining.registry", "retrain_tools:FileRegistry"
POINTS: list[Point] = [
    (STEPS, "state_of", "after"),
    (WORKSPACE, "begin", "before"),
    (WORKSPACE, "begin", "after"),
    ("retrain_tools:Tools", "prepare", "after"),
    ("retrain_tools:Tools", "train", "before"),
    ("retrain_tools:Tools", "train", "after"),
    ("jobs.retraining.challenger", "align", "after"),
    ("jobs.retraining.challenger", "make_challenger", "after"),
    ("jobs.retraining.judge", "judge", "after"),
    (REGISTRY, "record", "before"),
    (REGISTRY, "record", "after"),
    (REGISTRY, "set_alias", "after"),
    (WORKSPACE, "add", "before"),
    (WORKSPACE, "add", "after"),
    (WORKSPACE, "point_to", "before"),
    (WORKSPACE, "point_to", "after"),
    (WORKSPACE, "prune", "before"),
    (WORKSPACE, "prune", "after"),
]


@pytest.fixture(scope="module")
def unkilled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """A project whose corpus has grown since the first version, and what its second one holds."""
    folder = tmp_path_factory.mktemp("unkilled")
    with pytest.MonkeyPatch.context() as patch:
        project = Project(folder, None, patch)  # type: ignore[arg-type]
        retrain_tools.main("run")
        project.grow(700)
        shutil.copytree(folder / "w", folder / "before", symlinks=True)
        retrain_tools.main("run")
        return folder, project.bytes_published()


@pytest.mark.parametrize(
    "point",
    [pytest.param(point, marks=[pytest.mark.long] if point[2] == "before" else []) for point in POINTS],
    ids=lambda point: f"{point[2]} {point[1]}",
)
def test_what_was_killed_is_completed_with_the_same_bytes(
    point: Point, unkilled: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, call: Command
) -> None:
    """Before a step there is what was there after the one before it."""
    folder, wanted = unkilled
    workspace = folder / "w"
    shutil.rmtree(workspace)
    shutil.copytree(folder / "before", workspace, symlinks=True)
    assert killed(folder, "run", point) == -signal.SIGKILL
    Vectors.load(workspace / "current")
    monkeypatch.chdir(folder)
    tools = retrain_tools.Tools()
    retrain_tools.install(tools, monkeypatch.setattr)
    ended = call(lambda: retrain_tools.main("run"))
    assert ended.code == 0, ended
    assert {path.name: path.read_bytes() for path in (workspace / "current").iterdir()} == wanted
    assert sorted(os.listdir(workspace / "published")) == ["000001", "000002"]
    assert not [path for path in workspace.iterdir() if path.name.startswith(".")]
    registry = retrain_tools.FileRegistry(f"sqlite:///{workspace / 'mlflow.db'}", "words", None)
    assert len(registry.read()["versions"]) == 2
    assert registry.read()["aliases"] == {"champion": "2"}


def test_what_is_finished_is_not_done_again_after_a_kill(
    unkilled: tuple[Path, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, call: Command
) -> None:
    folder, _ = unkilled
    shutil.rmtree(folder / "w")
    shutil.copytree(folder / "before", folder / "w", symlinks=True)
    killed(folder, "run", ("jobs.retraining.challenger", "make_challenger", "before"))
    monkeypatch.chdir(folder)
    tools = retrain_tools.Tools()
    retrain_tools.install(tools, monkeypatch.setattr)
    assert call(lambda: retrain_tools.main("run")).code == 0
    assert tools.calls == []


# The lock


def test_a_live_run_keeps_others_out_and_is_named(project: Here) -> None:
    with Workspace(project.workspace).lock():
        ended = subprocess.run(
            [sys.executable, retrain.__file__, "run", "--config", "c.yaml"], capture_output=True, text=True, timeout=120
        )
        status = project("status")
    refused = Ended(ended.returncode, ended.stdout, ended.stderr)
    refused.assert_refused(f"process {os.getpid()} on ", "expected one command at a time")
    assert f"at work: process {os.getpid()}" in status.stdout
    assert project("run").code == 0


def test_what_a_dead_run_has_started_is_waited_for(project: Here) -> None:
    """Its children hold the lock as long as they live; here for two seconds."""
    project.workspace.mkdir()
    code = (
        "import os, subprocess, sys; from pathlib import Path; from jobs.retraining.workspace import Workspace\n"
        "with Workspace(Path('w')).lock() as lock:\n"
        "    subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(2)'], pass_fds=[lock])\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, timeout=60)
    assert done.returncode == -signal.SIGKILL
    began = time.monotonic()
    assert project("run").code == 0
    assert time.monotonic() - began > 1


# Status


def test_status_says_what_there_is_and_changes_nothing(project: Here) -> None:
    assert "nothing yet" in project("status").stdout
    assert not project.workspace.exists()
    project.publish(600)
    project.publish(700)
    said = project("status").stdout
    for words in ("version 000002", "<- current", "accepted", "done: plan, prepare, train, evaluate, publish"):
        assert words in said
    assert f"words@champion is cycle {project.record('plan')['run_id']}" in said


def test_records_are_json_for_others_to_read(project: Here) -> None:
    project("run")
    cycle = Workspace(project.workspace).newest()
    assert cycle is not None
    for file in cycle.folder.glob("*.json"):
        json.loads(file.read_text())
    decision = project.record("decision")
    assert {gate["name"] for gate in decision["gates"]} >= {"overlap@10", "coverage", "norms"}
