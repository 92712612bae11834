"""The environments that make makes, and what is special in them: Java, torchrun, and a Spark that keeps quiet."""

import argparse
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, run_here

from tools import torchrun
from tools.finish_environment import configure_spark, filled, find_java, java_version, write_java_wrapper, write_program
from tools.install import news

BIN = Path(sys.executable).parent

SMALLEST_JOB = """
from pyspark import SparkContext

with SparkContext("local[1]", "smallest") as context:
    print("rows:", context.parallelize(range(10), 2).count())
"""
TRIVIAL_JOB = """
from pyspark.sql import SparkSession

spark = SparkSession.builder.master("local[1]").appName("trivial").getOrCreate()
print("rows:", spark.range(10).repartition(2).count())
spark.stop()
"""


def run(*command: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a command with the environment's programs first on the PATH, as in an activated environment."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("SPARK_", "PYSPARK_"))}
    path = os.pathsep.join([str(BIN), own["PATH"]])
    return subprocess.run(command, capture_output=True, text=True, env={**own, "PATH": path, **env})


def fake_java(home: Path, version: str) -> Path:
    """A Java that says it is of that version, on stderr as Java does, and else echoes its arguments, one a line."""
    java = home / "bin" / "java"
    said = f'openjdk version "{version}" 2025-04-15'
    write_program(java, f"#!/bin/sh\n[ \"$1\" = -version ] && {{ echo '{said}' >&2; exit; }}\nprintf '%s\\n' \"$@\"\n")
    return java


# --- torchrun ---


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Callable[..., argparse.Namespace]:
    """What torchrun would start, given these arguments."""
    started: list[argparse.Namespace] = []
    monkeypatch.setattr(torchrun, "run", started.append)
    for module in torchrun.WITH_A_STORE:  # torchrun replaces it in its own process
        monkeypatch.setattr(module, "TCPStore", module.TCPStore)

    def parse(*arguments: str) -> argparse.Namespace:
        monkeypatch.setattr(sys, "argv", ["torchrun", *arguments])
        torchrun.main()
        return started.pop()

    return parse


@pytest.mark.parametrize("arguments", [["--nproc", "2"], ["--nproc=2"], ["--nnodes", "2", "--nproc-per-node", "3"]])
def test_all_that_stands_behind_the_script_is_the_scripts(
    asked: Callable[..., argparse.Namespace], arguments: list[str]
) -> None:
    given = asked("train.py", *arguments)
    assert (given.nnodes, given.nproc_per_node, given.training_script_args) == ("1:1", "1", arguments)


@pytest.mark.parametrize("option", ["--nproc-per-node", "--nproc_per_node"])
def test_torchruns_own_options_still_stand_before_the_script(
    asked: Callable[..., argparse.Namespace], monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = asked(option, "2", "train.py", "--nproc", "3")
    assert (given.nproc_per_node, given.training_script_args) == ("2", ["--nproc", "3"])


@pytest.mark.long  # quick: a training that torchrun starts, tests/commands/test_train.py
def test_torchrun_starts_the_script_with_its_own_arguments(tmp_path: Path) -> None:
    script = tmp_path / "echo.py"
    line = "' '.join([os.environ['LOCAL_WORLD_SIZE'], *sys.argv[1:]]) + '\\n'"  # one write: lines of ranks do not mix
    script.write_text(f"import os, sys\nsys.stdout.write({line})\n")
    said = run("torchrun", "--nproc-per-node", "2", script, "--nproc", "3")
    assert said.stdout.splitlines() == ["2 --nproc 3"] * 2, said.stderr


def test_torchrun_still_fails_when_the_script_fails(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)\n")
    said = run("torchrun", script)
    assert said.returncode == 1
    assert "failed (exitcode: 3) local_rank: 0" in said.stderr
    assert len(said.stderr.splitlines()) == 1


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.long), 2])
def test_what_a_script_has_said_of_bad_input_is_all_that_torchrun_says(tmp_path: Path, ranks: int) -> None:
    """The other ranks are ended by torchrun."""
    script = tmp_path / "refuses.py"
    script.write_text(
        "import os, sys, time\n"
        "time.sleep(60 * (os.environ['LOCAL_RANK'] == '1'))\n"
        "sys.stderr.write('error: found this, expected that\\n')\n"
        "sys.exit(2)\n"
    )
    said = run("torchrun", "--nproc-per-node", str(ranks), script)
    assert (said.returncode, said.stdout, said.stderr) == (2, "", "error: found this, expected that\n")


