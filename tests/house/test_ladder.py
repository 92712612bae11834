"""The ladder of benchmarks/gpu.py: its laws of corpora, its budget, what may happen to a rung, and its report."""

import gzip
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
import torch
from conftest import ROOT, Command, data_file
from launch import launched
from tiny import tree
from triton_kernels import INTERPRETED as INTERPRETED  # first: it decides how Triton is loaded

from benchmarks import gpu
from benchmarks.ladder import climb, profiling, report
from benchmarks.ladder.climb import Budget, Outcome, Rung, Work, try_apart
from benchmarks.ladder.place import GPU, REHEARSAL
from benchmarks.ladder.rungs import made, rungs_of
from benchmarks.measuring import corpora
from benchmarks.measuring.corpora import PTB, WIKIPEDIA, Law
from pipeline.dataset.manifest_file import Manifest
from pipeline.dataset.verify import problems
from pipeline.pipeline_config import PipelineConfig
from pipeline.sampling.subsample import keep_thresholds

SMALL = Law(50, 3_000, 1.02, 1.0, 19.5, 9.5, num_shards=3)

# Corpora


@pytest.mark.parametrize(
    ("law", "name", "min_count"),
    [
        pytest.param(PTB, "ptb/ptb.train.txt", 10, id="ptb"),
        pytest.param(WIKIPEDIA, "wiki/wiki100.txt.gz", 5, id="wikipedia", marks=pytest.mark.long),
    ],
)
def test_a_law_is_nearly_that_of_the_corpus_to_which_it_was_fitted(law: Law, name: str, min_count: int) -> None:
    file = data_file(name, "the laws of the ladder's corpora")
    words = Counter((gzip.open if file.suffix == ".gz" else open)(file, "rb").read().split())
    del words[b"<unk>"]
    counts_V = np.array(sorted((count for count in words.values() if count >= min_count), reverse=True))
    assert (law.vocab_size, law.num_tokens) == (counts_V.size + 1, counts_V.sum())
    real_V, found_V = counts_V / counts_V.sum(), law.frequencies_V[1:]
    for num_words in (10, 100, 1000, 5000):
        assert found_V[:num_words].sum() == pytest.approx(real_V[:num_words].sum(), abs=0.03)
    assert share_kept(law.counts_V) == pytest.approx(share_kept(np.append(0, counts_V)), rel=0.06)


def share_kept(counts_V: npt.NDArray[np.int64]) -> float:
    """Of the tokens, by subsampling."""
    return float((counts_V * (keep_thresholds(counts_V, 1e-4, "paper") / 2**32)).sum() / counts_V.sum())


def test_a_laws_dataset_is_sound_and_kept_and_the_same_every_time(tmp_path: Path) -> None:
    path = corpora.dataset(SMALL, tmp_path / "one")
    manifest = Manifest.load(path)
    assert list(problems(str(path), manifest)) == []
    assert manifest.counts.tokens == pytest.approx(SMALL.num_tokens, rel=0.05)
    assert len(manifest.shards) == SMALL.num_shards
    again = corpora.dataset(SMALL, tmp_path / "other")
    assert tree(path) == tree(again)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert corpora.dataset(SMALL, tmp_path / "one") == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    (path / manifest.shards[0].path).unlink()
    assert tree(corpora.dataset(SMALL, tmp_path / "one")) == tree(again)


