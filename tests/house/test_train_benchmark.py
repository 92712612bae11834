"""The benchmark of training: every loop does the same sums on the same text, and the tables say what was measured."""

import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Command
from gensim.models import KeyedVectors
from ranks import train_here
from tiny import write_run, write_tiny_dataset
from torch import nn

from benchmarks import bounds, train
from benchmarks.measuring import train_runs, train_tables
from benchmarks.measuring.train_runs import Bench
from benchmarks.measuring.train_tables import Run, Runs, Target
from benchmarks.rivals import gensim_loop, plain_loop
from jobs import prepare
from pipeline.dataset.manifest_file import Manifest
from training.judging.evaluation import AnalogiesResult, PairsResult
from training.model.kernels import reference
from training.train_config import parse


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench") / "data"
    write_tiny_dataset(folder, num_sequences=1600)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 sentences of w0 ... w29."""
    rng = np.random.default_rng(0)
    file = tmp_path_factory.mktemp("bench") / "text.txt"
    file.write_text("".join(" ".join(f"w{word}" for word in rng.integers(0, 30, 12)) + "\n" for _ in range(800)))
    return file


@pytest.fixture(params=["in this process", pytest.param("in processes", marks=pytest.mark.long)])
def scripts(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, call: Command, no_pages: None
) -> Iterator[None]:
    """Where the scripts of the benchmark run: a process of its own imports torch or gensim for seconds."""
    mains = {"benchmarks/rivals/plain_loop.py": plain_loop.main, "benchmarks/rivals/gensim_loop.py": gensim_loop.main}

    def run(command: list[str]) -> tuple[str, float]:
        _, script, *flags = command
        began = time.perf_counter()
        if script == "training/train.py":
            ended = train_here(*flags, logs=tmp_path_factory.mktemp("logs"))
        else:
            ended = call(mains[script], *flags)
        assert ended.code == 0, ended.stderr
        return ended.stdout, time.perf_counter() - began

    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "in this process":
            patch.setattr(train_runs, "run", run)
        yield
    torch.set_num_threads(threads)


# --- the plain loop ---


def test_the_plain_loops_loss_of_a_row_is_the_reference_kernels(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    examples = plain_loop.read_examples(dataset, manifest, epoch=0)
    center_B1, targets_BL, mask_BL, label_BL = examples[:200]
    center, context = (nn.Embedding(manifest.vocab_size, 7) for _ in range(2))
    tables = (center.weight, context.weight)
    batch = (center_B1.squeeze(1), targets_BL, label_BL.sum(1))
    ours_B = reference.row_losses(batch, tables, manifest.config.negatives)
    plain_B = plain_loop.row_losses(center, context, center_B1, targets_BL, mask_BL, label_BL)
    torch.testing.assert_close(plain_B, ours_B)


def test_every_example_is_seen_once_per_epoch_in_another_order(dataset: Path) -> None:
    manifest = Manifest.load(dataset)
    examples = plain_loop.read_examples(dataset, manifest, epoch=0)
    stored = torch.cat(examples[:], dim=1)
    batches = plain_loop.shuffled(examples)
    first, second = (torch.cat([torch.cat(list(batch), dim=1) for batch in batches]) for _ in range(2))
    assert stored.shape == (manifest.counts.examples, 1 + 3 * manifest.max_len)
    for seen in (first, second):
        assert sorted(seen.tolist()) == sorted(stored.tolist())
    assert not torch.equal(first, second)


@pytest.mark.usefixtures("scripts")
def test_the_plain_loop_and_ours_start_with_the_same_loss_and_it_falls(dataset: Path, tmp_path: Path) -> None:
    manifest = Manifest.load(dataset)
    bench = Bench(tmp_path, workers=1)
    plain, (ours, output) = bench.plain(dataset, 2, seed=0), bench.ours("ours-1", dataset, 2, 0, "--log-every=10")
    assert plain.losses[0] == pytest.approx(ours.losses[0], abs=0.01)
    for run in (plain, ours):
        first, second, mean = run.losses
        assert math.log(2) > first > second
        assert mean == pytest.approx((first + second) / 2, abs=1e-4)
        assert run.examples == 2 * manifest.counts.examples
        assert run.wall_s > run.examples / run.tokens_per_s
        assert run.targets_per_row == 6 * manifest.counts.pairs / manifest.counts.examples
    assert ours.wait_share is not None
    assert json.loads((output / "config.json").read_text())["threads"] == 1


# --- gensim's ---


def test_gensim_gets_sentences_that_are_cut_as_ours_and_hold_no_unk(tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("a <unk> b\n\n" + "c " * 999 + "<unk> d d\n")
    assert gensim_loop.read_sentences(file) == [["a", "b"], ["c"] * 999, ["d", "d"]]


@pytest.mark.usefixtures("scripts")
def test_gensims_vectors_and_times_are_read_as_it_gives_them(dataset: Path, text: Path, tmp_path: Path) -> None:
    run, file = Bench(tmp_path, workers=2).gensim(text, dataset, min_count=5, epochs=2, seed=1)
    assert 0 < run.examples <= 2 * 800 * 12
    assert run.tokens_per_s == pytest.approx(run.examples / run.parts_s["train_s"])
    assert run.wall_s > sum(run.parts_s.values())
    vectors, keyed = train.gensim_vectors(file), KeyedVectors.load(str(file))
    assert vectors.words[0] == "<unk>"
    assert not vectors.center_VD[0].any()
    assert sorted(vectors.words[1:]) == sorted(f"w{word}" for word in range(30))
    for row, word in enumerate(vectors.words[1:], start=1):
        assert (vectors.center_VD[row] == keyed[word]).all()


def test_gensims_loop_imports_nothing_of_ours() -> None:
    source = Path(gensim_loop.__file__).read_text(encoding="utf-8")
    assert re.findall(r"^\s*(?:from|import) +(torch|training|pipeline|benchmarks)\b", source, re.MULTILINE) == []


@pytest.mark.long
def test_gensims_process_has_nothing_of_ours() -> None:
    code = (
        "import sys, benchmarks.rivals.gensim_loop; assert not {'torch', 'training', 'pipeline'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


# --- the script ---


def test_prepare_knows_the_flags_that_the_benchmark_gives(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str]) -> tuple[str, float]:
        commands.append(command)
        return "", 1.0

    monkeypatch.setattr(train_runs, "run", run)
    dataset, seconds = Bench(text.parent, workers=None).prepare(text, 3, "word2vec", min_count=5, epochs=2)
    (command,) = commands
    assert command[:2] == ["spark-submit", "jobs/prepare.py"]
    monkeypatch.setattr(sys, "argv", command[1:])
    found = prepare.parse()
    assert (found.input, found.output, seconds) == ([str(text)], str(dataset), 1.0)
    assert (found.seed, found.subsample_rule, found.min_count, found.epochs) == (3, "word2vec", 5, 2)


class QuickBench(Bench):
    """gensim is real; datasets are without Spark, and our vectors are drawn, not trained."""

    def prepare(self, text: Path, seed: int, rule: str, min_count: int, epochs: int) -> tuple[Path, float]:
        folder = self.new("data")
        write_tiny_dataset(folder, seed=seed, epochs=epochs)
        return folder, 10.0

    def ours(self, loop: str, dataset: Path, epochs: int, seed: int, *more: str) -> tuple[Run, Path]:
        folder = self.new("run")
        vectors_VD = np.random.default_rng(seed).normal(size=(31, 100)).astype(np.float32)
        vectors_VD[0] = 0
        write_run(folder, ["<unk>", *(f"w{word}" for word in range(30))], vectors_VD)
        return Run(100, 50.0, 2.0, 6.0, (0.5, 0.4, 0.45), 0.01), folder


@pytest.mark.usefixtures("scripts")
def test_the_report_has_every_loop_of_both_texts(
    text: Path, tmp_path: Path, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "Bench", QuickBench)
    pairs, analogies, report = (tmp_path / name for name in ("pairs.txt", "analogies.txt", "report.md"))
    pairs.write_text("w1 w2 1.5\nw3 w4 2.5\nw5 w6 4\nw7 zebra 3\n")
    analogies.write_text(": all\nw1 w2 w3 w4\nw5 w6 w7 w8\n")
    flags = [f"--ptb={text}", f"--wiki={text}", f"--pairs={pairs}", f"--analogies={analogies}", f"--report={report}"]
    loops = ["gensim", "ours-1", "ours-1-reference", "in-place-1"]
    ended = call(train.main, *flags, "--repeats=2", "--loops", *loops, f"--scratch={tmp_path}")
    assert ended.code == 0, ended.stderr
    assert report.read_text() == ended.stdout
    books, _, ptb_sgd, wiki_speed, quality, seconds = ended.stdout.split("\n## ")[2:]
    for section, names in (
        (books, ("ours-1", "ours-1-reference")),
        (ptb_sgd, ("gensim", "in-place-1")),
        (wiki_speed, train.SGD),
        (quality, train.SGD),
        (seconds, ("ours, prepare", "ours, once more on the dataset", "gensim, build_vocab")),
    ):
        for name in names:
            assert f"\n| {name} |" in section
    assert "3 pairs and 2 analogies have words of the vocabulary only" in quality
    for fact in ("Command: `python ", "Hardware: ", "Software: commit ", f"torch {torch.__version__}", "Date: "):
        assert fact in ended.stdout
    assert str(tmp_path) not in ended.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["analogies.txt", "pairs.txt", "report.md"]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "found neither --ptb nor --wiki"),
        (["--ptb=nowhere"], "--ptb: found "),
        (["--ptb=README.md", "--repeats=0"], "argument --repeats: found 0, expected a whole number from 1"),
        (["--ptb=README.md", "--workers=two"], "argument --workers: found two"),
        (["--ptb=README.md", "--loops", "other"], "argument --loops: invalid choice: 'other'"),
        (["--wiki=README.md", "--pairs=README.md"], "found one of --wiki, --pairs, --analogies without the others"),
        (["--wiki=README.md", "--pairs=README.md", "--analogies=README.md"], str(ROOT / "README.md:")),
        (["--ptb=README.md", "--scratch=nowhere"], "--scratch: found "),
        (["--ptb=README.md", "--report=nowhere/report.md"], "--report: found nowhere/report.md"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    flags: list[str], reason: str, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    ended = call(train.main, *flags)
    ended.assert_refused()
    assert ended.stderr.startswith(f"error: {reason}")


@pytest.mark.parametrize("flags", [["--columns=20"], ["--columns=0"], ["--batches=0"], ["--data=nowhere"]])
def test_bounds_of_nothing_are_one_line_and_exit_code_2(flags: list[str], call: Command) -> None:
    call(bounds.main, *flags).assert_refused("found" if "data" not in flags[0] else "nowhere")


def test_a_process_that_fails_ends_the_benchmark_with_its_code(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        train_runs.run([sys.executable, "-c", "import sys; print('error: why', file=sys.stderr); sys.exit(2)"])
    assert ended.value.code == 2
    assert capfd.readouterr().err.startswith("error: why\nfailed: ")


# --- the tables ---


def runs_of(*speeds: float) -> list[Run]:
    """Losses are the speed / 1000, first an epoch's and then the run's."""
    return [Run(1000, speed, 1000 / speed, 30.0, (speed / 1000,) * 2, wait_share=speed / 10_000) for speed in speeds]


def test_a_ratio_is_the_median_of_the_turns_ratios() -> None:
    runs = {"ours": runs_of(400, 300, 5000), "rival": runs_of(100, 100, 2500)}  # 4, 3 and 2 times as fast
    assert train_tables.ratio(runs, "ours", "rival") == 3
    rival, ours = train_tables.speed_table({name: runs[name] for name in ("rival", "ours")}, "rival")[2:]
    assert rival == "| rival | 1,000 | 100 | 100 to 2,500 |  | 0.0 M | 1.0% |"
    assert ours == "| ours | 1,000 | 400 | 300 to 5,000 | 3.00 | 0.0 M | 4.0% |"


def test_the_largest_difference_of_an_epochs_loss_leaves_the_runs_out() -> None:
    run = runs_of(100)[0]
    runs = {
        "plain": [replace(run, losses=(0.5, 0.4, 0.45))],
        "ours": [replace(run, losses=loss) for loss in ((0.51, 0.3, 0.9), (0.49, 0.42, 0.9), (0.52, 0.43, 0.9))],
    }
    header, _, plain, ours = train_tables.loss_table(runs, "plain")
    assert header == "| loop | epoch 1 | epoch 2 | run | largest difference to plain |"
    assert plain == "| plain | 0.5000 | 0.4000 | 0.4500 |  |"
    assert ours == "| ours | 0.5100 | 0.4200 | 0.9000 | 0.0200 |"


@pytest.mark.parametrize(
    ("ours", "rivals", "apart"),
    [
        ([3.0, 5.0], [1.0, 3.0], 2 / math.sqrt(2)),
        ([1.0, 2.0, 3.0], [2.0, 2.0, 2.0], 0.0),
        ([3.0, 3.0], [1.0, 1.0], None),
        ([3.0], [1.0], None),
    ],
)
def test_means_are_apart_in_spreads_of_one_seed(ours: list[float], rivals: list[float], apart: float | None) -> None:
    assert train_tables.spreads_apart(ours, rivals) == pytest.approx(apart)


def wiki_runs() -> Runs:
    """Two turns: gensim takes 12 s of 16 for build_vocab and train."""

    def judged(run: Run, spearman: float, accuracy: float) -> Run:
        pairs, found = PairsResult(spearman, 3, 0, 1.0), AnalogiesResult(accuracy, 3, 0, 1.0, ())
        return replace(run, pairs=pairs, analogies=found)

    run = replace(runs_of(100)[0], wall_s=4.0)
    parts_s = {"read_s": 2.0, "build_vocab_s": 2.0, "train_s": 10.0, "save_s": 1.0}
    gensim = replace(runs_of(40)[0], wall_s=16.0, parts_s=parts_s, wait_share=None)
    return {
        "gensim": [judged(gensim, 0.60, 0.20), judged(gensim, 0.62, 0.22)],
        "in-place-1": [judged(run, 0.60, 0.20), judged(run, 0.62, 0.22)],
        "in-place-4": [judged(run, 0.60, 0.15), judged(run, 0.61, 0.16)],
        "once-more": [run, run],
    }


def test_what_is_wanted_is_held_against_what_was_found() -> None:
    targets = train_tables.wiki_targets(wiki_runs(), prepare_s=[8.0, 8.0])
    assert [(target.wanted, round(target.found, 6), target.is_met) for target in targets] == [
        (2.2, 2.5, True),  # tokens/s
        (0.05, 0.01, True),  # waiting
        (-2, 0.0, True),  # Spearman to gensim's
        (-0.02, -0.005, True),  # of four ranks
        (-2, 0.0, True),  # analogies to gensim's
        (-0.02, -0.055, False),  # of four ranks
        (1.0, 1.0, True),  # 12 s over 8 + 4
        (2.0, 3.0, True),  # 12 s over 4
    ]
    assert Target("speed", 1.234, 1.5).row() == ("speed", "1.23", ">= 1.5", "**no**")
    assert Target("waiting", 0.01, 0.05, most=True).row() == ("waiting", "0.01", "<= 0.05", "yes")


def test_targets_are_those_of_the_loops_that_ran() -> None:
    runs = {"ours-1": runs_of(100), "in-place-1": runs_of(300)}
    assert [target.what for target in train_tables.ptb_targets(runs)] == [
        "PTB: largest share of a loop's time that it waits for data"
    ]


def test_seconds_of_an_errand_are_those_of_whole_processes() -> None:
    lines = train_tables.end_to_end_table(wiki_runs(), prepare_s=[8.0, 8.0])
    assert "| ours, text to vectors | 12.0 | 1.00 | 1.33 |" in lines
    assert "| ours, once more on the dataset | 4.0 | 3.00 | 4.00 |" in lines
    assert "| gensim, build_vocab and train | 12.0 |  |  |" in lines


@pytest.mark.parametrize("loop", train_runs.OURS)
def test_the_trainer_understands_the_flags_of_each_loop_of_ours(loop: str) -> None:
    nproc, flags = train_runs.OURS[loop]
    config, _ = parse([*train_runs.options({"nproc": nproc}), *flags])
    config.check_world(nproc)
