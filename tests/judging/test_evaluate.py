"""Laws of training.judging.evaluation, with gensim as the oracle."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from conftest import Command, data_file
from gensim.models import KeyedVectors
from tiny import write_run

from training import evaluate
from training.judging import evaluation
from training.judging.evaluation import analogies, word_pairs
from training.judging.questions import read_analogies, read_pairs
from training.vectors import cosine
from training.vectors.cosine import cosines
from training.vectors.word_vectors import Vectors


def table(*rows: list[float]) -> npt.NDArray[np.float32]:
    return np.array(rows, dtype=np.float32)


SIX = Vectors(
    ["<unk>", "man", "woman", "king", "queen", "tree", "stone"],
    table([0, 0, 0], [5, 0, 1], [5, 4, 1], [1, 0, 5], [1, 4, 5], [-3, 1, 0], [0, -2, -1]),
)


def in_gensim(vectors: Vectors) -> KeyedVectors:
    """The same vectors as a gensim user has them."""
    known = KeyedVectors(vectors.center_VD.shape[1])
    known.add_vectors(vectors.words[1:], vectors.center_VD[1:])
    return known


def random_vectors(words: list[str], dim: int, seed: int = 0) -> Vectors:
    center_VD = np.random.default_rng(seed).standard_normal((len(words) + 1, dim), dtype=np.float32)
    center_VD *= np.exp(center_VD[:, :1])  # lengths that differ
    center_VD[0] = 0
    return Vectors(["<unk>", *words], center_VD)


def mixed_case(seed: int) -> Vectors:
    """40 words, 20 of them in a second spelling further down, whose vector is close to the first's."""
    words = [f"{'Wörd' if number % 3 else 'straße'}{number}" for number in range(40)]
    vectors = random_vectors([*words, *(word.swapcase() for word in words[::2])], dim=3, seed=seed)
    vectors.center_VD[41:] = vectors.center_VD[1:41:2] * 1.5 + vectors.center_VD[41:] / 20
    return vectors


def assert_analogies_agree(vectors: Vectors, file: Path, restrict_vocab: int) -> None:
    result = analogies(vectors, file, restrict_vocab)
    score, sections = in_gensim(vectors).evaluate_word_analogies(str(file), restrict_vocab=restrict_vocab)
    counted = [(s["section"], len(s["correct"]), len(s["correct"]) + len(s["incorrect"])) for s in sections]
    ours = [(s.section, round((s.accuracy or 0) * s.questions), s.questions) for s in result.sections]
    total = ("Total accuracy", round(result.accuracy * result.questions), result.questions)
    assert [*ours, total] == counted
    assert result.accuracy == pytest.approx(score, abs=1e-12)


def assert_pairs_agree(vectors: Vectors, file: Path, restrict_vocab: int) -> None:
    result = word_pairs(vectors, file, restrict_vocab)
    _, spearman, unknown = in_gensim(vectors).evaluate_word_pairs(str(file), restrict_vocab=restrict_vocab)
    assert result.spearman == pytest.approx(spearman.statistic, abs=1e-12)
    assert 100 * (1 - result.coverage) == pytest.approx(unknown, abs=1e-9)
    assert result.coverage == result.pairs / (result.pairs + result.unknown)


# Agreement


