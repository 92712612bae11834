"""Laws of report.html: it needs nothing but itself, shows the numbers of the run's files, and says what is missing."""

import json
import re
import shutil
from contextlib import redirect_stdout
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Command
from tiny import write_tiny_dataset

from pipeline.dataset.manifest_file import Manifest
from pipeline.pipeline_config import PipelineConfig
from training import train
from training.runs import report_data
from training.runs import report_page as report
from training.runs.report_plots import MOST_POINTS, lines, map_of, thinned
from training.vectors.word_vectors import Vectors

SECTIONS = ["loss", "speed", "sampling", "contexts", "neighbours", "map", "evaluation", "settings"]
PICTURES = ["steps", "epochs", "speed", "wait", "contexts", "map"]


class Page(HTMLParser):
    """What a page holds: title and first heading, text by section, pictures' alt texts, names and addresses."""

    def __init__(self, file: Path):
        super().__init__()
        self.sections: dict[str, str] = {"": ""}
        self.titles = {"title": "", "h1": ""}
        self.alts: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()
        self._within = self._tag = ""
        self.feed(file.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.add(tag)
        self._tag = tag
        if tag == "section":
            self._within = found["id"] or ""
            self.sections[self._within] = ""
        if tag == "svg":
            self.alts.append(found["aria-label"] or "")
        self.ids += [found["id"] or ""] if "id" in found else []
        self.addresses += [found[name] or "" for name in ("src", "href", "xlink:href") if name in found]

    def handle_endtag(self, tag: str) -> None:
        self._tag = ""

    def handle_data(self, data: str) -> None:
        if self._tag in self.titles:
            self.titles[self._tag] += data
        if self._tag != "style":
            self.sections[self._within] += data


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a dataset, data, a finished run on it, runs/tiny, and what that printed, stdout."""
    folder = tmp_path_factory.mktemp("trained")
    write_tiny_dataset(folder / "data", row_group_rows=100, sample=1e-2)
    settings = ["--data", str(folder / "data"), "--output", str(folder / "runs" / "tiny"), "--device", "cpu"]
    with pytest.MonkeyPatch.context() as patch, (folder / "stdout").open("w") as stdout, redirect_stdout(stdout):
        patch.setattr("torch.set_num_threads", lambda _: None)
        patch.setattr("sys.argv", ["train.py", *settings, "--dim", "8", "--epochs", "2", "--log-every", "1"])
        train.main()
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """The run, in a folder of the test's own."""
    return Path(shutil.copytree(trained / "runs" / "tiny", tmp_path / "tiny"))


@pytest.fixture
def reported(call: Command, run: Path) -> Command:
    """Writes the report again; gives how that ended."""
    return lambda *arguments: call(report.main, run, *arguments)


def lines_of(run: Path, kind: str) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def rename(run: Path, words: list[str]) -> None:
    """Gives the run's most frequent words other names."""
    table = pq.read_table(run / "vocab.parquet")
    names = ["<unk>", *words, *table["word"].to_pylist()[len(words) + 1 :]]
    pq.write_table(table.set_column(table.schema.get_field_index("word"), "word", [names]), run / "vocab.parquet")


def edit(run: Path, name: str, **values: object) -> None:
    file = run / name
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_training_ends_with_a_report(run: Path) -> None:
    page = Page(run / "report.html")
    assert list(page.sections)[1:] == SECTIONS
    assert len(page.alts) == len(PICTURES)
    assert all(page.alts)


def test_the_page_is_named_after_the_runs_folder(run: Path) -> None:
    assert Page(run / "report.html").titles == {"title": "tiny: word vectors", "h1": "tiny"}


def test_the_command_writes_what_training_wrote(run: Path, reported: Command) -> None:
    before = (run / "report.html").read_text()
    (run / "report.html").write_text("old")
    ended = reported()
    assert (ended.code, ended.stdout) == (0, f"{run / 'report.html'}\n")
    assert (run / "report.html").read_text() == before
    assert not list(run.glob(".report*"))


def test_training_says_where_the_report_is_before_its_last_line(trained: Path) -> None:
    *_, where, last = (trained / "stdout").read_text().splitlines()
    assert where == f"{trained / 'runs' / 'tiny' / 'report.html'} shows the run"
    assert last.startswith("loss ")


def test_a_page_asks_nobody_for_anything(run: Path) -> None:
    page = Page(run / "report.html")
    assert [address for address in page.addresses if not address.startswith(("#", "data:"))] == []
    assert not page.tags & {"script", "iframe", "object", "img"}
    assert "url(http" not in (run / "report.html").read_text()
    assert "@import" not in (run / "report.html").read_text()


def test_names_within_a_page_are_its_own_and_found(run: Path) -> None:
    page = Page(run / "report.html")
    assert len(set(page.ids)) == len(page.ids)
    assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_the_page_shows_the_numbers_of_the_runs_files(run: Path) -> None:
    page, summary = Page(run / "report.html"), json.loads((run / "summary.json").read_text())
    for line in lines_of(run, "epoch"):
        for shown in (f"{line['loss']:.4f}", f"{line['mean_loss']:.4f}", f"{line['tokens_per_s']:,.0f}"):
            assert shown in page.sections["loss"]
    for shown in (f"{summary['mean_loss']:.4f}", f"{summary['steps']:,}", f"{summary['examples']:,}"):
        assert shown in page.sections[""]
    for shown in (summary["dataset_id"], *summary["versions"].values()):
        assert shown in page.sections["settings"]
    for name, value in json.loads((run / "config.json").read_text()).items():
        assert name in page.sections["settings"]
        assert str(value) in page.sections["settings"]


def test_what_subsampling_did_is_counted_in_the_dataset(trained: Path, run: Path) -> None:
    manifest = Manifest.load(trained / "data")
    table = pq.read_table([trained / "data" / shard.path for shard in manifest.shards])
    centers_V = np.bincount(table["center"].to_numpy(), minlength=manifest.vocab_size)
    vocabulary = pq.read_table(run / "vocab.parquet").to_pydict()
    page = Page(run / "report.html")
    shown = [line.split() for line in page.sections["sampling"].splitlines()]
    text = " ".join(page.sections["sampling"].split())
    counts = manifest.counts
    assert f"{counts.subsampled:,} known tokens" in text
    mean = (counts.tokens - counts.unknown - counts.subsampled) / counts.sequences
    assert f", {mean:.2f} after" in text
    assert shown
    rows = report_data.FinishedRun.load(run).sampled.rows
    assert rows is not None
    assert rows.read == rows.of == counts.examples
    assert rows.centers_V.tolist() == centers_V.tolist()
    assert rows.num_contexts == np.bincount(table["num_contexts"].to_numpy(), minlength=11).tolist()
    for rank in (1, manifest.vocab_size - 1):
        word, count = vocabulary["word"][rank], vocabulary["count"][rank]
        share = count / (counts.tokens - counts.unknown)
        after = centers_V[rank]
        assert f"{word}{rank}{count:,}{share:.4%}{after:,}{after / rows.read:.4%}" in text.replace(" ", "")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "drawn from 1 to 5, over the kept tokens, so an example has up to 10 contexts; the mean is"),
        (
            {"window_kind": "fixed", "window_side": "left"},
            "always 5, over the kept tokens before the center, so .* 5 con",
        ),
        (
            {"window": "sequence", "window_side": "right"},
            "of the sequence after the center, or a .* sample .* 50 contexts",
        ),
    ],
    ids=str,
)
def test_the_page_says_what_windows_are(run: Path, settings: dict[str, Any], said: str) -> None:
    found = report_data.FinishedRun.load(run)
    assert found.sampled.manifest is not None
    manifest = replace(found.sampled.manifest, config=PipelineConfig(**settings))
    text = report.page(replace(found, sampled=replace(found.sampled, manifest=manifest)))
    assert re.search(said, " ".join(text.split()))


