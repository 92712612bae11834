"""CI, the forge's workflow and pre-commit run what `make` runs, so none of them can drift from the Makefile."""

import re
import shlex

import yaml
from conftest import ROOT


def recipe(target: str) -> list[list[str]]:
    """The commands of a target of the Makefile, each as its words, without what puts the environment first."""
    found = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert found, f"no target {target}"
    return [shlex.split(line.strip().removeprefix("@").replace("$(IN_ENV) ", "")) for line in found[1].splitlines()]


def test_pre_commit_runs_the_linters_of_make_lint() -> None:
    """Whatever has changed: on the whole tree, and with the programs of .venv."""
    (local,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    commands = [shlex.split(hook["entry"]) for hook in local["hooks"]]
    assert local["repo"] == "local"
    assert all(program.startswith(".venv/bin/") for program, *_ in commands)
    assert [[program.removeprefix(".venv/bin/"), *words] for program, *words in commands] == recipe("lint")
    assert {(hook["language"], hook["pass_filenames"]) for hook in local["hooks"]} == {("system", False)}


def test_ci_and_the_workflow_run_make_test() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["make test"]
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"


def test_the_workflow_takes_the_oldest_python_that_the_project_supports() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    (python,) = [step["with"]["python-version"] for step in workflow["jobs"]["test"]["steps"] if "python" in str(step)]
    assert f'requires-python = ">={python}"' in (ROOT / "pyproject.toml").read_text()
