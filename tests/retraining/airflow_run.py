"""What test_airflow.py has Airflow's own Python do: loads the dags folder, runs the DAG once if asked to.

    python tests/retraining/airflow_run.py OUTPUT [run]

writes to OUTPUT, as JSON, what Airflow has made of the file; and then how the run ended.
"""

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow import settings
from airflow.dag_processing.dagbag import DagBag
from airflow.models.asset import AssetEvent, AssetModel
from sqlalchemy import select

DAG_ID = "shardvec_retrain"


def main() -> None:
    bag = DagBag()
    dag = bag.dags.get(DAG_ID)
    found = {"errors": bag.import_errors, "dags": sorted(bag.dags)}
    if dag is not None:
        found |= described(dag)
        if sys.argv[2:] == ["run"]:
            found |= ended(dag)
    Path(sys.argv[1]).write_text(json.dumps(found))


def described(dag: Any) -> dict[str, Any]:
    return {
        "schedule": dag.schedule,
        "catchup": dag.catchup,
        "max_active_runs": dag.max_active_runs,
        "tasks": {
            task.task_id: {
                "after": sorted(task.upstream_task_ids),
                "retries": task.retries,
                "retry_delay_s": task.retry_delay.total_seconds(),
                "outlets": [asset.name for asset in task.outlets],
            }
            for task in dag.tasks
        },
    }


def ended(dag: Any) -> dict[str, Any]:
    for task in dag.tasks:
        task.retry_delay = timedelta(0)
    run = dag.test()
    published = select(AssetModel.name).join(AssetEvent, AssetEvent.asset_id == AssetModel.id)
    return {
        "state": run.state,
        "ended": {task.task_id: [task.state, task.try_number] for task in run.get_task_instances()},
        "assets": list(settings.Session().scalars(published)),
    }


if __name__ == "__main__":
    main()