def test_only_the_first_rows_of_a_large_dataset_are_read(
    run: Path, reported: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_data, "MOST_ROWS", 150)
    assert reported().code == 0
    assert "The first 200 of the " in Page(run / "report.html").sections["sampling"]


@pytest.mark.parametrize("gone", ["deleted", "another", "damaged", "elsewhere"])
def test_a_dataset_that_is_gone_is_said_to_be_and_the_rest_is_shown(
    trained: Path, run: Path, reported: Command, tmp_path: Path, gone: str
) -> None:
    data = tmp_path / "data"
    if gone == "another":
        write_tiny_dataset(data, num_words=40)
    if gone == "damaged":
        shutil.copytree(trained / "data", data)
        for shard in data.glob("*/*/*/*.parquet"):
            shard.write_bytes(b"PAR1")
    if gone == "elsewhere":
        import fsspec

        # A name of its own: this file system is one for the whole process, and a folder that is there is put into.
        fsspec.filesystem("memory").put(str(trained / "data"), f"/{tmp_path.name}", recursive=True)
    edit(run, "config.json", data=f"memory://{tmp_path.name}" if gone == "elsewhere" else str(data))
    assert reported().code == 0
    page = Page(run / "report.html")
    assert list(page.sections)[1:] == SECTIONS
    assert len(page.alts) == len(PICTURES) - 1
    reason = {"deleted": "no manifest.json", "another": "not the one of this run", "damaged": "could not be read"}
    for section in ("sampling", "contexts"):
        assert reason.get(gone, "is not on this machine") in page.sections[section]
    assert ("dropped by subsampling" in page.sections["sampling"]) == (gone in ("damaged", "elsewhere"))


