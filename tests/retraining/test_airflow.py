"""airflow_dags/retrain_dag.py as Airflow itself sees and runs it, in an environment of its own (`make setup-airflow`).

Most laws run it over a stub in the place of jobs/retrain.py, which ends as it is told; one over the real steps.
"""

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

DAG_FILE = ROOT / "jobs" / "airflow_dags" / "retrain_dag.py"
PYTHON = ROOT / ".venv-airflow" / "bin" / "python"
STEPS = ["plan", "prepare", "train", "evaluate", "publish"]
CONFIG = 'it\'s "my" $HOME.yaml'
RETRIES = {"plan": 1, "prepare": 2, "train": 3, "evaluate": 1, "publish": 3}

# Notes how it was called; ends with the codes in codes/STEP, one a call, then 0; "wait" waits for SIGTERM.
STUB = """
import json, signal, sys
from pathlib import Path

step, codes = sys.argv[1], Path("codes", sys.argv[1])
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\\n")
left = codes.read_text().split() if codes.exists() else []
codes.write_text(" ".join(left[1:]))
if left[:1] == ["wait"]:
    signal.alarm(300)  # should nobody tell it
    signal.signal(signal.SIGTERM, lambda *_: (Path("told").touch(), sys.exit(143)))
    Path("waiting").touch()
    while True:
        signal.pause()
sys.exit(int((left or ["0"])[0]))
"""


def imported_by(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    return names | {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}


def test_the_dag_file_needs_airflow_and_the_standard_library_alone() -> None:
    compile(DAG_FILE.read_text(encoding="utf-8"), DAG_FILE, "exec")
    assert {name.split(".")[0] for name in imported_by(DAG_FILE)} - sys.stdlib_module_names == {"airflow"}


def test_the_dag_names_the_steps_of_the_job_and_files_that_are_there() -> None:
    text = DAG_FILE.read_text(encoding="utf-8")
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    of_steps = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "Step"]
    assert [ast.literal_eval(call.keywords[0].value) for call in of_steps] == STEPS
    for name in ("jobs/retrain.py", "examples/retrain-demo.yaml"):
        assert f'"{name}"' in text
        assert (ROOT / name).is_file()


# --- with Airflow ---