@pytest.mark.parametrize(
    ("number", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.long), (signal.SIGTERM, 143)]
)
def test_a_signal_ends_torchrun_without_a_traceback(tmp_path: Path, number: signal.Signals, code: int) -> None:
    script = tmp_path / "waits.py"
    script.write_text(
        "import pathlib, signal, sys, time\n"
        f"signal.signal({number}, lambda *_: sys.exit('ended'))\n"
        "pathlib.Path(sys.argv[1]).touch()\n"
        "time.sleep(60)\n"
    )
    begun = tmp_path / "begun"
    command = [BIN / "torchrun", script, begun]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        while not begun.exists() and running.poll() is None:
            time.sleep(0.05)
        running.send_signal(number)
        stdout, stderr = running.communicate(timeout=60)
    assert (running.returncode, stdout, stderr) == (code, "", "ended\n")


# --- Java ---


@pytest.mark.parametrize(
    ("version", "major"), [("1.8.0_392", 8), ("11.0.2", 11), ("17.0.15", 17), ("21", 21), ("25-ea", 25)]
)
def test_java_is_chosen_by_its_version(tmp_path: Path, version: str, major: int) -> None:
    java = fake_java(tmp_path, version)
    assert java_version(java) == major
    expected = java if major >= 17 else None
    assert find_java({"JAVA_HOME": str(tmp_path), "PATH": ""}) == expected
    assert find_java({"PATH": str(java.parent)}) == expected


def test_no_java_is_found_where_there_is_none_or_none_that_runs(tmp_path: Path) -> None:
    write_program(tmp_path / "bin" / "java", "#!/bin/sh\necho 'version \"21\"' >&2\nexit 1\n")
    assert find_java({"PATH": str(tmp_path)}) is None
    assert find_java({"JAVA_HOME": str(tmp_path / "nowhere"), "PATH": ""}) is None
    assert find_java({"JAVA_HOME": str(tmp_path), "PATH": str(tmp_path / "bin")}) is None


def test_java_homes_java_comes_before_the_paths_unless_it_is_too_old(tmp_path: Path) -> None:
    old, new, newer = (fake_java(tmp_path / version, version) for version in ("11.0.2", "17.0.15", "21"))
    assert find_java({"JAVA_HOME": str(new.parent.parent), "PATH": str(newer.parent)}) == new
    assert find_java({"JAVA_HOME": str(old.parent.parent), "PATH": str(newer.parent)}) == newer
    assert find_java({"JAVA_HOME": str(new.parent.parent), "PATH": ""}, ignore=new.parent.parent) is None


@pytest.mark.parametrize("flag", [["--add-modules=jdk.incubator.vector"], ["--add-modules", "jdk.incubator.vector"]])
def test_the_java_wrapper_drops_the_incubating_module_and_nothing_else(tmp_path: Path, flag: list[str]) -> None:
    home = tmp_path / "of the environment"
    write_java_wrapper(home, fake_java(tmp_path / "a real java", "21"))
    others = ["-cp", "a b:*", "", "--add-modules", "java.sql", "--add-modules=java.desktop", "Main", "$HOME"]
    said = run(home / "bin" / "java", *others[:3], *flag, *others[3:])
    assert said.stdout.splitlines() == others
    assert run(home / "bin" / "java", "--add-modules").stdout.splitlines() == ["--add-modules"]