def test_probes_are_words_from_frequent_to_rare_or_those_that_are_named(run: Path, reported: Command) -> None:
    words = ["<unk>", *(f"w{rank}" for rank in range(1, 5000))]
    ranks = [words.index(word) for word in report.spread_words(words)]
    assert ranks == sorted(set(ranks))
    assert ranks[0] < 100
    assert ranks[-1] > 4900
    assert report.spread_words(["<unk>", "a"]) == ["a"]

    known = pq.read_table(run / "vocab.parquet")["word"].to_pylist()[1]
    assert reported("--probe", known).code == 0
    neighbours = Page(run / "report.html").sections["neighbours"]
    expected = Vectors.load(run).most_similar(known, 8)
    listed = "".join(f"{word}\u00a0{cosine:.3f}, " for word, cosine in expected)[:-2]
    assert f"{known}{listed}" in neighbours


def test_a_probe_without_a_vector_is_one_line_and_changes_nothing(run: Path, reported: Command) -> None:
    before = (run / "report.html").read_bytes()
    reported("--probe", "nowhere").assert_refused("'nowhere' is not among the")
    assert (run / "report.html").read_bytes() == before


def test_results_of_an_evaluation_are_shown(run: Path, reported: Command, tmp_path: Path) -> None:
    pair = {"file": "some<pairs>.txt", "spearman": 0.30908, "pairs": 217, "unknown": 136, "coverage": 0.6}
    part = {"section": "capitals", "accuracy": None, "questions": 0, "unknown": 5}
    analogies = {**part, "file": "questions.txt", "accuracy": 0.0139, "questions": 3013, "sections": [part]}
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({"restrict_vocab": 300000, "pairs": [pair], "analogies": analogies}))
    assert reported("--evaluation", file).code == 0
    shown = Page(run / "report.html").sections["evaluation"]
    for word in ("some<pairs>.txt", "0.3091", "217", "1.39%", "3,013", "capitals"):
        assert word in shown


@pytest.mark.parametrize(
    "content", ["[]", "{}", "{", '{"pairs": 3, "analogies": null}', '{"pairs": [{}], "analogies": null}']
)
def test_what_is_no_evaluation_is_refused(run: Path, reported: Command, tmp_path: Path, content: str) -> None:
    file = tmp_path / "evaluation.json"
    file.write_text(content)
    reported("--evaluation", file).assert_refused(str(file))
    reported("--evaluation", tmp_path / "none.json").assert_refused("none.json")


@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl", "config.json", "vectors.safetensors"])
def test_a_run_that_is_not_whole_is_one_line(run: Path, reported: Command, name: str) -> None:
    (run / name).unlink()
    reported().assert_refused(str(run))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.jsonl", ""),
        ("metrics.jsonl", "[1]"),
        ("metrics.jsonl", '{"loss": 0.4}'),
        ("metrics.jsonl", '{"kind": "epoch", "epoch": 0, "loss": 0.4}'),
        ("config.json", '{"data": "data/ptb"}'),
        ("summary.json", '{"dataset_id": "none"}'),
    ],
)
def test_files_that_training_did_not_write_are_one_line(run: Path, reported: Command, name: str, content: str) -> None:
    (run / name).write_text(content)
    reported().assert_refused(str(run / name), "train again")


