"""Laws of training.vectors.word_vectors and python -m training.neighbors."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from conftest import ROOT
from gensim.models import KeyedVectors
from tiny import write_run

from pipeline.shared.errors import InputError
from training.vectors.word_vectors import Tables, Vectors

VECTORS = Vectors(
    ["<unk>", "north", "northeast", "east", "south", "far-north"],
    np.array([[0, 0], [0, 1], [1, 1], [2, 0], [0, -3], [0.1, 50]], dtype=np.float32),
)


def test_neighbours_go_by_cosine_whatever_the_length() -> None:
    found = VECTORS.most_similar("north", topk=3)
    assert [word for word, _ in found] == ["far-north", "northeast", "east"]
    assert [cosine for _, cosine in found] == pytest.approx([1.0, 0.5**0.5, 0.0], abs=1e-4)


def test_a_word_and_unk_are_nobodys_neighbour() -> None:
    words = [word for word, _ in VECTORS.most_similar("south", topk=100)]
    assert sorted(words) == ["east", "far-north", "north", "northeast"]


@pytest.mark.parametrize(
    ("word", "hint"), [("nort", "close to it: north"), ("<unk>", "among the 5 words"), ("qqq", "5 words")]
)
def test_an_unknown_word_is_refused_with_the_closest_spellings(word: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        VECTORS.most_similar(word)


def test_neighbors_without_a_run_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "training.neighbors", str(tmp_path), "chip"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "no finished run" in done.stderr


# Agreement with gensim, on the same file


def both(tmp_path: Path, binary: bool, seed: int = 0) -> tuple[Vectors, KeyedVectors]:
    """Vectors of lengths that differ, in a file that gensim has written; read by both."""
    rng = np.random.default_rng(seed)
    rows_VD = rng.standard_normal((200, 12), dtype=np.float32)
    rows_VD *= np.exp(2 * rows_VD[:, :1])
    known = KeyedVectors(12)
    known.add_vectors([f"w{row}" for row in range(200)], rows_VD)
    known.save_word2vec_format(tmp_path / "vectors", binary=binary)
    return Vectors.load(tmp_path / "vectors"), KeyedVectors.load_word2vec_format(tmp_path / "vectors", binary=binary)


def assert_same(ours: list[tuple[str, float]], gensims: list[tuple[str, float]]) -> None:
    assert [word for word, _ in ours] == [word for word, _ in gensims]
    assert [cosine for _, cosine in ours] == pytest.approx([cosine for _, cosine in gensims], abs=1e-6)
    assert all(type(cosine) is float for _, cosine in ours)


@pytest.mark.parametrize("topk", [1, 10, 150])
@pytest.mark.parametrize("binary", [False, True])
def test_neighbours_are_gensims(tmp_path: Path, binary: bool, topk: int) -> None:
    vectors, gensims = both(tmp_path, binary)
    for word in vectors.words[1:40]:
        assert_same(vectors.most_similar(word, topk), gensims.most_similar(word, topn=topk))
    several = ["w3", "w150", "w4"]
    assert_same(vectors.most_similar(several, topk), gensims.most_similar(positive=several, topn=topk))
    rng = np.random.default_rng(1)
    for vector_D in (vectors.vector("w9"), rng.standard_normal(12, dtype=np.float32), rng.standard_normal(12)):
        found = gensims.most_similar(positive=[vector_D.astype(np.float32)], topn=topk)
        assert_same(vectors.most_similar(vector_D, topk), found)


@pytest.mark.parametrize("binary", [False, True])
def test_similarities_and_analogies_are_gensims(tmp_path: Path, binary: bool) -> None:
    vectors, gensims = both(tmp_path, binary)
    for first, second in (("w1", "w2"), ("w1", "w1"), ("w199", "w30")):
        assert vectors.similarity(first, second) == pytest.approx(gensims.similarity(first, second), abs=1e-6)
    for a, b, c in (("w1", "w2", "w3"), ("w9", "w8", "w199"), ("w5", "w6", "w5")):
        assert_same(vectors.analogy(a, b, c), gensims.most_similar(positive=[b, c], negative=[a], topn=10))


def test_words_and_vectors_are_gensims(tmp_path: Path) -> None:
    vectors, gensims = both(tmp_path, binary=False)
    assert len(vectors) == len(gensims)
    for word in ("w0", "w199", "w200", "<unk>"):
        assert (word in vectors) == (word in gensims)
    assert (vectors.vector("w42") == gensims["w42"]).all()


# Laws


def test_a_run_and_its_words_are_looked_up_alike(tmp_path: Path) -> None:
    write_run(tmp_path / "run", VECTORS.words, VECTORS.center_VD)
    for source in (tmp_path / "run", str(tmp_path / "run"), tmp_path / "run" / "vectors.safetensors"):
        vectors = Vectors.load(source)
        assert vectors.most_similar("north") == VECTORS.most_similar("north")
        assert vectors.counts_V is not None
        assert vectors.counts_V.tolist() == [6, 5, 4, 3, 2, 1]


def test_unk_is_no_word() -> None:
    assert len(VECTORS) == 5
    assert "<unk>" not in VECTORS
    assert [word in VECTORS for word in ("north", "nort", 7)] == [True, False, False]


def test_a_vector_is_read_only_and_of_float32() -> None:
    vector_D = VECTORS.vector("east")
    assert vector_D.tolist() == [2, 0]
    assert vector_D.dtype == np.float32
    with pytest.raises(ValueError, match="read-only"):
        vector_D[0] = 1
    assert VECTORS.center_VD.flags.writeable


def test_the_mean_of_words_is_of_vectors_of_length_1() -> None:
    """far-north is 50 long: by plain sums it alone would decide."""
    (nearest, cosine), *_ = VECTORS.most_similar(["far-north", "east"])
    assert nearest == "northeast"
    assert cosine == pytest.approx(1, abs=1e-5)


def test_a_word_and_itself_have_cosine_1_and_a_zero_vector_0() -> None:
    vectors = Vectors(["<unk>", "a", "zero"], np.array([[0, 0], [0.1, 0.7], [0, 0]], dtype=np.float32))
    assert vectors.similarity("a", "a") == 1.0
    assert (vectors.similarity("a", "zero"), vectors.similarity("zero", "zero")) == (0, 0)
    assert vectors.most_similar("zero") == [("a", 0)]
    assert vectors.most_similar(np.zeros(2)) == [("a", 0), ("zero", 0)]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-35, 1e-30, 1e-19, 1e19, 1e30])
def test_cosines_do_not_depend_on_lengths_whose_squares_are_beyond_float32(scale: float) -> None:
    vectors = Vectors(VECTORS.words, VECTORS.center_VD * np.float32(scale))
    expected = VECTORS.most_similar("north")
    found = vectors.most_similar("north")
    assert [word for word, _ in found] == [word for word, _ in expected]
    assert [cosine for _, cosine in found] == pytest.approx([cosine for _, cosine in expected], abs=1e-4)


def test_a_vector_longer_than_any_float32_is_refused() -> None:
    with pytest.raises(InputError, match="longer than"):
        Vectors(["<unk>", "a", "b"], np.array([[0, 0], [3e38, 3e38], [0, 1]], np.float32)).most_similar("b")


@pytest.mark.parametrize("topk", [1, 5, 9, 30])
def test_equal_cosines_go_by_frequency(topk: int) -> None:
    center_VD = np.array([[0, 0], [1, 0], *[[0, 1]] * 10, *[[2, 0]] * 10], dtype=np.float32)
    vectors = Vectors(["<unk>", *(f"w{row}" for row in range(1, 22))], center_VD)
    expected = [*(f"w{row}" for row in range(12, 22)), *(f"w{row}" for row in range(2, 12))]
    assert [word for word, _ in vectors.most_similar("w1", topk)] == expected[:topk]


def test_all_words_asked_for_leave_none() -> None:
    assert VECTORS.most_similar(VECTORS.words[1:]) == []


@pytest.mark.parametrize(
    ("query", "words"),
    [
        pytest.param([], "no words", id="no words"),
        pytest.param(["north", "nort"], "'nort' is not among", id="an unknown word"),
        pytest.param(np.zeros(3), "shape", id="another D"),
        pytest.param(np.zeros((1, 2)), "shape", id="a table"),
        pytest.param(np.array([0, np.nan]), "no numbers", id="nan"),
    ],
)
def test_a_query_that_is_none_is_refused(query: list[str] | npt.NDArray[np.float64], words: str) -> None:
    with pytest.raises(InputError, match=words):
        VECTORS.most_similar(query)


def test_a_topk_of_0_is_refused() -> None:
    with pytest.raises(InputError, match="topk: found 0"):
        VECTORS.most_similar("north", topk=0)


def test_looking_words_up_loads_neither_torch_nor_scipy() -> None:
    code = """if True:
        import sys
        from training.vectors.word_vectors import Vectors
        heavy = {"torch", "scipy", "matplotlib", "pandas", "numba", "mlflow"} & sys.modules.keys()
        assert not heavy, heavy
    """
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


# Arguments of another type


@pytest.mark.parametrize("word", [None, b"north", 1, 0.5, ["north"], ("north",), np.array(["north"])])
def test_a_word_that_is_no_str_is_refused_by_every_method(word: Any) -> None:
    assert word not in VECTORS if not isinstance(word, np.ndarray) else True
    calls: list[Callable[[], object]] = [
        lambda: VECTORS.vector(word),
        lambda: VECTORS.word_id(word),
        lambda: VECTORS.similarity("north", word),
        lambda: VECTORS.similarity(word, "north"),
        lambda: VECTORS.analogy("north", word, "east"),
        lambda: VECTORS.most_similar(["north", word]),
    ]
    for run in calls:
        with pytest.raises(TypeError, match=rf"^word: found .* \({type(word).__name__}\), expected a str$"):
            run()


@pytest.mark.parametrize("query", [None, 3, b"north", iter(["north"]), np.array(["north", None]), [0.5, 1.0]])
def test_a_query_of_another_type_is_refused(query: Any) -> None:
    with pytest.raises(TypeError, match=r"^(query|word): found .*, expected"):
        VECTORS.most_similar(query)


@pytest.mark.parametrize("query", [np.array([1j, 0]), np.array([True, False]), np.array("north"), np.array(None)])
def test_a_vector_of_no_numbers_is_refused(query: npt.NDArray[np.float64]) -> None:
    with pytest.raises(TypeError, match=r"^query: found a vector of .*, expected 2 finite numbers"):
        VECTORS.most_similar(query)


@pytest.mark.parametrize("topk", [2.5, 2.0, True, False, None, "3", np.float32(2), np.True_, [3], np.array(2.5)])
def test_a_topk_that_is_no_whole_number_is_refused(topk: Any) -> None:
    calls: list[Callable[[], object]] = [
        lambda: VECTORS.most_similar("north", topk),
        lambda: VECTORS.analogy("north", "east", "south", topk),
    ]
    for run in calls:
        with pytest.raises(TypeError, match=r"^topk: found .*, expected a whole number, 1 or more$"):
            run()


def test_what_numpy_makes_is_welcome() -> None:
    expected = VECTORS.most_similar(["north", "east"], 2)
    topk: Any
    query: Any
    for topk in (np.int64(2), np.uint8(2), np.array(2)):
        assert VECTORS.most_similar(["north", "east"], topk) == expected
    for query in (np.array(["north", "east"]), np.array(["north", "east"], object), ("north", "east")):
        assert VECTORS.most_similar(query, 2) == expected
    assert VECTORS.most_similar(np.array([1, 2])) == VECTORS.most_similar(np.array([1.0, 2.0]))


@pytest.mark.parametrize("name", ["positive", "topn"])
def test_gensims_names_of_arguments_are_named_in_the_error(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        VECTORS.most_similar(**dict[str, Any]({name: ["north"]}))


def test_vectors_that_are_no_numbers_or_do_not_fit_their_words_are_refused() -> None:
    nan = Vectors(["<unk>", "a", "b"], np.array([[0, 0], [np.nan, 1], [0, 1]], np.float32))
    for run in (lambda: nan.similarity("a", "b"), lambda: nan.most_similar("b"), lambda: nan.analogy("a", "b", "b")):
        with pytest.raises(InputError, match="no numbers"):
            run()
    center_VD: Any
    kind: type[Exception]
    for center_VD, kind in (([[0.0], [1.0]], TypeError), (np.zeros((2, 2)), TypeError), (nan.center_VD, InputError)):
        with pytest.raises(kind, match=r"^center_VD: found .*, expected"):
            Vectors(["<unk>", "a"], center_VD)


@pytest.mark.parametrize("source", [None, 3, b"runs/demo", ["runs/demo"]])
def test_a_source_that_is_no_path_is_refused(source: Any) -> None:
    for load in (Vectors.load, Tables.load):
        with pytest.raises(TypeError, match=r"found .*, expected a path"):
            load(source)