@pytest.mark.parametrize(("version", "kept"), [("17.0.15", True), ("25.0.1", False)])
def test_the_java_wrapper_opens_a_package_only_where_java_has_it(tmp_path: Path, version: str, kept: bool) -> None:
    write_java_wrapper(tmp_path, fake_java(tmp_path / "real", version))
    option = "--add-opens=java.base/sun.security.action=ALL-UNNAMED"
    said = run(tmp_path / "bin" / "java", option, "Main")
    assert said.stdout.splitlines() == ([option, "Main"] if kept else ["Main"])


def test_a_java_that_is_gone_is_named(tmp_path: Path) -> None:
    write_java_wrapper(tmp_path, tmp_path / "gone")
    said = run(tmp_path / "bin" / "java", "-version")
    assert said.returncode == 127
    assert str(tmp_path / "gone") in said.stderr
    assert "make clean setup" in said.stderr


@pytest.mark.parametrize(
    ("at_setup", "now", "wrapped"), [("", "", True), ("/old", "/old", True), ("", "/other", False)]
)
def test_a_java_home_that_was_set_since_stays(tmp_path: Path, at_setup: str, now: str, wrapped: bool) -> None:
    configure_spark(tmp_path, tmp_path / "wrapper", java_home=at_setup)
    said = run("sh", "-c", f'. {tmp_path}/spark-env.sh; echo "$JAVA_HOME"', JAVA_HOME=now)
    assert said.stdout.strip() == (str(tmp_path / "wrapper") if wrapped else now)


@pytest.mark.parametrize("on_a_terminal", [True, False])
def test_spark_draws_its_bar_on_a_terminal_only(tmp_path: Path, on_a_terminal: bool) -> None:
    configure_spark(tmp_path, tmp_path / "wrapper", java_home="")
    ours, terminal = pty.openpty()
    said = subprocess.run(
        ["sh", "-c", f'. {tmp_path}/spark-env.sh; echo "$SPARK_SUBMIT_OPTS"'],
        stdout=subprocess.PIPE,
        stderr=terminal if on_a_terminal else subprocess.PIPE,
        text=True,
    )
    os.close(ours)
    os.close(terminal)
    assert ("-Dspark.ui.showConsoleProgress=true" in said.stdout) == on_a_terminal
    assert "-XX:TieredStopAtLevel=1" in said.stdout


# --- Spark ---


@pytest.mark.parametrize(
    ("programs", "given", "host", "options"),
    [
        ({"id": "echo me", "uname": "echo localhost"}, {}, "", ""),
        ({"id": "exit 1", "uname": "echo localhost"}, {}, "", "--patch-module=jdk.security.auth={}/login"),
        ({"id": "echo me", "uname": "echo nowhere.invalid", "hostname": "echo ::1 192.0.2.7 "}, {}, "192.0.2.7", ""),
        ({"id": "echo me", "uname": "echo 12345", "hostname": "exit 1"}, {}, "127.0.0.1", ""),
        ({"id": "echo me", "uname": "echo 12345"}, {"SPARK_LOCAL_IP": "192.0.2.8"}, "", ""),
        ({"id": "echo me", "uname": "echo 12345"}, {"SPARK_LOCAL_HOSTNAME": "mine"}, "mine", ""),
        ({"id": "echo me", "uname": "echo localhost", "mktemp": "exit 1"}, {}, "", "-Djava.io.tmpdir='/var/tmp'"),
        (
            {"id": "echo me", "uname": "echo localhost", "mktemp": "echo /dev/full"},
            {"TMPDIR": "/my tmp"},
            "",
            "-Djava.io.tmpdir='/my tmp'",
        ),
    ],
)
def test_java_starts_without_a_name_of_the_user_or_of_the_host_and_without_tmp(
    tmp_path: Path, programs: dict[str, str], given: dict[str, str], host: str, options: str
) -> None:
    configure_spark(tmp_path, tmp_path / "wrapper", java_home="")
    for name, body in {"rm": ":", **programs}.items():
        write_program(tmp_path / "bin" / name, f"#!/bin/sh\n{body}\n")
    path = f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}"
    show = 'echo "${SPARK_LOCAL_HOSTNAME:-}"; echo "$SPARK_SUBMIT_OPTS"'
    said = run("bash", "-c", f"PATH={path}; . {tmp_path}/spark-env.sh; {show}", **{"TMPDIR": "", **given})
    found_host, found_options = said.stdout.splitlines()
    assert (said.stderr, found_host) == ("", host)
    expected = options.format(tmp_path / "wrapper")
    assert expected in found_options
    assert ("patch-module" in found_options, "tmpdir" in found_options) == (
        "patch-module" in expected,
        "tmpdir" in expected,
    )


