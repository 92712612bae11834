"""The retraining cycle as an Airflow 3 DAG: one task per step of jobs/retrain.py, each in shardvec's own environment.

Put a link to this file into the dags folder (the file then finds the project through the link), or copy the file and
set shardvec_root. The file imports only Airflow and the standard library. For a second corpus, copy the file and
change NAME.

Airflow Variables, all optional:
    shardvec_root      the project's folder        (default: the folder that contains this file)
    shardvec_config    the cycle's YAML            (default: the demo's; a relative path starts at shardvec_root)
    shardvec_python    the Python for the steps    (default: .venv/bin/python, in shardvec_root)
    shardvec_schedule  cron line or preset         (default: @daily; none: only when triggered)

To run another DAG after each publication, give it schedule=[Asset("shardvec_vectors")].
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, Asset, BaseOperator, Variable, chain
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

NAME = "shardvec"
ROOT = str(Path(__file__).resolve().parents[2])

# The only Variable that is read at every parse of this file, because Airflow has no templates for schedules. Setting
# AIRFLOW_VAR_SHARDVEC_SCHEDULE in the environment avoids the query.
SCHEDULE = Variable.get(f"{NAME}_schedule", default="@daily")

NOTHING_NEW = 3
FOR_A_PERSON = {2: "something has to be fixed first", 4: "the gates refused the new vectors; the old ones stay"}


def setting(name: str, default: str) -> str:
    """A template, so that Airflow reads the Variable when the task runs, and not at every parse of this file."""
    return f"{{{{ var.value.get({f'{NAME}_{name}'!r}, {default!r}) }}}}"


class Step(BaseOperator):  # type: ignore[misc]  # Airflow is not installed where types are checked
    """Runs one step, without a shell.

    Skips if nothing is new. Fails without a retry if a person has to act. Any other failure is retried.
    """

    template_fields = ("root", "config", "python")

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.root = setting("root", ROOT)
        self.config = setting("config", "examples/retrain-demo.yaml")
        self.python = setting("python", ".venv/bin/python")
        self.process = SubprocessHook()

    def execute(self, context: Any) -> None:
        command = [self.python, "jobs/retrain.py", self.task_id, "--config", self.config]
        code = self.process.run_command(command, cwd=self.root).exit_code
        if code == NOTHING_NEW and self.task_id == "plan":
            raise AirflowSkipException("nothing is new")
        if code in FOR_A_PERSON:
            raise AirflowFailException(f"{self.task_id}: {FOR_A_PERSON[code]}; the lines above say what")
        if code != 0:
            raise AirflowException(f"{self.task_id} ended with exit code {code}")

    def on_kill(self) -> None:
        """Sends SIGTERM to the step, which passes it on, so that training saves a checkpoint.

        BashOperator would signal the whole process group, and the ranks would get SIGTERM three times.
        """
        if self.process.sub_process is not None:
            self.process.sub_process.terminate()


with DAG(
    f"{NAME}_retrain",
    schedule=None if SCHEDULE == "none" else SCHEDULE,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # a cycle uses the current corpus, so missed cycles need not be repeated
    max_active_runs=1,  # the workspace's lock would refuse a second run
    # No execution_timeout: the time that training needs depends on the corpus.
    default_args={"retry_delay": timedelta(minutes=5)},
) as dag:
    # A retry repeats only unfinished work.
    chain(
        Step(task_id="plan", retries=1),  # lists the corpus: the store may not have answered
        Step(task_id="prepare", retries=2),  # Spark retries its tasks itself; this is for a lost driver
        Step(task_id="train", retries=3),  # the longest step, so the likeliest to be killed; resumes from a checkpoint
        Step(task_id="evaluate", retries=1),  # local arithmetic: if it fails twice, it will fail again
        Step(task_id="publish", retries=3, outlets=[Asset(f"{NAME}_vectors")]),  # a tracking server may not answer
    )
