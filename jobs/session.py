"""What the jobs share: flags, a quiet Spark session, the summary, and exit codes."""

import argparse
import atexit
import logging
import os
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from pyspark.sql import SparkSession

from pipeline.config import PipelineConfig
from pipeline.corpus import Corpus
from pipeline.errors import InputError, check_output
from pipeline.manifest import Manifest
from pipeline.stages import prepare

DATASET_FILES = ("manifest.json", ".manifest.json.*", "gen-????????????")


def add_sampling_flags(parser: argparse.ArgumentParser, **defaults: object) -> None:
    """One flag for every field of PipelineConfig, and --overwrite; ``defaults`` replace the dataclass's own."""
    group = parser.add_argument_group("sampling")
    for name, kind, text in (
        ("window", int, "largest distance of a context, in tokens"),
        ("negatives", int, "noise words for each context (K)"),
        ("min-count", int, "rarer words become <unk>"),
        ("max-vocab", int, "keep at most this many words"),
        ("sample", float, "subsampling threshold t, a relative frequency; 0 keeps every token"),
        ("subsample-rule", str, "paper: min(1, sqrt(t/f)); word2vec: min(1, sqrt(t/f) + t/f)"),
        ("ns-exponent", float, "the noise law is count ** this"),
        ("num-shards", int, "shards an epoch; derived from the corpus when left out"),
        ("epochs", int, "independent samplings, all in one pass"),
        ("holdout", float, "share of sequences kept aside and never trained on"),
        ("max-sentence-length", int, "longer sequences are cut, in tokens"),
        ("seed", int, "any integer"),
    ):
        field = name.replace("-", "_")
        default = defaults.get(field, PipelineConfig.__dataclass_fields__[field].default)
        choices = ("paper", "word2vec") if name == "subsample-rule" else None
        shown = "" if default is None else " (default: %(default)s)"
        group.add_argument(f"--{name}", type=kind, default=default, choices=choices, help=text + shown)
    parser.add_argument("--overwrite", action="store_true", help="replace a dataset that is there")


def config_from(arguments: argparse.Namespace) -> PipelineConfig:
    """The checked PipelineConfig of parsed flags. Raises InputError."""
    return PipelineConfig(**{field.name: getattr(arguments, field.name) for field in fields(PipelineConfig)})


def build_session(name: str) -> SparkSession:
    """The session spark-submit asked for, or all local cores; quiet."""
    builder = SparkSession.builder.appName(name).config("spark.ui.showConsoleProgress", "false")
    spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("ERROR")
    ship_code(spark)
    return spark


def ship_code(spark: SparkSession) -> None:
    """Executors on other machines run this very code, whatever they have installed: it is the first they look in."""
    context = spark.sparkContext
    if not str(context.master).startswith("local"):
        context.addPyFile(str(code_zip()))
        # What numba compiles of a zip it keeps here and not in NUMBA_CACHE_DIR, and fails where that cannot be written,
        # as many an executor's home cannot. The folder an executor stands in can.
        context.environment.setdefault("XDG_CACHE_HOME", "cache")


@cache
def code_zip() -> Path:
    """The ``pipeline`` package as a zip, gone when the driver ends: equal code gives equal bytes.

    It may itself come from one (--py-files).
    """
    handle, name = tempfile.mkstemp(prefix="shardvec-", suffix=".zip")
    atexit.register(Path(name).unlink, missing_ok=True)
    with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w") as archive:
        for path, content in sorted(_contents(files("pipeline"), "pipeline")):
            archive.writestr(zipfile.ZipInfo(path), content, zipfile.ZIP_DEFLATED)  # ZipInfo has a date of its own
    return Path(name)


def _contents(folder: Traversable, prefix: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of every file of a package but caches."""
    for entry in folder.iterdir():
        path = f"{prefix}/{entry.name}"
        if entry.is_dir() and entry.name != "__pycache__":
            yield from _contents(entry, path)
        elif entry.is_file():
            yield path, entry.read_bytes()


def run_prepare(corpus: Corpus, config: PipelineConfig, output: Path, overwrite: bool) -> None:
    """Prepares ``output`` unless it is there already, and prints what it holds."""
    check_output(output, DATASET_FILES, "dataset")
    if is_there(corpus, config, output, overwrite):
        print(f"{output}: already there, nothing to do")
        return
    started = time.perf_counter()
    spark = build_session(f"shardvec: {output.name}")
    manifest = prepare(spark, corpus, config, output)
    spark.stop()
    print(summary(manifest, output, time.perf_counter() - started))


def is_there(corpus: Corpus, config: PipelineConfig, output: Path, overwrite: bool) -> bool:
    """True when ``output`` holds exactly this. Raises InputError when it holds something else."""
    if overwrite or not (output / "manifest.json").exists():
        return False
    manifest = Manifest.load(output)
    manifest.check_files(output)
    differing = [
        f"--{field.name.replace('_', '-')} {getattr(manifest.config, field.name)}, now {getattr(config, field.name)}"
        for field in fields(config)
        if getattr(manifest.config, field.name) != getattr(config, field.name)
    ]
    if manifest.source_state != corpus.state():
        differing.append("another or a changed corpus")
    if differing:
        raise InputError(
            f"--output {output}: holds a dataset made with {'; '.join(differing)}; "
            f"add --overwrite or name another folder"
        )
    return True


def summary(manifest: Manifest, output: Path, seconds: float) -> str:
    """What the dataset holds, for people, in a few lines."""
    counts = manifest.counts
    size = sum(shard.bytes for shard in manifest.shards)
    lines = [
        f"{counts.lines:,} lines, {counts.tokens:,} tokens, {counts.unknown:,} of them <unk>",
        f"vocabulary of {manifest.vocab_size:,} with <unk>",
        f"{counts.examples:,} examples, {counts.pairs:,} pairs in {manifest.sampled_epochs} sampled epoch(s)",
        f"{len(manifest.shards)} shards, {size / 1e6:.1f} MB, {size / counts.examples:.1f} bytes an example",
        f"{output}: dataset {manifest.dataset_id} in {seconds:.1f} s",
    ]
    if counts.invalid_utf8_lines:
        mended = f"{counts.invalid_utf8_lines:,} lines were not valid UTF-8; the bytes that were not became U+FFFD"
        lines.insert(1, mended)
    return "\n".join(lines)


def run(main: Callable[[], None]) -> None:
    """Runs a job's main: what the user can mend ends in one line and exit code 2, Ctrl-C in one line and 130."""
    ours = logging.getLogger("pipeline")
    ours.setLevel(logging.INFO)
    ours.handlers = [logging.StreamHandler(sys.stdout)]
    logging.getLogger().addHandler(logging.NullHandler())  # py4j logs there what it also raises
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BaseException as error:
        if not _is_interrupt(error):
            raise
        print("interrupted; what was there before is unchanged", file=sys.stderr)
        sys.exit(130)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the bottom of it: Spark's Java dies of it too, and that raises errors on top."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__context__))