@pytest.mark.parametrize(
    "content", [SMALLEST_JOB, pytest.param(TRIVIAL_JOB, marks=pytest.mark.long)], ids=["smallest", "with SQL"]
)
def test_a_spark_job_prints_its_own_lines_only(tmp_path: Path, content: str) -> None:
    job = tmp_path / "job.py"
    job.write_text(content)
    said = run("spark-submit", job)
    assert (said.returncode, said.stdout, said.stderr) == (0, "rows: 10\n", "")


@pytest.mark.long
def test_a_spark_conf_dir_of_the_users_own_is_used(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(TRIVIAL_JOB)
    settings = filled("log4j2.properties").replace("rootLogger.level = warn", "rootLogger.level = info")
    (tmp_path / "log4j2.properties").write_text(settings)
    said = run("spark-submit", job, SPARK_CONF_DIR=str(tmp_path))
    assert (said.returncode, said.stdout) == (0, "rows: 10\n")
    assert "INFO SparkContext" in said.stderr


# --- pip ---


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("Collecting numba (from shardvec==0.1.0)", None),
        ("  Downloading numba-0.68.1-cp311-cp311-manylinux_2_27_x86_64.whl (3.8 MB)", None),
        ("  Downloading numba-0.68.1-cp311-cp311-manylinux_2_27_x86_64.whl.metadata (2.9 kB)", None),
        (
            "  Downloading pyarrow-26.0.1-cp311-cp311-manylinux_2_28_x86_64.whl (55.0 MB)",
            "downloading pyarrow 26.0.1, 55 MB",
        ),
        ("Downloading torch-2.13.0-cp311-cp311-manylinux_2_28.whl (888.1 MB)", "downloading torch 2.13.0, 888 MB"),
        ("  Downloading pyspark-4.3.0.tar.gz (455.9 MB)", "downloading pyspark 4.3.0, 456 MB"),
        ("  Building wheel for pyspark (pyproject.toml): started", "building pyspark"),
        ("  Building wheel for pyspark (pyproject.toml): finished with status 'done'", None),
        ("Installing collected packages: pytz, py4j, shardvec", "installing 3 packages"),
        ("Installing collected packages: petastorm", "installing petastorm"),
        ("WARNING: Running pip as the 'root' user can result in broken permissions", None),
    ],
)
def test_of_pips_lines_those_of_long_work_are_shown(line: str, shown: str | None) -> None:
    assert news(line) == shown


# --- environments ---

COPIED = ("Makefile", "pyproject.toml", "constraints.txt", "constraints-petastorm.txt", "constraints-airflow.txt")
PIP = """
import pathlib, sys
print("Collecting a")
assert not pathlib.Path("no network").exists(), "no network"
print("Installing collected packages: a, b", flush=True)
assert not pathlib.Path("no space").exists(), "no space"
with open("pip.txt", "a") as file:
    print(*sys.argv[1:], file=file)
"""