def test_words_are_drawn_as_often_as_the_law_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-square over the centers, of which subsampling drops none here."""
    law = Law(6, 20_000, 0.5, 1.0, 10, num_shards=2)
    monkeypatch.setattr(corpora, "PipelineConfig", partial(PipelineConfig, sample=0.0))
    path = corpora.dataset(law, tmp_path)
    centers = np.concatenate([pq.read_table(file)["center"].to_numpy() for file in sorted(path.rglob("shard-*"))])
    found_V, expected_V = np.bincount(centers, minlength=6)[1:], law.frequencies_V[1:] * centers.size
    assert ((found_V - expected_V) ** 2 / expected_V).sum() < 18.5  # 0.999 of chi-square with 4 degrees of freedom


# Climbing


def rung(name: str, seconds: float = 1.0, **others: object) -> Rung:
    return Rung(name, "A part", "nowhere:nothing", seconds, **others)  # type: ignore[arg-type]


def climbed(rungs: list[Rung], seconds: float, fails: str = "", takes: float = 0.0) -> list[tuple[str, str]]:
    """Results and texts; every rung passes but that one, and takes so long."""
    now = [0.0]

    def attempt(tried: Rung, limit_s: float) -> Outcome:
        now[0] += takes
        return Outcome(tried, "failed" if tried.name == fails else "passed", f"{limit_s:g}")

    budget = Budget(seconds, lambda: now[0])
    return [(row.result, row.text) for row in climb.climb(rungs, budget, 3.0, attempt)]


def test_a_failure_stops_only_what_needs_it() -> None:
    rungs = [rung("a"), rung("b"), rung("c", needs=("a",)), rung("d", needs=("b",)), rung("e", means_nothing="no")]
    found = climbed(rungs, 1000, fails="b")
    assert [result for result, _ in found] == ["passed", "failed", "passed", "skipped", "skipped"]
    assert (found[3][1], found[4][1]) == ("needs what b did not bring", "no")


def test_what_does_not_fit_is_skipped_and_shorter_rungs_are_still_tried() -> None:
    found = climbed([rung("a", 10), rung("b", 70), rung("c", 5)], 100 + climb.CLOSING_S, takes=40)
    assert found == [
        ("passed", "60"),  # three times what is expected, and half a minute
        ("skipped", "needs about 70 s, found 60 s left; raise --minutes"),
        ("passed", "45"),
    ]
    assert climbed([rung("a", 10)], 20 + climb.CLOSING_S) == [("passed", "20")]  # no longer than there is time


@pytest.mark.parametrize(
    ("code", "result", "text"),
    [
        (
            "json.dump({'result': 'passed', 'text': 'fine', 'figures': {'a': 1}}, open(sys.argv[4], 'w'))",
            "passed",
            "fine",
        ),
        (
            "print('CUDA error', flush=True); os.kill(os.getpid(), 11)",
            "failed",
            "killed by SIGSEGV; its last line: ",
        ),
        ("sys.exit('lost')", "failed", "exit code 1; its last line: lost"),
        ("pass", "failed", "exit code 0; it printed nothing"),
        ("print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)", "failed", "ended after 1 s; "),
    ],
    ids=["passes", "crashes", "exits", "answers nothing", "hangs"],
)
def test_whatever_a_rung_does_its_outcome_says_so(
    code: str, result: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = f"import json, os, subprocess, sys, time; {code}"
    monkeypatch.setattr(climb, "CHILD", [sys.executable, "-c", child])
    began = time.monotonic()
    limit_s = 1.0 if "ended" in text else 30.0
    found = try_apart(rung("a"), limit_s, Work(True, tmp_path), {}, tmp_path / "log")
    assert (found.result, found.text[: len(text)]) == (result, text)
    assert time.monotonic() - began < 30
    for child_pid in re.findall(r"last line: (\d+)$", found.text):
        while Path("/proc", child_pid, "cmdline").exists() and Path("/proc", child_pid, "cmdline").read_bytes():
            assert time.monotonic() - began < 10, "a rung's children end with it"


def test_rungs_are_functions_that_are_there_and_what_they_need_comes_before() -> None:
    for place, num_gpus in ((GPU, 1), (GPU, 8), (REHEARSAL, 0)):
        rungs = rungs_of(place, Path("data"), num_gpus)
        names = [tried.name for tried in rungs]
        assert len(set(names)) == len(names)
        for number, tried in enumerate(rungs):
            assert set(tried.needs) <= set(names[:number])
            if tried.function:
                module, _, name = tried.function.partition(":")
                source = (ROOT / "benchmarks/ladder" / f"{module}.py").read_text()
                assert f"\ndef {name}(work: Work" in source
    functions = [{tried.function for tried in rungs_of(place, Path("data"), 8)} for place in (GPU, REHEARSAL)]
    assert functions[0] == functions[1], "a rung that is not rehearsed meets its first typo on a GPU"


def test_two_places_differ_in_their_data_alone() -> None:
    """No module but place.py, where it is said, asks for the name of a device."""
    for file in (ROOT / "benchmarks/ladder").glob("*.py"):
        if file.name not in ("place.py", "compiled.py"):
            assert re.findall(r"device == ", file.read_text()) == [], file


# Kernels


def test_batches_have_no_word_twice_where_rows_train_at_once_and_no_negative_among_contexts() -> None:
    from benchmarks.ladder.kernels import OUTSIDE, Shape, batch_of

    shape = Shape(20, 3, 4, 8, 5_000)
    for repeats in (False, True):
        center_B, targets_BL, num_contexts_B = batch_of(shape, repeats=repeats)
        assert num_contexts_B[1] == 0
        seen: list[int] = []
        for center, targets_L, n in zip(center_B.tolist(), targets_BL.tolist(), num_contexts_B.tolist(), strict=True):
            real, padding = targets_L[: 5 * n], targets_L[5 * n :]
            assert set(padding) <= {OUTSIDE}
            assert (center == OUTSIDE) == (n == 0)
            assert all(word % 2 == 0 for word in real[:n])
            assert all(word % 2 == 1 for word in real[n:])
            assert all(0 < word < shape.words for word in real)
            seen += real
        assert (len(set(seen)) == len(seen)) == (not repeats)


@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_numbers_that_rounding_does_not_explain_are_refused(wrong: float) -> None:
    from benchmarks.ladder.kernels import Largest

    expected, largest = torch.tensor([1.0, -2.0, 0.0]), Largest()
    largest.add("here", expected + torch.tensor([0, 1e-6, 0]), expected)
    assert 4e-7 < largest.apart < 6e-7
    with pytest.raises(AssertionError, match=r"^there: found"):
        largest.add("there", expected + torch.tensor([0, 0, wrong]), expected)


def test_a_loss_is_refused_that_is_far_from_another_run_or_outside_of_two() -> None:
    from benchmarks.ladder.trainings import MOST_APART, beside

    low, high = np.array([0.7, 0.5]), np.array([0.7, 0.52])
    assert beside(low + MOST_APART / 2, [low], "the CPU's").figures["apart"] == pytest.approx(MOST_APART / 2)
    assert beside((low + high) / 2, [low, high], "the CPU's").figures["apart"] == 0
    for ours, theirs in ((low + 2 * MOST_APART, [low]), (high + 2 * MOST_APART, [low, high]), (low[:1], [low])):
        with pytest.raises(AssertionError, match="expected"):
            beside(ours, theirs, "the CPU's")


# Profile


def test_the_words_of_a_profile_say_what_ran_and_how_long_nothing_did() -> None:
    spans = [("a(int)", 0.0, 40.0), ("b", 20.0, 50.0), ("a(int)", 80.0, 100.0)]
    assert profiling.in_words(spans) == "of 0.10 ms, 30% nothing ran; 60% a (2 x 30.0 us), 30% b (1 x 30.0 us)"


def test_counters_of_nsight_compute_are_means_over_launches() -> None:
    printed = '==PROF== Connected\n"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"\n'
    for number, percent in enumerate((20, 40)):
        printed += f'"{number}","_update","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","{percent}"\n'
    assert profiling.counted(printed) == "_update: 30 % of the memory's peak bandwidth"
    assert profiling.counted("==ERROR== ERR_NVGPUCTRPERM") == ""


# The report


def speed_of(name: str, tokens_per_s: float, wait_share: float) -> Outcome:
    figures = {"vocab_size": 9, "tokens_per_s": tokens_per_s, "tokens_per_s_whole": 1.0, "products_per_s": 2e6}
    figures |= {"bytes_per_s": 1e12, "wait_share": wait_share}
    return Outcome(Rung(name, "Speeds", "", 1), "passed", "fast", 9.0, {**figures, "ratio": None})


def test_the_report_says_what_holds_what_does_not_and_what_is_not_known(tmp_path: Path) -> None:
    (tmp_path / "broken-one.log").write_text(f"first\n{ROOT}/x.py: illegal memory access\n")
    outcomes = [
        Outcome(rung("device")._replace(part="The device"), "passed", "H100", 1.0, {"bytes_per_s": 2e12}),
        Outcome(rung("broken one"), "failed", "killed by SIGABRT | a"),
        Outcome(rung("late"), "skipped", "needs about 9 s"),
        Outcome(rung("losses"), "passed", "equal", 2.0, {"apart": 0.0001}),
        speed_of("ptb, dim 100, book", 11e6, 0.2),
    ]
    text = report.report(GPU, ["- Command: none"], outcomes, 7, tmp_path)
    assert "**Of 7 rungs 3 passed, 1 failed, 1 skipped; 2 are still to come.**" in text
    assert "Does not hold: broken one." in text
    assert "Not known: late." in text
    assert "| broken one | **failed** | 0 | killed by SIGABRT \\| a |" in text
    assert "```\nfirst\nx.py: illegal memory access\n```" in text
    assert "| the book's recipe, V = 6,719: tokens/s | 1.1e+07 | >= 1e+07 | yes |" in text
    assert "| ptb, dim 100, book: share of the time waiting for data | 0.2 | <= 0.05 | **no** |" in text
    assert "| a mean loss and what it is compared with, apart | 0.0001 | <= 0.0006 | yes |" in text
    assert "| ptb, dim 100, book | 9 | 11,000,000 | 1 |  | 2.0 M | 1,000.0 | 0.50 | 20.0% |" in text
    rehearsed = report.report(REHEARSAL, [], outcomes, 5, tmp_path)
    assert "nothing of a GPU" in rehearsed
    assert "## Targets" not in rehearsed


# The command


def test_without_a_gpu_it_says_so_in_one_line(call: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    call(gpu.main, f"--output={tmp_path / 'gpu.md'}").assert_refused("found no GPU", "--interpret")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--minutes=0"], "--minutes: found 0"),
        (["--minutes=nan"], "--minutes: found nan"),
        (["--data=nowhere"], "nowhere: no manifest.json"),
        (["--output=report"], "--output: found report"),
        (["--output=README.md/gpu.md"], "--output README.md/gpu.md: cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    flags: list[str], reason: str, call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    call(gpu.main, "--interpret", *flags).assert_refused(reason)


def test_missing_packages_are_named_first_with_how_to_bring_them(
    call: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = ("pyarrow", "xxhash")
    monkeypatch.setattr(gpu, "find_spec", lambda name: None if name in gone else find_spec(name))
    call(gpu.main).assert_refused("missing packages: pyarrow xxhash", "pip download", "--no-index --find-links wheels")


def test_the_check_of_packages_needs_none_of_them() -> None:
    blocked = (
        f"import sys; sys.modules |= dict.fromkeys({gpu.PACKAGES!r}); from benchmarks import gpu; print(gpu.missing())"
    )
    done = subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.startswith(f"missing packages: {' '.join(gpu.PACKAGES)};")


NCU = """#!/usr/bin/env python3
import subprocess, sys
command = sys.argv[1:]
subprocess.run(command[command.index(next(word for word in command if "python" in word)):], check=True)
print('"ID","Kernel Name","Metric Name","Metric Unit","Metric Value"')
print('"0","_update","dram__throughput.avg.pct_of_peak_sustained_elapsed","%","50"')
"""


@pytest.mark.long
def test_the_rehearsal_passes(tmp_path: Path) -> None:
    """With a stand-in for Nsight Compute, which runs what it is given."""
    ncu = tmp_path / "bin" / "ncu"
    ncu.parent.mkdir()
    ncu.write_text(NCU)
    ncu.chmod(0o755)
    output = tmp_path / "gpu.md"
    done = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--interpret", "--minutes=25", f"--output={output}"],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{ncu.parent}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = output.read_text()
    results = Counter(re.findall(r"\| (passed|skipped|\*\*failed\*\*) \|", text))
    assert results["**failed**"] == 0
    assert {line.split(" |")[0] for line in text.splitlines() if "| skipped |" in line} <= {
        "| bfloat16 tables",
        "| compiled",
        *(line.split(" |")[0] for line in text.splitlines() if line.startswith("| 2 ranks on as many GPUs")),
    }
    assert "_update: 50 % of the memory's peak bandwidth" in text
    assert not list((tmp_path / "gpu").glob("rung-*")), "what rungs leave is removed"
    assert made("wikipedia") in text


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_rung_that_is_tried_too(tmp_path: Path, number: int, code: int) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu.py"), "--interpret", f"--output={tmp_path / 'gpu.md'}"]
    with launched(command, tmp_path / "logs") as running:
        running.wait_for(lambda: list((tmp_path / "gpu" / "logs").glob("*")))
        running.process.send_signal(number)
        assert running.end().code == code
