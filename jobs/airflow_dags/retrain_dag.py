"""The retraining cycle as an Airflow 3 DAG: one task a step of jobs/retrain.py, each in shardvec's own environment.

Link this file into the dags folder (a link finds the project by itself), or copy it and set shardvec_root. It needs
Airflow and the standard library, nothing of shardvec's. A second corpus is a copy with another NAME.

Airflow Variables, all optional:
    shardvec_root      the project's folder        (default: the one this file lies in)
    shardvec_config    the cycle's YAML            (default: the demo's; a relative path starts at shardvec_root)
    shardvec_python    the Python of its steps     (default: .venv/bin/python, of shardvec_root)
    shardvec_schedule  cron line or preset         (default: @daily; none: only when triggered)

Other DAGs run on what is published with schedule=[Asset("shardvec_vectors")].
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, Asset, BaseOperator, Variable, chain
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSkipException

NAME = "shardvec"
ROOT = str(Path(__file__).resolve().parents[2])

# The one Variable that is read at every parse: Airflow has no template for a schedule, and a Variable that is set
# but not heeded would be worse than the query. AIRFLOW_VAR_SHARDVEC_SCHEDULE in the environment saves the query.
SCHEDULE = Variable.get(f"{NAME}_schedule", default="@daily")

NOTHING_NEW = 3
FOR_A_PERSON = {2: "something has to be mended first", 4: "the gates refused the new vectors; the old ones stay"}


def setting(name: str, default: str) -> str:
    """A template, so that Airflow asks for the Variable when the task runs, and not at every parse of this file."""
    return f"{{{{ var.value.get({f'{NAME}_{name}'!r}, {default!r}) }}}}"


class Step(BaseOperator):  # type: ignore[misc]  # Airflow is not there where types are checked
    """Runs one step, without a shell. Nothing new skips it, what needs a person fails at once, the rest is retried."""

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
        """The step gets SIGTERM and hands it on, so that training saves a checkpoint.

        Not the whole process group at once, as BashOperator does it: the ranks would get it three times.
        """
        if self.process.sub_process is not None:
            self.process.sub_process.terminate()


with DAG(
    f"{NAME}_retrain",
    schedule=None if SCHEDULE == "none" else SCHEDULE,
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,  # a cycle takes the corpus as it is now: a missed one has nothing to make up for
    max_active_runs=1,  # the workspace's lock would refuse a second
    # No execution_timeout: how long training may take is the corpus' affair.
    default_args={"retry_delay": timedelta(minutes=5)},
) as dag:
    # Finished work is not done again, so a retry costs what was unfinished.
    chain(
        Step(task_id="plan", retries=1),  # lists the corpus: a store that did not answer
        Step(task_id="prepare", retries=2),  # Spark tries its tasks again by itself; this is for a lost driver
        Step(task_id="train", retries=3),  # the longest, so the likeliest to be killed; goes on from its checkpoint
        Step(task_id="evaluate", retries=1),  # local arithmetic: if it fails twice, it will fail again
        Step(task_id="publish", retries=3, outlets=[Asset(f"{NAME}_vectors")]),  # a tracking server that did not answer
    )