class Project:
    """What the Makefile reads, with no environment yet, and a pip that installs nothing and notes what it was asked."""

    def __init__(self, folder: Path):
        self.folder = folder / "a project"
        shutil.copytree(ROOT / "tools", self.folder / "tools", ignore=shutil.ignore_patterns("__pycache__"))
        for name in COPIED:
            shutil.copy(ROOT / name, self.folder)
        self._modules = folder / "modules"
        (self._modules / "pip").mkdir(parents=True)
        (self._modules / "pip" / "__main__.py").write_text(PIP)
        self._programs = folder / "programs"
        for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
            self.python(name, "3.12")

    def python(self, name: str, version: str) -> Path:
        """A Python that says it is of that version, first on the PATH; the environments it makes have no pip."""
        path, (major, minor) = self._programs / name, version.split(".")
        write_program(
            path,
            f"""#!/bin/sh
case "$1$2" in
    --version) echo Python {version} ;;
    -c*) exec {sys.executable} -c "import sys; sys.version_info = ({major}, {minor}, 0); $2" ;;
    -mvenv) shift 2; exec {sys.executable} -m venv --without-pip "$@" ;;
esac
""",
        )
        return path

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(self._programs), os.environ["PATH"]])
        return run(
            "make", "--no-print-directory", "-C", self.folder, *arguments, PATH=path, PYTHONPATH=str(self._modules)
        )

    def installed(self) -> list[str]:
        """What pip was asked to install since the last time, without options."""
        asked = self.folder / "pip.txt"
        lines = asked.read_text().splitlines() if asked.exists() else []
        asked.unlink(missing_ok=True)
        return [
            re.sub(r"^install .* -c constraints[a-z-]*.txt (--no-compile |-e |--no-deps )*", "", line) for line in lines
        ]


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


@pytest.mark.parametrize(
    ("target", "version", "needs"),
    [
        ("setup", "3.10", "shardvec needs Python 3.11 or newer"),
        ("setup-petastorm", "3.10", "petastorm needs pyarrow 14, so Python 3.11 or 3.12"),
        ("setup-petastorm", "3.13", "petastorm needs pyarrow 14, so Python 3.11 or 3.12"),
        ("setup-airflow", "3.10", "Airflow 3.3 needs Python 3.11 to 3.14"),
        ("setup-airflow", "3.15", "Airflow 3.3 needs Python 3.11 to 3.14"),
    ],
)
def test_pythons_that_an_environment_cannot_have_are_named(
    project: Project, target: str, version: str, needs: str
) -> None:
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        project.python(name, version)
    said = project.make(target)
    assert said.returncode == 2
    assert f"{needs}; found Python {version}, " in said.stderr
    assert f"make {target} PYTHON=/path/to/python3.12" in said.stderr
    assert list(project.folder.glob(".venv*")) == []


def test_a_python_that_is_named_for_one_environment_need_not_fit_the_others(project: Project) -> None:
    named = f"PYTHON={project.python('new', '3.14')}"
    assert ".venv: Python 3.14" in project.make("setup", named).stdout
    assert ".venv-petastorm: Python 3.12" in project.make("setup-petastorm", named).stdout
    assert ".venv-airflow: Python 3.14" in project.make("setup-airflow", named).stdout
    assert project.make("setup", f"PYTHON={project.python('old', '3.10')}").returncode == 0  # it is there already


@pytest.mark.parametrize(
    ("target", "environment", "installed"),
    [
        ("setup", ".venv", [".[pipeline,training]"]),
        ("setup-dev", ".venv", [".[pipeline,training]", ".[pipeline,training,retrain,tune,dev]"]),
        (
            "setup-petastorm",
            ".venv-petastorm",
            [".[training,petastorm] pytest pytest-timeout pytest-xdist", "petastorm"],
        ),
        ("setup-airflow", ".venv-airflow", ["apache-airflow"]),
    ],
)
def test_an_environment_is_made_again_when_it_was_interrupted_and_left_alone_when_ready(
    project: Project, target: str, environment: str, installed: list[str]
) -> None:
    (project.folder / "no space").touch()
    failed = project.make(target)
    assert failed.returncode == 2
    assert "no space" in failed.stderr
    (project.folder / "no space").unlink()
    (project.folder / environment / "torn").touch()

    again = project.make(target)
    assert (again.returncode, again.stderr) == (0, "")
    assert f"{environment}: Python 3.12" in again.stdout
    assert project.installed() == installed
    assert not (project.folder / environment / "torn").exists()

    project.make(target)
    assert project.installed() == []