@pytest.mark.parametrize("restrict_vocab", [300_000, 50, 20])
@pytest.mark.parametrize("seed", range(3))
def test_analogies_are_gensims(tmp_path: Path, seed: int, restrict_vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With words in two spellings, unknown ones, questions that repeat a word, and a section of unknown words."""
    monkeypatch.setattr(evaluation, "BLOCK_QUESTIONS", 100)
    monkeypatch.setattr(cosine, "CHUNK_VALUES", 1000)
    vectors, rng = mixed_case(seed), np.random.default_rng(seed)
    lines = [" ".join(rng.choice([*vectors.words[1:], "unknown"], 4)) for _ in range(4000)]
    content = [": one", *lines[:1000], ": two words", *lines[1000:], ": none", "a b c d"]
    (tmp_path / "questions").write_text("\n".join(content).replace("Wörd1", "WÖRD1") + "\n")
    assert_analogies_agree(vectors, tmp_path / "questions", restrict_vocab)
    assert analogies(vectors, tmp_path / "questions", restrict_vocab).accuracy > 0
    assert analogies(vectors, tmp_path / "questions", restrict_vocab).sections[-1].accuracy is None


@pytest.mark.parametrize("restrict_vocab", [300_000, 50, 20])
@pytest.mark.parametrize("seed", range(3))
def test_correlations_are_gensims(tmp_path: Path, seed: int, restrict_vocab: int) -> None:
    """With equal scores, pairs given twice and in both orders, words in two spellings, and unknown ones."""
    vectors, rng = mixed_case(seed), np.random.default_rng(seed)
    drawn = rng.choice([*vectors.words[1:], "unknown"], (200, 2)).tolist()
    pairs = [(a, b) for a, b in drawn if a.upper() != b.upper()]  # gensim's cosine of a word and itself is nearly 1
    pairs += [(b, a) for a, b in pairs[:9]] + pairs[20:29]
    lines = [f"{a}\t{b}\t{rng.integers(0, 20) / 2}" for a, b in pairs]
    (tmp_path / "pairs").write_text("\n".join(lines).replace("Wörd1", "WÖRD1") + "\n")
    assert_pairs_agree(vectors, tmp_path / "pairs", restrict_vocab)


@pytest.mark.parametrize("restrict_vocab", [300_000, 500])
def test_the_published_analogies_are_gensims(restrict_vocab: int) -> None:
    """Where each kind of analogy is an offset of its own, with noise, and words are in lower case, as often."""
    file = data_file("eval/questions-words.txt", "agreement on it")
    rng = np.random.default_rng(0)
    vector_of: dict[str, npt.NDArray[np.float64]] = {}
    for _, questions in read_analogies(file):
        offset_D = 2 * rng.standard_normal(20)
        for a, b, c, d in questions:
            for first, second in ((a, b), (c, d)):
                vector_D = vector_of.setdefault(first.lower(), rng.standard_normal(20))
                vector_of.setdefault(second.lower(), vector_D + offset_D + 0.4 * rng.standard_normal(20))
    words = sorted(vector_of, key=hash_of)[20:]
    center_VD = np.array([np.zeros(20), *(vector_of[word] for word in words)], dtype=np.float32)
    vectors = Vectors(["<unk>", *words], center_VD)
    assert_analogies_agree(vectors, file, restrict_vocab)
    result = analogies(vectors, file, restrict_vocab)
    assert 0.2 < result.accuracy < 0.9
    assert len(result.sections) == 14
    assert result.questions + result.unknown == 19_544


def hash_of(word: str) -> int:
    """Some order that neither spelling nor Python's own seed makes."""
    return int.from_bytes(word.encode(), "little") % 1_000_003


def test_published_pairs_are_gensims() -> None:
    file = data_file("eval/wordsim353.txt", "agreement on it")
    words = sorted({word for a, b, _ in read_pairs(file) for word in (a, b)}, key=hash_of)[40:]
    assert_pairs_agree(random_vectors(words, dim=10), file, 300_000)
    assert_pairs_agree(random_vectors(words, dim=10), file, 200)
    result = word_pairs(random_vectors(words, dim=10), file)
    assert 0.5 < result.coverage < 1
    assert result.pairs + result.unknown == 353


# Laws


def test_question_words_and_unk_are_no_answers(tmp_path: Path) -> None:
    """b - a + c is mostly nearest to b or c; the zero of <unk> is nearer than what lies on the other side."""
    (tmp_path / "questions").write_text(": family\nman woman king queen\nMAN KING Woman QUEEN\n")
    assert analogies(SIX, tmp_path / "questions").accuracy == 1
    (tmp_path / "questions").write_text(": far\nman tree stone king\n")
    four = Vectors(["<unk>", "man", "tree", "stone", "king"], table([0, 0], [3, 0], [-1, 1], [-1, -1], [9, 1]))
    assert analogies(four, tmp_path / "questions").accuracy == 1


def test_a_word_and_itself_are_one_rank_whatever_the_word(tmp_path: Path) -> None:
    vectors = random_vectors([f"w{number}" for number in range(400)], dim=7)
    lines = [f"w{number} w{number} 10" for number in range(200)]
    lines += [f"w{number} w{number + 1} {number % 5}" for number in range(200, 399)]
    (tmp_path / "pairs").write_text("\n".join(lines))
    rows = np.arange(1, 401)
    assert set(cosines(vectors.center_VD[rows], vectors.center_VD[rows])) == {1.0}
    assert word_pairs(vectors, tmp_path / "pairs").pairs == 399


def test_a_vector_of_zeros_has_cosine_0(tmp_path: Path) -> None:
    vectors = Vectors(["<unk>", "a", "b", "zero"], table([0, 0], [1, 0], [1, 1], [0, 0]))
    (tmp_path / "pairs").write_text("a b 2\nzero a 1\nzero zero 1\n")
    assert word_pairs(vectors, tmp_path / "pairs").spearman == pytest.approx(1)
    (tmp_path / "questions").write_text(": all\na b zero b\nzero a b a\n")
    assert analogies(vectors, tmp_path / "questions").accuracy == 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace("\t", ","), id="commas"),
        pytest.param(lambda text: text.replace("\t", " , "), id="commas and blanks"),
        pytest.param(lambda text: text.replace("\t", ";"), id="semicolons"),
        pytest.param(lambda text: text.replace("\t", "  "), id="blanks"),
        pytest.param(lambda text: text.replace("\n", "\r\n"), id="CRLF"),
        pytest.param(lambda text: "\ufeff" + text, id="byte order mark"),
        pytest.param(
            lambda text: "\ufeff# comment,\u2028of 2003\r\n\n \n" + text + "\n\n#\n", id="comments and empty lines"
        ),
        pytest.param(lambda text: "Word 1\tWord 2\tHuman (mean)\n" + text, id="header"),
        pytest.param(
            lambda text: "# from\n" + ("a\tb\tscore\n" + text).replace("\t", ","), id="header after a comment"
        ),
        pytest.param(lambda text: text.removesuffix("\n"), id="no end of line"),
    ],
)
def test_pairs_are_the_same_however_they_are_written(tmp_path: Path, change: Callable[[str], str]) -> None:
    text = "man\tWoman\t8.3\nking\tÉmile\t1e-1\ntree\tstone\t-2\nking\tking\t10.0\n"
    (tmp_path / "pairs").write_bytes(change(text).encode())
    expected = [("man", "Woman", 8.3), ("king", "Émile", 0.1), ("tree", "stone", -2.0), ("king", "king", 10.0)]
    assert read_pairs(tmp_path / "pairs") == expected


