"""Shared by all jobs: flags, a quiet Spark session, prepare as a command, and exit codes."""

import argparse
import atexit
import logging
import os
import re
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path, PurePath

from pyspark import SparkConf
from pyspark.sql import SparkSession

from jobs.machine import prepare_folders, refuse_connect, start_java
from pipeline.dataset.manifest_file import FILE_NAME, Manifest
from pipeline.pipeline_config import PipelineConfig
from pipeline.shared.cli import Parser, check_output, command
from pipeline.shared.errors import InputError
from pipeline.shared.settings import add_flags, fields_of
from pipeline.shared.storage import Location, is_uri
from pipeline.spark.generation import CLAIM, LOCK, PREFIX, writing
from pipeline.stages import prepare
from pipeline.text.corpus import Corpus

log = logging.getLogger("pipeline")
"""What prepare prints before its result: progress at INFO, details at DEBUG."""

OUTPUT = "the dataset: a folder, or a URI such as s3://bucket/words"
PROBE = ".probe"
DATASET_FILES = (FILE_NAME, f".{FILE_NAME}.*", f"{PREFIX}????????????", LOCK, PROBE, f"{CLAIM}*")
ONE_MACHINE = re.compile(r"local(\[.*)?")
"""Spark's masters without executors on other machines."""
LOOPBACK = {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
CLOSED = {"spark.ui.enabled": "false", "spark.authenticate": "true"}
UNBOUNDED = {"spark.driver.maxResultSize": "0"}
"""The driver receives the vocabulary, whose size only memory bounds."""
SURVIVING = {"spark.executor.killOnFatalError.depth": "0"}
"""A task without memory fails, and we get its exception. Otherwise, it would end Java, and us without a word."""
BATCH_BYTES = "spark.sql.execution.arrow.maxBytesPerBatch"


def add_common_flags(parser: Parser, *omitted: str, **defaults: object) -> None:
    """Adds PipelineConfig's flags, except ``omitted``, and the flags of every job. ``defaults`` replace the fields'."""
    add_flags(parser, PipelineConfig, *omitted, **defaults)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    parser.add_verbosity("adds the seconds of each stage, and the address of Spark's web pages if they are on")


def parsed(parser: Parser) -> argparse.Namespace:
    """Parses the command line, and sets the log's level from -q and -v. Raises InputError if Spark cannot be used."""
    arguments = parser.parse_args()
    refuse_connect(os.environ)
    log.setLevel(logging.INFO - 10 * arguments.verbosity)
    return arguments


def config_from(arguments: argparse.Namespace) -> PipelineConfig:
    """The PipelineConfig of parsed flags. Raises InputError."""
    given = vars(arguments)
    return PipelineConfig(**{name: given[name] for name in fields_of(PipelineConfig) if name in given})


def build_session(name: str) -> SparkSession:
    """A quiet Spark session: spark-submit's, or one on all local cores.

    On one machine, Spark listens on loopback only, and has no web pages, unless the user's settings say otherwise.
    """
    start_java()
    prepare_folders()
    builder = SparkSession.builder.appName(name)
    for key, value in settings_of_job().items():
        builder = builder.config(key, value)
    # Under spark-submit our stderr is a pipe to Java; tools/spark-env.sh has checked whether Java's is a terminal.
    if not log.isEnabledFor(logging.INFO) or not (sys.stderr.isatty() or "PYSPARK_GATEWAY_PORT" in os.environ):
        builder = builder.config("spark.ui.showConsoleProgress", "false")
    spark = builder.getOrCreate()
    log.debug("Spark's pages: %s", spark.sparkContext.uiWebUrl or "none")
    # We get a failure as an exception. On a single machine, Spark would print it as well.
    spark.sparkContext.setLogLevel("FATAL" if str(spark.sparkContext.master).startswith("local") else "ERROR")
    if not spark.sparkContext.getConf().contains(BATCH_BYTES):
        spark.conf.set(BATCH_BYTES, "8m")  # not 64: Python starts while Java still reads, and both need less memory
    ship_code(spark)
    return spark


def settings_of_job() -> dict[str, str]:
    """What a job changes in Spark's settings, without those that the user gave."""
    given = SparkConf()  # Java, which runs already, has read the user's settings
    wanted = {**UNBOUNDED, **SURVIVING} if _is_one_machine(given) else UNBOUNDED
    return {key: value for key, value in wanted.items() if not given.contains(key)} | settings_of_one_machine()


def settings_of_one_machine() -> dict[str, str]:
    """What closes Spark to other machines, without the settings that the user gave; empty on a cluster."""
    given = SparkConf()
    if not _is_one_machine(given):
        return {}
    wanted = CLOSED if "SPARK_LOCAL_IP" in os.environ else {**LOOPBACK, **CLOSED}
    return {key: value for key, value in wanted.items() if not given.contains(key)}


def _is_one_machine(given: SparkConf) -> bool:
    return bool(ONE_MACHINE.fullmatch(str(given.get("spark.master", "local"))))


def ship_code(spark: SparkSession) -> None:
    """Sends this code to executors on other machines, where it comes before any installed version."""
    context = spark.sparkContext
    if not str(context.master).startswith("local"):
        context.addPyFile(str(code_zip()))
        # The cache of compiled code, unless NUMBA_CACHE_DIR is set. Executors often cannot write to their home, but
        # they can write to their working directory.
        context.environment.setdefault("XDG_CACHE_HOME", "cache")


@cache
def code_zip() -> Path:
    """A zip file of the ``pipeline`` package, removed when the driver ends. Equal code gives equal bytes.

    The package may itself be imported from a zip file (--py-files).
    """
    handle, name = tempfile.mkstemp(prefix="shardvec-", suffix=".zip")
    atexit.register(Path(name).unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for path, content in sorted(_contents(files("pipeline"), "pipeline")):
            archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)  # a bare ZipInfo has a fixed date
    return Path(name)


def _contents(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file of a package, except caches."""
    for entry in folder.iterdir():
        path = f"{prefix}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _contents(entry, path)
        elif entry.is_file():
            yield path, entry.read_bytes()


def run_prepare(corpus: Corpus, config: PipelineConfig, output: str, overwrite: bool) -> None:
    """Prepares ``output`` unless it exists already. Prints a summary; with -q, only warnings about the corpus."""
    try:
        location = Location.of(output)
    except InputError as error:
        raise InputError(f"--output {error}") from None
    check_dataset_folder(location)
    session = cache(lambda: build_session(f"shardvec: {output}"))  # starts Spark at the first call
    if is_there(corpus, config, location, overwrite, session):
        print(f"{output}: already there, nothing to do")
        return
    started = time.perf_counter()
    log.info("%s from %s\n%s", output, corpus.description, config)
    manifest = prepare(session(), corpus, config, location)
    session().stop()
    found = [str(manifest)] if log.isEnabledFor(logging.INFO) else manifest.remarks
    print(*found, f"{output}: dataset {manifest.dataset_id} in {time.perf_counter() - started:.1f} s", sep="\n")


def check_dataset_folder(output: Location) -> None:
    """Raises InputError unless ``output`` contains a dataset or nothing, and can be written."""
    if output.local is not None:
        check_output(Path(output.shown) if not is_uri(output.shown) else output.local, DATASET_FILES, "dataset")
        return
    with writing(output):
        names = [entry.base_name for entry in output.entries()]
        (output / PROBE).put(b"")  # the only way to find out that the bucket exists and may be written
        (output / PROBE).remove()
    foreign = sorted(name for name in names if not any(map(PurePath(name).match, DATASET_FILES)))
    if foreign:
        raise InputError(f"--output {output}: holds {foreign[0]}, which is no dataset's; name a new place")


def is_there(
    corpus: Corpus, config: PipelineConfig, output: Location, overwrite: bool, session: Callable[[], SparkSession]
) -> bool:
    """Whether ``output`` is this corpus with this config. Raises InputError if it is another dataset."""
    if overwrite or not (output / FILE_NAME).exists():
        return False
    manifest = Manifest.load(output)
    manifest.check_files(output)
    before, now = asdict(manifest.config), {**asdict(config), "preset": manifest.config.preset}  # it changes no byte
    differing = [
        f"--{name.replace('_', '-')} {before[name]}, now {now[name]}" for name in now if before[name] != now[name]
    ]
    if manifest.source_state != corpus.state(session):
        differing.append("another or a changed corpus")
    if differing:
        raise InputError(
            f"--output {output}: holds a dataset made with {'; '.join(differing)}; "
            f"add --overwrite or name another folder"
        )
    return True


def run(main: Callable[[], None]) -> None:
    """Runs a job's ``main`` as a command, with its log on stdout."""
    log.setLevel(logging.INFO)
    log.handlers = [logging.StreamHandler(sys.stdout)]
    logging.getLogger().addHandler(logging.NullHandler())  # py4j logs what it also raises
    with command("interrupted; what was there before is unchanged"):
        main()