@pytest.mark.parametrize("changed", ["pyproject.toml", "constraints.txt"])
def test_an_environment_follows_its_versions(project: Project, changed: str) -> None:
    project.make("setup")
    (project.folder / ".venv" / "kept").touch()
    later = (project.folder / ".venv" / "ready").stat().st_mtime + 10
    os.utime(project.folder / changed, (later, later))
    project.installed()
    assert ".venv: bringing up to date" in project.make("setup").stdout
    assert project.installed() == [".[pipeline,training]"]
    assert (project.folder / ".venv" / "kept").exists()


def test_the_environment_for_running_grows_by_what_others_need(project: Project) -> None:
    project.make("setup")
    (project.folder / ".venv" / "kept").touch()
    assert project.installed() == [".[pipeline,training]"]
    assert project.make("setup-retrain").stdout.splitlines()[0] == ".venv: adding MLflow and Optuna: 0.2 GB"
    assert project.installed() == [".[pipeline,training,retrain,tune]"]
    project.make("setup-dev")
    assert project.installed() == [".[pipeline,training,retrain,tune,dev]"]
    for target in ("setup", "setup-retrain", "setup-dev"):
        project.make(target)
    assert project.installed() == []
    assert (project.folder / ".venv" / "kept").exists()


@pytest.mark.parametrize(("trouble", "whole"), [("no network", True), ("no space", False)])
def test_growing_that_fails_spoils_an_environment_only_once_something_is_installed(
    project: Project, trouble: str, whole: bool
) -> None:
    project.make("setup")
    project.installed()
    (project.folder / trouble).touch()
    failed = project.make("setup-dev")
    assert failed.returncode == 2
    assert trouble in failed.stderr
    (project.folder / trouble).unlink()
    project.make("setup")
    assert project.installed() == ([] if whole else [".[pipeline,training]"])


def test_what_running_installs_is_no_tool_of_developers() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {extra: {re.split(r"[^\w-]", wanted)[0] for wanted in extras[extra]} for extra in extras}
    assert names["dev"] >= {"pytest", "mypy", "ruff", "gensim", "triton"}
    assert (names["pipeline"] | names["training"]) & (names["retrain"] | names["dev"]) == set()