def test_analogies_are_the_same_however_they_are_written(tmp_path: Path) -> None:
    text = "\ufeff# from\r\n: capital cities\r\n\r\nAthens Greece\tOslo  Norway \r\n:\tgram1\r\n: gram1\na b c d"
    (tmp_path / "questions").write_bytes(text.encode())
    capitals = ["ATHENS", "GREECE", "OSLO", "NORWAY"]
    expected = [("capital cities", [capitals]), ("gram1", []), ("gram1", [["A", "B", "C", "D"]])]
    assert read_analogies(tmp_path / "questions") == expected


# The command


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "run", SIX.words, SIX.center_VD)
    return tmp_path / "run"


def test_the_report_is_json_and_says_what_was_left_out(call: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("man woman 9\ntree stone 1\nking stone 5\nking house 3\n")
    (tmp_path / "questions").write_text(": family\nman woman king queen\nman woman son daughter\n: none\na b c d\n")
    files = ["--pairs", tmp_path / "pairs", tmp_path / "pairs", "--analogies", tmp_path / "questions"]
    ended = call(evaluate.main, run, *files)
    assert (ended.code, ended.stderr) == (0, "")
    pairs = {"file": str(tmp_path / "pairs"), "spearman": 0.5, "pairs": 3, "unknown": 1, "coverage": 0.75}
    family = {"section": "family", "accuracy": 1.0, "questions": 1, "unknown": 1}
    none = {"section": "none", "accuracy": None, "questions": 0, "unknown": 1}
    counts = {"accuracy": 1.0, "questions": 1, "unknown": 2, "coverage": 1 / 3}
    assert json.loads(ended.stdout) == {
        "restrict_vocab": 300_000,
        "pairs": [pairs, pairs],
        "analogies": {"file": str(tmp_path / "questions"), **counts, "sections": [family, none]},
        "next_item": None,
    }
    assert json.loads(call(evaluate.main, run, *files[:3]).stdout)["analogies"] is None
    assert json.loads(call(evaluate.main, run, *files[3:]).stdout)["pairs"] == []


def test_restrict_vocab_takes_the_most_frequent_words(call: Command, run: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs").write_text("man woman 9\nking woman 5\nking queen 3\n")
    ended = call(evaluate.main, run, "--pairs", tmp_path / "pairs", "--restrict-vocab", 3)
    assert json.loads(ended.stdout)["pairs"][0]["pairs"] == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param("man woman 1\nman king high\n", ":2: found 'high' score number", id="no number"),
        pytest.param("man;woman;6,77\n", ":1: '6,77' number 7.35", id="decimal comma"),
        pytest.param("man woman nan\nking man 1\n", ":1: 'nan'", id="nan"),
        pytest.param("man woman 1\nking man inf\n", ":2: 'inf'", id="inf"),
        pytest.param("man woman\r\n", ":1: 'man woman' two words and a score", id="two columns"),
        pytest.param("man woman 1\n\n#\nman woman king queen\n", ":4: 'man woman king queen' two", id="four columns"),
        pytest.param("man,,3\n", ":1: 'man,,3'", id="no second word"),
        pytest.param("", "no pairs", id="empty"),
        pytest.param("a,b,score\n# nothing\n", "no pairs", id="a header alone"),
        pytest.param("hund katze 7\nMaus Ratte 8\n", "0 of 2 hund, katze 6 expected 2", id="none known"),
        pytest.param("man woman 7\nMaus Ratte 8\n", "1 of 2 expected 2", id="one known"),
        pytest.param("man woman 7\nking queen 7.0\n", "score 7.0 2 known differ", id="one score"),
        pytest.param("man man 7\nking king 8\n", "cosine 1.0 2 known differ", id="one cosine"),
        pytest.param("man woman 1\nman k\udcfcng 2\n", ":2: UTF-8", id="Latin-1"),
        pytest.param("m\0a\0", ":1: 'm\\x00a\\x00' two words", id="binary"),
    ],
)
def test_pairs_that_give_no_correlation_are_refused(
    call: Command, run: Path, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "pairs").write_bytes(content.encode(errors="surrogateescape"))
    ended = call(evaluate.main, run, "--pairs", tmp_path / "pairs")
    ended.assert_refused(str(tmp_path / "pairs"), *words.split())
    assert ended.stdout == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(": x\nman woman king\n", ":2: 'man woman king' four", id="three words"),
        pytest.param(": x\nman woman king queen tree\n", ":2: four", id="five words"),
        pytest.param(":x\nman woman king queen\n", ":1: ':x' section ': capitals'", id="no blank after the colon"),
        pytest.param("man woman king queen\n", ":1: section", id="no section"),
        pytest.param("", "no questions", id="empty"),
        pytest.param(": x\n: y\n", "no questions", id="sections alone"),
        pytest.param(": x\n: y\nman woman king x\na b c d\n", "0 of 2 MAN WOMAN KING X expected 1", id="none known"),
        pytest.param(": x\nman woman k\udcfcng queen\n", ":2: UTF-8", id="Latin-1"),
    ],
)
def test_analogies_that_give_no_accuracy_are_refused(
    call: Command, run: Path, tmp_path: Path, content: str, words: str
) -> None:
    (tmp_path / "questions").write_bytes(content.encode(errors="surrogateescape"))
    ended = call(evaluate.main, run, "--analogies", tmp_path / "questions")
    ended.assert_refused(str(tmp_path / "questions"), *words.split())
    assert ended.stdout == ""