def test_a_run_too_short_for_a_step_line_has_a_report(run: Path, reported: Command) -> None:
    lines = [json.dumps(line) for line in lines_of(run, "epoch")]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert reported().code == 0
    assert len(Page(run / "report.html").alts) == len(PICTURES) - 3


def test_a_run_of_one_epoch_has_no_picture_by_epoch(run: Path, reported: Command) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(line for line in lines if '"epoch": 0' in line) + "\n")
    assert reported().code == 0
    assert len(Page(run / "report.html").alts) == len(PICTURES) - 1


def test_a_warm_start_is_said_with_what_became_of_the_words(run: Path, reported: Command) -> None:
    growth = {"kept": 1050, "new": 30, "lost": 2, "kept_share": 0.97, "lost_share": 0.01}
    edit(run, "config.json", init_from="runs/before")
    edit(run, "summary.json", vocabulary_growth=growth)
    assert reported().code == 0
    shown = Page(run / "report.html").sections["settings"]
    assert "warm startruns/before: 1,050 words kept (97.0% of the tokens), 30 new, 2 lost" in shown.replace("\n", "")


def test_words_of_a_corpus_are_shown_as_they_are_and_long_ones_cut(run: Path, reported: Command) -> None:
    odd = ["<script>alert(1)</script>", "a&b", "$x$", "語", "שלום", "x" * 4096]
    rename(run, odd)
    ended = reported("--probe", *odd)
    assert (ended.code, ended.stderr) == (0, "")
    page = Page(run / "report.html")
    assert "script" not in page.tags
    assert [word for word in odd[:-1] if word not in page.sections["neighbours"]] == []
    assert f"{'x' * 49}…" in page.sections["neighbours"]
    assert "x" * 50 not in (run / "report.html").read_text()


# Pictures


def test_a_long_line_is_thinned_to_means_of_neighbours() -> None:
    points = [(float(step), float(step % 7)) for step in range(1, 12_346)]
    thin = thinned(points)
    assert len(thin) <= MOST_POINTS
    size = -(-len(points) // MOST_POINTS)
    for number, found in ((0, thin[0]), (5, thin[5])):
        expected = np.mean(points[number * size : (number + 1) * size], axis=0)
        assert found == pytest.approx(tuple(expected))
    rest = points[(len(thin) - 1) * size :]
    assert thin[-1] == pytest.approx(tuple(np.mean(rest, axis=0)))
    assert thinned(points[:MOST_POINTS]) == points[:MOST_POINTS]


@pytest.mark.parametrize("num_epochs", [1, 2, 5, 12])
def test_an_axis_names_every_epoch_at_most_once(num_epochs: int) -> None:
    losses = [(float(epoch), 0.48) for epoch in range(1, num_epochs + 1)]
    picture = lines("epochs", "alt", "epoch", "loss", {"of the epoch": losses, "of the run so far": losses})
    named = re.findall(r">(\d+)</text>", picture)  # losses have a point
    assert len(set(named)) == len(named)
    assert {*named} <= {*map(str, range(1, num_epochs + 1))}
    assert named


def test_the_map_has_the_axes_of_greatest_variance_and_names_cover_nothing(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors_VD = rng.standard_normal((200, 30)).astype(np.float32)
    vectors_VD[:100, 3] += 30
    vectors_VD[100:, 3] -= 30
    file = tmp_path / "map.html"
    file.write_text(map_of([f"word{row}" for row in range(200)], vectors_VD))

    found: list[dict[str, str | None]] = []

    class Marks(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append({"tag": tag, **dict(attrs)})

    Marks().feed(file.read_text())
    dots = np.array([[float(mark["cx"] or 0), float(mark["cy"] or 0)] for mark in found if mark["tag"] == "circle"])
    assert len(dots) == 200
    left = dots[:, 0] < 230
    assert set(left[:100]) != set(left[100:])
    assert len(set(left[:100])) == 1
    names = np.array([[float(mark["x"] or 0), float(mark["y"] or 0)] for mark in found if mark["tag"] == "text"])
    assert len(names) >= 20
    apart = np.abs(names[:, None] - names[None])
    too_close = (apart[..., 0] < 20) & (apart[..., 1] < 10)
    assert too_close.sum() == len(names)
    middles = names - [0, 4]
    apart = np.abs(middles[:, None] - dots[None])
    assert not ((apart[..., 0] < 12) & (apart[..., 1] < 6)).any()
    assert middles.min() >= 5
    assert middles.max() <= 455