@pytest.mark.parametrize("environment", ["", "-petastorm", "-airflow"])
def test_versions_are_pinned_and_named_without_a_place(environment: str) -> None:
    lines = (ROOT / f"constraints{environment}.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []


def test_retraining_without_its_packages_names_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs import retrain

    monkeypatch.setitem(sys.modules, "yaml", None)
    arguments = "status", "--config", ROOT / "examples" / "retrain-demo.yaml"
    run_here(retrain.main, arguments, monkeypatch, capsys).assert_refused("PyYAML", "make setup-retrain")


@pytest.mark.long
def test_make_setup_brings_a_java_where_there_is_none_and_little_else(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("pipeline", "training", "tools"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in COPIED:
        shutil.copy(ROOT / name, project)
    job = tmp_path / "job.py"
    job.write_text(TRIVIAL_JOB)
    path = str(everything_on_the_path_but_java(tmp_path / "bin"))

    made = run("make", "-C", project, "setup", f"PYTHON={sys.executable}", PATH=path, JAVA_HOME="")
    assert made.returncode == 0, made.stderr
    assert "installing one" in made.stdout
    assert len(made.stdout.splitlines()) < 20

    said = run("spark-submit", job, PATH=f"{project}/.venv/bin{os.pathsep}{path}", JAVA_HOME="")
    assert (said.returncode, said.stdout, said.stderr) == (0, "rows: 10\n", "")

    listed = run(project / ".venv" / "bin" / "python", "-m", "pip", "list", "--format", "freeze").stdout
    names = {line.partition("==")[0].lower() for line in listed.splitlines()}
    assert names >= {"torch", "pyspark", "numba"}
    assert names & {"gensim", "duckdb", "moto", "flask", "mypy", "ruff", "mlflow-skinny", "pytest"} == set()
    if "+cpu" in listed:
        assert "triton" not in names
        assert int(run("du", "-sm", project / ".venv").stdout.split()[0]) < 2200


def everything_on_the_path_but_java(folder: Path) -> Path:
    """A folder of links to all programs on the PATH, the first of each name, without Java."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        if Path(place) == BIN or not Path(place).is_dir():
            continue
        for program in Path(place).iterdir():
            if program.name != "java" and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program)
    return folder


# --- targets ---


def helped() -> dict[str, list[str]]:
    """The targets that `make help` lists, by who needs them."""
    groups: dict[str, list[str]] = {}
    for line in run("make", "-C", ROOT, "--no-print-directory", "help").stdout.splitlines():
        if found := re.match(r"  make ([a-z-]+) +\S", line):
            groups[list(groups)[-1]].append(found[1])
        else:
            groups[line] = []
    return groups


def test_help_lists_every_target_by_who_needs_it() -> None:
    """And is what plain `make` does."""
    assert run("make", "-C", ROOT).stdout == run("make", "-C", ROOT, "help").stdout
    groups = helped()
    assert list(groups) == ["For users:", "For developers:", "For both:"]
    assert {"run", "setup", "setup-retrain"} <= set(groups["For users:"])
    assert {"test", "test-all", "lint"} <= set(groups["For developers:"])
    phony = re.findall(r"^\.PHONY: (.+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[0].split()
    assert sorted(target for group in groups.values() for target in group) == sorted({*phony} - {"chromium"})


@pytest.mark.parametrize(
    ("target", "installs", "runs"),
    [
        ("help", [], ["awk"]),
        ("clean", [], ["rm"]),
        ("run", ["pipeline,training"], ["tools/run.sh"]),
        (
            "lint",
            ["pipeline,training", "pipeline,training,retrain,tune,dev"],
            ["ruff check", "ruff format --check", "mypy"],
        ),
        ("bench", ["pipeline,training", "pipeline,training,retrain,tune,dev"], ["benchmarks/train.py"]),
        (
            "test",
            ["pipeline,training", "pipeline,training,retrain,tune,dev", "training,petastorm"],
            [
                "ruff check",
                "mypy",
                'pytest -n 2 --dist loadfile --timeout 240 -m "not long"',
                "tests/reading/test_readers.py",
            ],
        ),
        (
            "test-all",
            ["pipeline,training", "pipeline,training,retrain,tune,dev", "training,petastorm"],
            ["apache-airflow", "chromium", "mypy", '-m "not long"', "-m long", "tests/runs/test_warm_start.py"],
        ),
    ],
)
def test_a_target_makes_the_environments_that_it_needs_and_no_others(
    project: Project, target: str, installs: list[str], runs: list[str]
) -> None:
    planned = project.make("-n", target)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert sorted(re.findall(r"-e '\.\[(.*)]'", planned.stdout)) == sorted(installs)
    assert [command for command in runs if command not in planned.stdout] == []


def test_files_that_make_gives_to_pytest_are_there(project: Project) -> None:
    named = set(re.findall(r"tests/[\w/]+\.py", project.make("-n", "test-all").stdout))
    assert len(named) > 10
    assert {name for name in named if not (ROOT / name).is_file()} == set()