@pytest.mark.parametrize("flag", ["--pairs", "--analogies"])
@pytest.mark.parametrize(("name", "words"), [("none", "No such file"), ("", "Is a directory"), ("x" * 300, "too long")])
def test_files_that_cannot_be_read_are_named(
    call: Command, run: Path, tmp_path: Path, flag: str, name: str, words: str
) -> None:
    call(evaluate.main, run, flag, tmp_path / name).assert_refused(str(tmp_path / name), words)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("", "--pairs --analogies --next-item"),
        ("--pairs", "--pairs"),
        ("--pairs x --restrict-vocab 0", "--restrict-vocab found 0"),
        ("--pairs x --restrict-vocab many", "--restrict-vocab many"),
        ("--analogies x --analogy y", "--analogy"),
    ],
)
def test_flags_that_cannot_be_are_refused(call: Command, run: Path, flags: str, words: str) -> None:
    call(evaluate.main, run, *flags.split()).assert_refused(*words.split())


def test_a_run_that_is_not_finished_is_refused(call: Command, run: Path) -> None:
    (run / "summary.json").unlink()
    call(evaluate.main, run, "--pairs", "x").assert_refused(str(run), "no finished run")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_no_numbers_are_refused(call: Command, tmp_path: Path, value: float) -> None:
    center_VD = SIX.center_VD.copy()
    center_VD[3, 1] = value
    write_run(tmp_path / "bad", SIX.words, center_VD)
    call(evaluate.main, tmp_path / "bad", "--pairs", "x").assert_refused(str(tmp_path / "bad"), "no numbers", "train")
