"""Laws of training/train.py and training.neighbors on bad input: exit code 2, one line, and nothing is touched.

Most cases run ``main`` in this process, since a process of its own takes seconds to import torch.
"""

import json
import math
import os
import pty
import re
import shutil
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from conftest import ROOT, Command
from launch import TRAIN, completed
from ranks import train_here
from safetensors.torch import save_file
from tiny import damage_page, edit, tree

from pipeline.dataset.manifest_file import FORMAT_VERSION, Manifest
from pipeline.dataset.vocab import Vocab
from pipeline.shared.errors import InputError
from training import neighbors, train
from training.reading.plan import plan_epoch
from training.runs import metrics, recorder
from training.runs.run_folder import write_pages, write_vectors
from training.train_config import TrainConfig, parse

pytestmark = pytest.mark.usefixtures("no_pages")

TORCHRUN = str(ROOT / "tools" / "torchrun.py")
QUICK = ("--dim", "4", "--epochs", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.fixture
def training(call: Command) -> Command:
    return lambda *arguments: call(train.main, *QUICK, *arguments)


@pytest.fixture
def data(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "data"))


@pytest.fixture
def run(pristine: Path, tmp_path: Path) -> Path:
    """A finished run's folder, as far as its readers look."""
    folder = tmp_path / "run"
    folder.mkdir()
    manifest = Manifest.load(pristine)
    table = torch.randn(manifest.vocab_size, 4, generator=torch.Generator().manual_seed(0))
    table[0] = 0
    save_file({"center": table, "context": table.clone()}, folder / "vectors.safetensors")
    shutil.copy(pristine / manifest.vocab_path, folder / "vocab.parquet")
    settings = asdict(TrainConfig(data=str(pristine), output=folder))
    (folder / "config.json").write_text(json.dumps(settings, default=str))
    (folder / "metrics.jsonl").write_text("")
    (folder / "summary.json").write_text("{}")
    return folder


def edit_manifest(**values: object) -> Callable[[Path], None]:
    """Replaces fields of the manifest; None takes one away."""

    def damage(data: Path) -> None:
        record = {**json.loads((data / "manifest.json").read_text()), **values}
        present = {name: value for name, value in record.items() if value is not None}
        (data / "manifest.json").write_text(json.dumps(present))

    return damage


def vocab(data: Path) -> Path:
    return data / Manifest.load(data).vocab_path


def shard(data: Path, number: int = 1) -> Path:
    return data / Manifest.load(data).shards[number].path


# Settings


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", "--epochs found 0 expected 1"),
        ("--epochs -3", "--epochs found -3"),
        ("--lr -1", "--lr found -1.0"),
        ("--lr 0", "--lr found 0.0"),
        ("--lr nan", "--lr found nan"),
        ("--lr inf", "--lr found inf"),
        ("--lr 1e31", "--lr found 1e+31 1e+30"),
        ("--dim 0", "--dim found 0"),
        ("--dim -8", "--dim found -8"),
        ("--sync-every 0", "--sync-every found 0 expected 1 or more"),
        ("--sync-every -8", "--sync-every found -8"),
        ("--sync-every 8 --optimizer adam", "--optimizer found adam sgd or rowwise_adagrad --sync-every 8 or 1"),
        (
            "--optimizer rowwise_adagrad",
            "--optimizer found rowwise_adagrad adam or sgd or adagrad --sync-every N above 1",
        ),
        ("--kernel cuda", "--kernel found cuda reference cpu"),
        ("--kernel cpu --device cuda", "--kernel found cpu reference cuda"),
        ("--global-batch 0", "--global-batch found 0"),
        ("--global-batch 500", "--global-batch found 500 --lanes 16 512"),
        ("--global-batch 8", "--global-batch found 8 --lanes 16 16"),
        ("--lanes 0", "--lanes found 0"),
        ("--lanes 7 --global-batch 512", "--global-batch found 512 --lanes 7 518"),
        ("--lanes 5000", "--lanes found 5000"),
        ("--log-every 0", "--log-every found 0"),
        ("--threads 0", "--threads found 0"),
        ("--nproc 0", "--nproc found 0"),
        ("--nproc -2", "--nproc found -2"),
        ("--nproc 3", "3 processes --lanes 16 1, 2, 4, 8, 16"),
        ("--nproc 32", "32 processes --lanes 16"),
    ],
)
def test_a_setting_that_cannot_be_is_named(
    training: Command, pristine: Path, tmp_path: Path, flags: str, words: str
) -> None:
    ended = training("--data", pristine, "--output", tmp_path / "out", *flags.split())
    ended.assert_refused(*words.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", ["--optimizer foo", "--epochs many", "--dimension 3", "--device tpu", "--lr", "stray"]
)
def test_a_flag_that_is_not_understood_is_refused_in_one_line_too(training: Command, flags: str) -> None:
    training(*flags.split()).assert_refused(flags.split()[0])