@dataclass(frozen=True)
class Airflow:
    """An AIRFLOW_HOME with a database of its own, and a link in its dags folder to the DAG of a project."""

    home: Path
    project: Path

    def start(self, *command: str, **variables: str) -> "subprocess.Popen[str]":
        """airflow_run.py, in Airflow's Python. Its process group is its own, so that nothing of it can stay."""
        own = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "PYTHON"))}
        own |= {"AIRFLOW_HOME": str(self.home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        own |= {f"AIRFLOW_VAR_SHARDVEC_{name.upper()}": value for name, value in variables.items()}
        with (self.home / "log").open("w") as log:
            return subprocess.Popen(
                [PYTHON, *command], stdout=log, stderr=log, text=True, env=own, cwd=self.home, start_new_session=True
            )

    def ended(self, process: "subprocess.Popen[str]", timeout: int = 240) -> Any:
        """What it has found."""
        try:
            code = process.wait(timeout)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        log = (self.home / "log").read_text()
        assert code == 0, log
        return json.loads((self.home / "found.json").read_text()) | {"log": log}

    def starting(self, *command: str, **variables: str) -> "subprocess.Popen[str]":
        given = {"config": CONFIG, "python": sys.executable} | variables
        return self.start(str(Path(__file__).with_name("airflow_run.py")), "found.json", *command, **given)

    def exit_codes(self, **codes: str) -> None:
        for step, left in codes.items():
            (self.project / "codes" / step).write_text(left)

    def calls(self) -> list[list[str]]:
        """The arguments of every call of the stub."""
        return [json.loads(line) for line in (self.project / "calls.jsonl").read_text().splitlines()]

    def steps(self) -> list[str]:
        """The steps that were run, in order."""
        return [call[0] for call in self.calls()]


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database, which takes seconds to make."""
    assert PYTHON.with_name("airflow").is_file(), "no environment of Airflow's: run make setup-airflow"
    home = tmp_path_factory.mktemp("airflow")
    migrate = Airflow(home, home).start("-m", "airflow", "db", "migrate")
    assert migrate.wait(240) == 0, (home / "log").read_text()
    return home / "airflow.db"


@pytest.fixture
def airflow(database: Path, tmp_path: Path) -> Airflow:
    home, project = tmp_path / "airflow", tmp_path / 'it\'s a "project" of $HOME'
    for folder in (home / "dags", project / "jobs" / "airflow_dags", project / "codes"):
        folder.mkdir(parents=True)
    shutil.copy(database, home / "airflow.db")
    (project / "jobs" / "retrain.py").write_text(STUB)
    (home / "dags" / "retrain_dag.py").symlink_to(shutil.copy(DAG_FILE, project / "jobs" / "airflow_dags"))
    return Airflow(home, project)


@pytest.mark.long
def test_airflow_loads_the_dag_as_it_is_meant(airflow: Airflow) -> None:
    found = airflow.ended(airflow.starting())
    assert (found["errors"], found["dags"]) == ({}, ["shardvec_retrain"])
    assert (found["schedule"], found["catchup"], found["max_active_runs"]) == ("@daily", False, 1)
    tasks = found["tasks"]
    assert {name: task["after"] for name, task in tasks.items()} == {
        step: STEPS[:number][-1:] for number, step in enumerate(STEPS)
    }
    assert {name: task["retries"] for name, task in tasks.items()} == RETRIES
    assert {task["retry_delay_s"] for task in tasks.values()} == {300}
    assert {name: task["outlets"] for name, task in tasks.items() if task["outlets"]} == {
        "publish": ["shardvec_vectors"]
    }


@pytest.mark.long
@pytest.mark.parametrize(("variable", "schedule"), [("0 3 * * 1", "0 3 * * 1"), ("none", None)])
def test_the_schedule_is_the_variables(airflow: Airflow, variable: str, schedule: str | None) -> None:
    assert airflow.ended(airflow.starting(schedule=variable))["schedule"] == schedule


@pytest.mark.long
def test_a_cycle_runs_every_step_once_and_tells_of_the_published_vectors(airflow: Airflow) -> None:
    """No shell reads the settings, and the project's path does not break the templates."""
    found = airflow.ended(airflow.starting("run"))
    assert (found["state"], found["assets"]) == ("success", ["shardvec_vectors"])
    assert found["ended"] == {step: ["success", 1] for step in STEPS}
    assert airflow.calls() == [[step, "--config", CONFIG] for step in STEPS]


@pytest.mark.long
def test_when_nothing_is_new_all_is_skipped_and_nothing_is_red(airflow: Airflow) -> None:
    """With the file copied, not linked, so that it has to be told where the project is."""
    dag = airflow.home / "dags" / "retrain_dag.py"
    dag.unlink()
    shutil.copy(DAG_FILE, dag)
    airflow.exit_codes(plan="3")
    found = airflow.ended(airflow.starting("run", root=str(airflow.project)))
    assert (found["state"], found["assets"], airflow.steps()) == ("success", [], ["plan"])
    assert {state for state, _ in found["ended"].values()} == {"skipped"}


@pytest.mark.long
@pytest.mark.parametrize(("step", "code"), [("evaluate", "4"), ("prepare", "2")])
def test_what_needs_a_person_fails_at_the_first_try_and_publishes_nothing(
    airflow: Airflow, step: str, code: str
) -> None:
    airflow.exit_codes(**{step: code})
    found = airflow.ended(airflow.starting("run"))
    done = STEPS[: STEPS.index(step)]
    assert (found["state"], found["assets"], airflow.steps()) == ("failed", [], [*done, step])
    assert found["ended"] == (
        {name: ["success", 1] for name in done}
        | {step: ["failed", 1]}
        | {name: ["upstream_failed", 0] for name in STEPS[len(done) + 1 :]}
    )


@pytest.mark.long
def test_what_may_pass_is_tried_again_as_often_as_the_step_says(airflow: Airflow) -> None:
    """3 too, for any step but plan: it must not pass for a night with nothing new."""
    airflow.exit_codes(train="1 3", publish="1 143 1 1")
    found = airflow.ended(airflow.starting("run"))
    assert airflow.steps() == ["plan", "prepare", *["train"] * 3, "evaluate", *["publish"] * 4]
    assert (found["ended"]["train"], found["ended"]["publish"]) == (["success", 3], ["failed", 4])
    assert (found["state"], found["assets"]) == ("failed", [])


@pytest.mark.long
def test_a_step_that_airflow_kills_is_told_and_goes_on_at_the_next_try(airflow: Airflow) -> None:
    airflow.exit_codes(train="wait")
    process = airflow.starting("run")
    while not (airflow.project / "waiting").exists():
        assert process.poll() is None, (airflow.home / "log").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)  # as a worker that stops and a task that is cleared do
    found = airflow.ended(process)
    assert (airflow.project / "told").exists()
    assert (found["state"], found["ended"]["train"]) == ("success", ["success", 2])


@pytest.mark.long
def test_airflow_runs_the_demo_cycle_to_success(airflow: Airflow, tmp_path: Path) -> None:
    """The real steps: the first run publishes, the second finds nothing new."""
    demo = yaml.safe_load((ROOT / "examples" / "retrain-demo.yaml").read_text(encoding="utf-8"))
    (tmp_path / "demo.yaml").write_text(yaml.safe_dump(demo | {"workspace": str(tmp_path / "workspace")}))
    settings = {"root": str(ROOT), "config": str(tmp_path / "demo.yaml")}
    first = airflow.ended(airflow.starting("run", **settings), timeout=900)
    assert first["ended"] == {step: ["success", 1] for step in STEPS}, first["log"]
    assert (tmp_path / "workspace" / "current" / "vectors.safetensors").is_file()
    second = airflow.ended(airflow.starting("run", **settings), timeout=300)
    assert {state for state, _ in second["ended"].values()} == {"skipped"}, second["log"]
