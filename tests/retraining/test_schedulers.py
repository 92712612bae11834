"""The examples of docs/retraining.md: they parse, and what they start is there."""

import configparser
import re
import shlex
from typing import Any

import pytest
import yaml
from conftest import ROOT

PAGE = ROOT / "docs" / "retraining.md"
PROJECT = "/opt/shardvec"
OF_CONFIGMAP = "/etc/shardvec/retrain.yaml"


def examples(language: str) -> list[str]:
    found = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, f"no example in {language}"
    return found


def unit(number: int) -> dict[str, dict[str, str]]:
    """The sections of a systemd unit."""
    parser = configparser.ConfigParser(interpolation=None, strict=True)
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # names keep their case
    parser.read_string(examples("ini")[number])
    return {name: dict(parser[name]) for name in parser.sections()}


def cron_job() -> Any:
    (claim, job) = yaml.safe_load_all(examples("yaml")[0])
    assert (claim["kind"], job["kind"]) == ("PersistentVolumeClaim", "CronJob")
    return job


def crontab_line() -> str:
    (line,) = [line for line in examples("crontab")[0].splitlines() if re.match(r"[0-9*]", line)]
    return line


def container() -> Any:
    (found,) = cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    return found


def commands() -> dict[str, list[str]]:
    """The command that starts a cycle, of every example."""
    cron = shlex.split(crontab_line().split("&&")[1].split(">>")[0])
    return {"cron": cron, "systemd": shlex.split(unit(0)["Service"]["ExecStart"]), "kubernetes": container()["command"]}


@pytest.mark.parametrize("scheduler", ["cron", "systemd", "kubernetes"])
def test_what_an_example_starts_is_there(scheduler: str) -> None:
    python, script, subcommand, flag, config = commands()[scheduler]
    assert python in ("python", ".venv/bin/python", f"{PROJECT}/.venv/bin/python")
    assert (subcommand, flag) == ("run", "--config")
    assert (ROOT / script).is_file()
    assert config == OF_CONFIGMAP or (ROOT / config).is_file()


def test_all_schedulers_stand_in_the_project() -> None:
    """And cron, which says `python`, finds the project's."""
    assert f"\nPATH={PROJECT}/.venv/bin:" in examples("crontab")[0]
    assert crontab_line().split("  ", 1)[1].startswith(f"cd {PROJECT} && ")
    assert (unit(0)["Service"]["WorkingDirectory"], container()["workingDir"]) == (PROJECT, PROJECT)


def test_the_crontab_has_five_fields_of_time_and_no_percent_sign() -> None:
    minute, hour, *days = crontab_line().split()[:5]
    assert (0 <= int(minute) < 60, 0 <= int(hour) < 24, days) == (True, True, ["*"] * 3)
    assert "%" not in crontab_line()


def test_what_a_person_has_to_mend_is_not_tried_again() -> None:
    service, job = unit(0)["Service"], cron_job()["spec"]["jobTemplate"]["spec"]
    fails, ignores = job["podFailurePolicy"]["rules"]
    assert service["RestartPreventExitStatus"].split() == ["2", "4"]
    assert fails["action"] == "FailJob"
    assert fails["onExitCodes"] == {"containerName": container()["name"], "operator": "In", "values": [2, 4]}
    assert ignores == {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    assert job["template"]["spec"]["restartPolicy"] == "Never"  # or Kubernetes refuses podFailurePolicy


def test_a_checkpoint_has_time_and_cycles_never_overlap() -> None:
    service, timer, spec = unit(0)["Service"], unit(1)["Timer"], cron_job()["spec"]
    assert (service["KillSignal"], service["KillMode"], service["TimeoutStopSec"]) == ("SIGTERM", "mixed", "2min")
    assert service["SuccessExitStatus"] == "143"
    assert timer["Persistent"] == "true"
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 2 * 60


def test_every_volume_is_declared_and_outlives_what_must_not_be_lost() -> None:
    pod = cron_job()["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} == set(volumes)
    claim = next(yaml.safe_load_all(examples("yaml")[0]))
    assert volumes["workspace"]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_python_example_compiles() -> None:
    compile(examples("python")[0], PAGE, "exec")


def test_the_page_names_the_variables_of_the_dag_with_their_defaults() -> None:
    dag = (ROOT / "jobs" / "airflow_dags" / "retrain_dag.py").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| `shardvec_(\w+)` \| (.*?) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    in_code = dict(re.findall(r'setting\("(\w+)", "?([^")]+)"?\)', dag))
    assert set(table) == {*in_code, "schedule"}
    assert in_code.pop("root") == "ROOT"
    assert {name: table[name] for name in in_code} == {name: f"`{default}`" for name, default in in_code.items()}
    assert table["schedule"] == "`@daily`"
    assert 'default="@daily"' in dag