@pytest.mark.parametrize(
    "flags",
    [
        "--threads 1000000",
        "--dim 1000000000",
        "--lanes 100000000 --global-batch 100000000",
        "--global-batch 160000000000",
        "--epochs 1000000000",
    ],
)
def test_a_number_that_no_machine_can_serve_is_refused_at_once(flags: str) -> None:
    """Segmentation faults, allocations of terabytes and plans of weeks are no answers."""
    with pytest.raises(InputError, match="|".join(flags.split()[::2])):
        parse(flags.split())


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("nproc", [1, 2])
def test_a_gpu_that_is_not_there_is_refused_before_processes_are_made(
    training: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nproc: int
) -> None:
    monkeypatch.setattr(train, "spawn", must_not_run)
    ended = training("--data", pristine, "--output", tmp_path / "out", "--device", "cuda", "--nproc", nproc)
    ended.assert_refused("--device", "cuda")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("gpu", "kernel"), [(False, "cuda"), (True, "cpu")])
def test_a_kernel_that_is_not_for_the_device_found_is_refused(
    call: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpu: bool, kernel: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    ended = call(train.main, "--data", pristine, "--output", tmp_path / "out", "--kernel", kernel)
    ended.assert_refused("--kernel", f"found {kernel}", "the device is")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_fewer_gpus_than_processes_is_said_once_over_all_ranks(
    pristine: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    device: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(train, "joined", must_not_run)
    flags = ["--data", str(pristine), "--output", str(tmp_path / "out"), "--device", device]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    for rank in ("0", "1"):
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, rank)
        for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
            monkeypatch.setenv(name, "2")
        with pytest.raises(SystemExit, match="2"):
            train.main()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "--device" in lines[0]


def must_not_run(*_: object) -> None:
    raise AssertionError("this is too late for the error")


# The dataset


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(shutil.rmtree, "no manifest.json prepare", id="no folder"),
        pytest.param(lambda data: (data / "manifest.json").unlink(), "no manifest.json prepare", id="no manifest"),
        pytest.param(
            lambda data: edit(data / "manifest.json", lambda old: b""), "manifest.json cannot be read", id="empty"
        ),
        pytest.param(
            lambda data: edit(data / "manifest.json", lambda old: old[: len(old) // 2]),
            "manifest.json cannot be read",
            id="half a manifest",
        ),
        pytest.param(
            lambda data: edit(data / "manifest.json", lambda old: b"\xff\0" + old),
            "manifest.json cannot be read",
            id="binary manifest",
        ),
        pytest.param(
            edit_manifest(format_version=FORMAT_VERSION + 1),
            f"version {FORMAT_VERSION + 1} expected {FORMAT_VERSION}; newer",
            id="newer format",
        ),
        pytest.param(
            edit_manifest(format_version=0), f"version 0 expected {FORMAT_VERSION}; prepare", id="older format"
        ),
        pytest.param(edit_manifest(dataset_id=None), "manifest.json dataset_id", id="no dataset_id"),
        pytest.param(edit_manifest(dataset_id="0"), "manifest.json dataset_id", id="another's dataset_id"),
        pytest.param(edit_manifest(shards=None), "manifest.json shards", id="no shards listed"),
        pytest.param(edit_manifest(vocab_size=5), "vocab", id="another vocab_size"),
        pytest.param(edit_manifest(max_len=7), "max_len", id="another max_len"),
        pytest.param(lambda data: shard(data).unlink(), "shard-00001.parquet missing", id="a missing shard"),
        pytest.param(
            lambda data: edit(shard(data), lambda old: old[:-1]), "shard-00001.parquet bytes", id="a truncated shard"
        ),
        pytest.param(
            lambda data: edit(shard(data), lambda old: b""), "shard-00001.parquet 0 bytes", id="an emptied shard"
        ),
        pytest.param(lambda data: vocab(data).unlink(), "vocab.parquet missing", id="no vocabulary"),
        pytest.param(
            lambda data: edit(vocab(data), lambda old: old[:100]), "vocab.parquet", id="a truncated vocabulary"
        ),
    ],
)
def test_a_dataset_that_is_not_whole_is_refused_and_left_as_it_is(
    training: Command, data: Path, tmp_path: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(data)
    before = tree(data)
    training("--data", data, "--output", tmp_path / "out").assert_refused(str(data), *words.split())
    assert tree(data) == before
    assert not (tmp_path / "out").exists()


def test_data_that_is_a_file_is_refused(training: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    training("--data", tmp_path / "file", "--output", tmp_path / "out").assert_refused("file", "no manifest.json")


def test_a_vocabulary_of_as_many_other_words_is_refused(training: Command, data: Path, tmp_path: Path) -> None:
    """Otherwise every vector would get another word's name."""
    honest = Vocab.read(vocab(data))
    words = honest.words.to_pylist()
    words[1], words[2] = words[2], words[1]
    Vocab(pa.array(words), honest.counts_V).write(vocab(data))
    before = tree(data)
    training("--data", data, "--output", tmp_path / "out").assert_refused(str(vocab(data)), "words", "prepare")
    assert tree(data) == before
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize("column", ["center", "contexts_negatives", "num_contexts"])
def test_a_damaged_page_is_named(training: Command, data: Path, tmp_path: Path, column: str) -> None:
    damage_page(shard(data), column)
    ended = training("--data", data, "--output", tmp_path / "out")
    ended.assert_refused(str(shard(data)), "damaged", "prepare", "--overwrite")
    assert not (tmp_path / "out" / "summary.json").exists()
    assert not (tmp_path / "out" / "vectors.safetensors").exists()


@pytest.mark.parametrize(
    ("old", "new"),
    [(b"num_contexts", b"num_contextz"), (b"contexts_negatives", b"contexts_\xffegatives"), (b"PAR1", b"PAR2")],
)
def test_a_damaged_footer_is_named(training: Command, data: Path, tmp_path: Path, old: bytes, new: bytes) -> None:
    edit(shard(data), lambda content: content.replace(old, new))
    training("--data", data, "--output", tmp_path / "out").assert_refused(str(shard(data)), "prepare")


@pytest.mark.parametrize("read_by", ["one rank", "both ranks"])
def test_a_damaged_page_ends_all_ranks_with_one_line_written_last(data: Path, tmp_path: Path, read_by: str) -> None:
    """With two lanes each rank reads the half of an epoch; with more, all ranks read parts of every row group."""
    lanes = 2 if read_by == "one rank" else 16
    manifest = Manifest.load(data)
    plan = plan_epoch(manifest.select(0), manifest.row_group_rows, 0, 0, lanes, 512)
    path = shard(data, plan.lanes[1][-1].shard)
    damage_page(path, "contexts_negatives")
    flags = ["--data", data, "--output", tmp_path / "out", "--lanes", lanes, *QUICK, "--nproc", 2]
    begin = time.monotonic()
    ended = train_here(*flags, logs=tmp_path)
    assert time.monotonic() - begin < 60
    lines = ended.stderr.splitlines()
    assert ended.code == 2
    assert [str(path) in line for line in lines if line.startswith("error: ")] == [True], ended.stderr
    assert lines[-1].startswith("error: "), ended.stderr
    assert not (tmp_path / "out" / "summary.json").exists()


# The run's folder


def test_a_finished_run_is_not_touched_without_overwrite(training: Command, pristine: Path, run: Path) -> None:
    before = tree(run)
    training("--data", pristine, "--output", run).assert_refused(str(run), "finished run", "--overwrite")
    assert tree(run) == before


@pytest.mark.parametrize("name", ["data", "settings", "page"])
def test_overwriting_keeps_the_old_run_until_there_is_a_new_one(
    training: Command, data: Path, run: Path, name: str
) -> None:
    before = tree(run)
    if name == "data":
        (data / "manifest.json").unlink()
    if name == "page":
        damage_page(shard(data), "contexts_negatives")
    flags = ["--global-batch", "500"] if name == "settings" else []
    assert training("--data", data, "--output", run, "--overwrite", *flags).code == 2
    assert {file: content for file, content in tree(run).items() if file in before} == before


def test_overwriting_leaves_the_new_run_and_nothing_of_the_old(
    training: Command, pristine: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "write_pages", write_pages)
    before = tree(run)
    assert training("--data", pristine, "--output", run, "--overwrite").code == 0
    after = tree(run)
    assert sorted(name for name in after if not name.startswith(("checkpoints", "tensorboard"))) == sorted(
        [*before, "loss.png", "report.html"]
    )
    assert [name for name in before if after[name] == before[name]] == ["vocab.parquet"]


def test_overwriting_leaves_the_folder_itself_where_it_is(
    training: Command, pristine: Path, run: Path, tmp_path: Path
) -> None:
    """It can be a link, a mounted disk or the folder we are in, none of which can be moved away."""
    (tmp_path / "link").symlink_to(run)
    folder = run.stat().st_ino
    assert training("--data", pristine, "--output", tmp_path / "link", "--overwrite").code == 0
    assert (run.stat().st_ino, (run / "summary.json").read_text() != "{}") == (folder, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "run"]


@pytest.mark.parametrize(
    "names",
    ["notes.txt", "config.json main.py", "vocab.parquet train/shard.parquet", "metrics.jsonl .git/HEAD"],
)
@pytest.mark.parametrize("overwrite", [False, True], ids=["", "--overwrite"])
def test_a_folder_of_somebody_elses_files_is_refused_and_left_as_it_is(
    training: Command, pristine: Path, tmp_path: Path, names: str, overwrite: bool
) -> None:
    """A project's own config.json, or a dataset's vocab.parquet, does not make its folder a run's."""
    for name in names.split():
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_text('{"mine": 1}')
    before = tree(tmp_path / "mine")
    flags = ["--overwrite"] if overwrite else []
    ended = training("--data", pristine, "--output", tmp_path / "mine", *flags)
    ended.assert_refused(str(tmp_path / "mine"), "no run's")
    assert tree(tmp_path / "mine") == before


@pytest.mark.parametrize("folder", ["", "gen-tiny"])
def test_a_dataset_is_never_taken_for_a_runs_folder(training: Command, data: Path, folder: str) -> None:
    before = tree(data)
    training("--data", data, "--output", data / folder, "--overwrite").assert_refused("--output")
    assert tree(data) == before


@pytest.mark.parametrize(
    "below", ["", "run", "a/b/run", "x" * 300], ids=["a file", "below it", "deep below it", "long"]
)
@pytest.mark.parametrize("nproc", [1, 2])
def test_an_output_that_cannot_be_made_is_refused_before_processes_are_made(
    training: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below: str, nproc: int
) -> None:
    monkeypatch.setattr(train, "spawn", must_not_run)
    (tmp_path / "file").write_text("text")
    output = tmp_path / below if len(below) > 255 else tmp_path / "file" / below
    ended = training("--data", pristine, "--output", output, "--nproc", nproc)
    ended.assert_refused("--output", str(output))
    assert tree(tmp_path) == {"file": b"text"}


# Training


SLOW = "--lr 1e30 --sync-every 3 --global-batch 256 --kernel reference"
DIVERGING = [
    "--lr 1e30",
    "--lr 1e30 --kernel reference",
    "--lr 1e30 --optimizer sgd",
    "--lr 1e30 --sync-every 3 --global-batch 256",
    SLOW,
    "--lr 1e30 --sync-every 3 --global-batch 256 --optimizer rowwise_adagrad",
]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize(
    ("flags", "log_every"),
    [
        pytest.param(flags, log_every, marks=[pytest.mark.long] if (flags, log_every) == (SLOW, 50) else [])
        for flags in DIVERGING
        for log_every in (2, 50)
    ],
)
def test_a_run_that_diverges_says_so_and_leaves_no_vectors(
    training: Command, pristine: Path, tmp_path: Path, flags: str, log_every: int
) -> None:
    """Said at a line of the metrics, or at the epoch's end."""
    ended = training("--data", pristine, "--output", tmp_path / "out", "--log-every", log_every, *flags.split())
    ended.assert_refused("--lr", f"{float(flags.split()[1]):g}", "by step ")
    assert not (tmp_path / "out" / "summary.json").exists()
    assert not (tmp_path / "out" / "vectors.safetensors").exists()


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_tables_that_the_last_step_of_all_ruins_are_not_saved(
    training: Command, pristine: Path, tmp_path: Path
) -> None:
    """Losses of 1e36 are numbers, and so are the tables that made them; the squares of their gradients are none."""
    ended = training("--data", pristine, "--output", tmp_path / "out", "--global-batch", 2048, "--lr", 1e18)
    ended.assert_refused("--lr", "vectors that are no numbers by step 2")
    assert not (tmp_path / "out" / "vectors.safetensors").exists()


@pytest.mark.parametrize("flags", [DIVERGING[0], DIVERGING[3]])
def test_two_ranks_that_diverge_say_so_in_one_line_and_an_old_run_stays(
    pristine: Path, run: Path, tmp_path: Path, flags: str
) -> None:
    before = tree(run)
    arguments = ["--data", pristine, "--output", run, "--overwrite", *QUICK, "--nproc", 2, *flags.split()]
    ended = train_here(*arguments, logs=tmp_path)
    ended.assert_refused("--lr", "1e+30", "by step ")
    assert {file: content for file, content in tree(run).items() if file in before} == before


@pytest.mark.parametrize(
    ("flags", "used"),
    [
        ("", ("adam", 0.002, 512)),
        ("--optimizer adagrad", ("adagrad", 0.05, 512)),
        ("--optimizer sgd --lr 0.2", ("sgd", 0.2, 512)),
        ("--sync-every 8", ("sgd", 0.025, 65_536)),
        ("--sync-every 8 --optimizer rowwise_adagrad", ("rowwise_adagrad", 0.05, 65_536)),
        ("--sync-every 8 --lr 0.1 --global-batch 512", ("sgd", 0.1, 512)),
        ("--lanes 3", ("adam", 0.002, 510)),
    ],
)
def test_usual_values_follow_the_mode_and_the_runs_config_holds_what_was_used(
    training: Command, pristine: Path, tmp_path: Path, flags: str, used: tuple[str, float, int]
) -> None:
    assert training("--data", pristine, "--output", tmp_path / "out", *flags.split()).code == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["optimizer"], config["lr"], config["global_batch"]) == used


@pytest.mark.parametrize("seed", [-5, 10**20])
def test_any_integer_is_a_seed(training: Command, pristine: Path, tmp_path: Path, seed: int) -> None:
    assert training("--data", pristine, "--output", tmp_path / "out", "--seed", seed).code == 0


def test_metrics_are_json_and_their_losses_numbers(training: Command, pristine: Path, tmp_path: Path) -> None:
    assert training("--data", pristine, "--output", tmp_path / "out", "--log-every", 2).code == 0
    lines = (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["step"] * 3 + ["epoch"]
    assert all(math.isfinite(json.loads(line)["loss"]) for line in lines)


def test_a_dataset_that_is_replaced_while_the_last_batches_are_trained_costs_no_run(
    training: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """prepare --overwrite takes away the old generation, and training may just have read the last of it."""
    vocabulary = vocab(data).read_bytes()

    def write_late(*arguments: Any) -> Any:
        shutil.rmtree(data)
        return write_vectors(*arguments)

    monkeypatch.setattr(recorder, "write_vectors", write_late)
    assert training("--data", data, "--output", tmp_path / "out").code == 0
    assert (tmp_path / "out" / "vocab.parquet").read_bytes() == vocabulary


# What is printed

STEP = re.compile(r"step \d+/\d+: epoch 1, loss \d\.\d{4}, [\d,]+ tokens/s, about \d\d:\d\d left")
EPOCH = re.compile(r"epoch 1/1: loss \d\.\d{4}, [\d,]+ examples in \d+\.\d s, [\d,]+ tokens/s")
LAST = re.compile(r"loss \d\.\d{3}, \d+\.\d tokens/sec on cpu")


def said(training: Command, data: Path, output: Path, *flags: str) -> list[str]:
    """The lines of a run that went well, but for one on compiling, and nothing on stderr."""
    ended = training("--data", data, "--output", output, "--overwrite", "--global-batch", 256, "--log-every", 2, *flags)
    assert (ended.code, ended.stderr) == (0, "")
    return [line for line in ended.stdout.splitlines() if not line.startswith("compiled ")]


def test_a_log_has_the_derived_numbers_with_their_arithmetic_then_epochs_then_the_result(
    training: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "FIRST_LINE_S", 1e9)
    first, batch, _, tables, epoch, report, last = said(training, pristine, tmp_path / "out")
    assert first.startswith(f"{pristine}: ")
    assert batch.startswith("global batch 256 = 1 rank(s) x 256 rows, 1 epochs, ")
    assert tables == "2 tables x 61 words x 4 numbers x 4 bytes = 0.0 MB"
    assert EPOCH.fullmatch(epoch)
    assert report == f"{tmp_path / 'out' / 'report.html'} shows the run"
    assert LAST.fullmatch(last)


def test_quiet_prints_the_last_line_and_verbose_one_for_each_of_the_metrics(
    training: Command, pristine: Path, tmp_path: Path
) -> None:
    (only,) = said(training, pristine, tmp_path / "out", "-q")
    assert LAST.fullmatch(only)
    verbose = said(training, pristine, tmp_path / "out", "-v")
    recorded = [json.loads(line)["kind"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert recorded.count("step") > 3
    assert sum(bool(STEP.fullmatch(line)) for line in verbose) == recorded.count("step")
    assert [line for line in verbose if re.match("step .* about 00:00 left", line)]


def test_a_log_says_how_far_a_long_run_is_and_how_long_it_still_takes(
    training: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some seconds, and then now and then."""
    monkeypatch.setattr(metrics, "FIRST_LINE_S", 0)
    found = [line for line in said(training, pristine, tmp_path / "out") if line.startswith("step ")]
    assert len(found) == 1
    assert STEP.fullmatch(found[0])


def test_a_terminal_shows_a_bar_and_a_pipe_beside_it_plain_lines(
    training: Command, pristine: Path, tmp_path: Path
) -> None:
    ours, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    with open(terminal, "w") as stderr, redirect_stderr(stderr):
        ended = training("--data", pristine, "--output", tmp_path / "out", "--global-batch", 256)
        os.set_blocking(ours, False)
        shown = os.read(ours, 1 << 16)
    os.close(ours)
    assert ended.code == 0
    assert b"step/s" in shown or b"?step" in shown
    assert "\r" not in ended.stdout
    assert LAST.fullmatch(ended.stdout.splitlines()[-1])


# Processes of their own


def test_the_script_itself_ends_with_2_and_one_line_in_one_write(tmp_path: Path) -> None:
    """So that the lines of ranks do not mix: torchrun starts Python with -u. Each write to this kind of socket is a
    message.
    """
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, its:
        command = [sys.executable, "-u", TRAIN, "--data", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
        done = subprocess.run(command, stderr=its.fileno(), timeout=90)
        its.close()
        writes = list(iter(lambda: ours.recv(1 << 16), b""))
    assert (done.returncode, len(writes)) == (2, 1), writes
    assert re.fullmatch(rb"error: .*none: no manifest.json.*\n", writes[0])
    assert tree(tmp_path) == {}


NPROC = "--nproc: found 2, expected 4, as many as torchrun made here; leave one of the two out"


def test_nproc_other_than_what_torchrun_made_is_said_once(
    training: Command, pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "4")
    said = []
    for rank in range(4):
        for name in ("RANK", "LOCAL_RANK"):
            monkeypatch.setenv(name, str(rank))
        ended = training("--data", pristine, "--output", tmp_path / "out", "--nproc", 2)
        said.append((ended.code, ended.stderr))
    assert said == [(2, f"error: {NPROC}\n"), (2, ""), (2, ""), (2, "")]


@pytest.mark.long
def test_torchrun_itself_ends_with_2_and_one_line(pristine: Path, tmp_path: Path) -> None:
    flags = ["--data", str(pristine), "--output", str(tmp_path / "out"), "--nproc", "2"]
    ended = completed([sys.executable, TORCHRUN, "--nproc-per-node", "4", TRAIN, *flags], tmp_path / "logs")
    ended.assert_refused(NPROC)
    assert not (tmp_path / "out").exists()


# Neighbours


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("w1x", "'w1x' 60 words w1 w51"),
        ("w1 zzz", "'zzz' 60 words"),
        ("<unk>", "'<unk>' 60 words"),
        ("w1 --topk 0", "--topk found 0 expected 1"),
        ("w1 --topk -1", "--topk found -1"),
    ],
)
def test_a_word_or_number_that_cannot_be_is_named(call: Command, run: Path, arguments: str, words: str) -> None:
    ended = call(neighbors.main, run, *arguments.split())
    ended.assert_refused(*words.split())
    assert ended.stdout == ""


@pytest.mark.parametrize("arguments", ["", "w1 --topk few", "w1 --kind x"])
def test_neighbors_refuses_what_it_does_not_understand_in_one_line_too(
    call: Command, run: Path, arguments: str
) -> None:
    call(neighbors.main, run, *arguments.split()).assert_refused()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        pytest.param(shutil.rmtree, "no finished run; train", id="no folder"),
        pytest.param(lambda run: (run / "vectors.safetensors").unlink(), "vectors.safetensors train", id="no vectors"),
        pytest.param(lambda run: (run / "summary.json").unlink(), "no finished run", id="unfinished"),
        pytest.param(
            lambda run: edit(run / "vectors.safetensors", lambda old: old[:-10]),
            "vectors.safetensors train",
            id="truncated vectors",
        ),
        pytest.param(
            lambda run: edit(run / "vectors.safetensors", lambda old: b""), "vectors.safetensors", id="empty vectors"
        ),
        pytest.param(
            lambda run: edit(run / "vocab.parquet", lambda old: old[:-10]), "vocab.parquet", id="truncated vocabulary"
        ),
        pytest.param(
            lambda run: save_file({"center": torch.zeros(7, 4)}, run / "vectors.safetensors"), "7", id="another size"
        ),
    ],
)
def test_a_run_that_is_not_whole_is_refused(
    call: Command, run: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(run)
    call(neighbors.main, run, "w1").assert_refused(str(run), *words.split())


def test_more_neighbours_than_there_are_words_are_all_of_them(call: Command, run: Path) -> None:
    ended = call(neighbors.main, run, "w1", "--topk", 1_000_000)
    assert ended.code == 0
    assert len(ended.stdout.splitlines()) == 59
