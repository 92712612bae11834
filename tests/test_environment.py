"""The environment that `make setup` makes: Java, torchrun, and a Spark that keeps quiet."""

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tools.finish_environment import configure_spark, filled, find_java, java_version, write_java_wrapper, write_program

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

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


@pytest.fixture
def echo_script(tmp_path: Path) -> Path:
    script = tmp_path / "echo.py"
    line = "' '.join([os.environ['LOCAL_WORLD_SIZE'], *sys.argv[1:]]) + '\\n'"  # one write: lines of ranks do not mix
    script.write_text(f"import os, sys\nsys.stdout.write({line})\n")
    return script


def fake_java(home: Path, version: str) -> Path:
    """A Java that says it is of that version, on stderr as Java does, and else echoes its arguments, one a line."""
    java = home / "bin" / "java"
    said = f'openjdk version "{version}" 2025-04-15'
    write_program(java, f"#!/bin/sh\n[ \"$1\" = -version ] && {{ echo '{said}' >&2; exit; }}\nprintf '%s\\n' \"$@\"\n")
    return java


# --- torchrun ---


@pytest.mark.parametrize("arguments", [["--nproc", "2"], ["--nproc=2"], ["--nnodes", "2", "--nproc-per-node", "3"]])
def test_all_that_stands_behind_the_script_is_the_scripts(echo_script: Path, arguments: list[str]) -> None:
    said = run("torchrun", echo_script, *arguments)
    assert said.stdout.splitlines() == [" ".join(["1", *arguments])], said.stderr


@pytest.mark.parametrize("option", ["--nproc-per-node", "--nproc_per_node"])
def test_torchruns_own_options_still_stand_before_the_script(echo_script: Path, option: str) -> None:
    said = run("torchrun", option, "2", echo_script, "--nproc", "2")
    assert said.stdout.splitlines() == ["2 --nproc 2"] * 2, said.stderr


def test_torchrun_still_fails_when_the_script_fails(tmp_path: Path) -> None:
    script = tmp_path / "fails.py"
    script.write_text("raise SystemExit(3)\n")
    said = run("torchrun", script)
    assert said.returncode == 1
    assert "failed (exitcode: 3)" in said.stderr
    assert "exitcode  : 3" in said.stderr


@pytest.mark.parametrize("ranks", [1, 2])
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


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
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


def test_a_spark_job_prints_its_own_lines_only(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(TRIVIAL_JOB)
    said = run("spark-submit", job)
    assert (said.returncode, said.stdout, said.stderr) == (0, "rows: 10\n", "")


def test_a_spark_conf_dir_of_the_users_own_is_used(tmp_path: Path) -> None:
    job = tmp_path / "job.py"
    job.write_text(TRIVIAL_JOB)
    settings = filled("log4j2.properties").replace("rootLogger.level = warn", "rootLogger.level = info")
    (tmp_path / "log4j2.properties").write_text(settings)
    said = run("spark-submit", job, SPARK_CONF_DIR=str(tmp_path))
    assert (said.returncode, said.stdout) == (0, "rows: 10\n")
    assert "INFO SparkContext" in said.stderr


@pytest.mark.long
def test_make_setup_brings_a_java_where_there_is_none(tmp_path: Path) -> None:
    project = tmp_path / "project"
    for name in ("pipeline", "training", "tools"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, project)
    job = tmp_path / "job.py"
    job.write_text(TRIVIAL_JOB)
    path = str(everything_on_the_path_but_java(tmp_path / "bin"))

    made = run("make", "-C", project, "setup", f"PYTHON={sys.executable}", PATH=path, JAVA_HOME="")
    assert made.returncode == 0, made.stderr
    assert "installing one" in made.stdout

    said = run("spark-submit", job, PATH=f"{project}/.venv/bin{os.pathsep}{path}", JAVA_HOME="")
    assert (said.returncode, said.stdout, said.stderr) == (0, "rows: 10\n", "")


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


# --- Airflow's ---


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """What `make setup-airflow` reads, with no environment yet."""
    folder = tmp_path / "a project"
    folder.mkdir()
    for name in ("Makefile", "constraints-airflow.txt"):
        shutil.copy(ROOT / name, folder)
    return folder


def fake_python(path: Path, version: str) -> Path:
    """A Python that says it is of that version; the environment it makes has a pip that fails where fail is there."""
    major, minor = version.split(".")
    in_environment = '#!/bin/sh\necho pip: "$@"; test ! -e fail\n'
    write_program(
        path,
        f"""#!/bin/sh
case "$1$2" in
    --version) echo Python {version} ;;
    -c*) exec {sys.executable} -c "import sys; sys.version_info = ({major}, {minor}, 0); $2" ;;
    -mvenv) rm -rf .venv-airflow; mkdir -p .venv-airflow/bin; cat > .venv-airflow/bin/python <<'END'
{in_environment}END
        chmod +x .venv-airflow/bin/python ;;
esac
""",
    )
    return path


@pytest.mark.parametrize("version", ["3.10", "3.15"])
def test_a_python_that_airflow_cannot_have_is_named(project: Path, tmp_path: Path, version: str) -> None:
    for name in ("python3", "python3.14", "python3.13", "python3.12", "python3.11"):
        fake_python(tmp_path / "bin" / name, version)
    said = run("make", "-C", project, "setup-airflow", PATH=f"{tmp_path}/bin{os.pathsep}{os.environ['PATH']}")
    assert said.returncode == 2
    assert f"Airflow 3.3 needs Python 3.11 to 3.14; found Python {version}, " in said.stderr
    assert "make setup-airflow PYTHON=/path/to/python3.12" in said.stderr
    assert not (project / ".venv-airflow").exists()


def test_airflows_environment_is_made_again_when_it_was_interrupted_and_left_alone_when_ready(
    project: Path, tmp_path: Path
) -> None:
    python = fake_python(tmp_path / "python", "3.12")
    make = "make", "-C", project, "setup-airflow", f"PYTHON={python}"
    (project / "fail").touch()
    assert run(*make).returncode == 2
    (project / "fail").unlink()
    again = run(*make)
    assert (again.returncode, again.stderr) == (0, "")
    assert "Making .venv-airflow with Python 3.12" in again.stdout
    assert (
        "pip: -m pip install --quiet --disable-pip-version-check -c constraints-airflow.txt apache-airflow"
        in again.stdout
    )
    assert "pip" not in run(*make).stdout
    constraints = project / "constraints-airflow.txt"
    os.utime(constraints, (constraints.stat().st_atime, (project / ".venv-airflow" / "ready").stat().st_mtime + 10))
    assert "Bringing .venv-airflow up to date" in run(*make).stdout


def test_airflows_versions_are_pinned_and_named_without_a_place() -> None:
    lines = (ROOT / "constraints-airflow.txt").read_text().splitlines()
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line)] == []
    assert any(line.startswith("apache-airflow==3.") for line in lines)
