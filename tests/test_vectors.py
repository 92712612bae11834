"""Laws of training.vectors and python -m training.neighbors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import InputError
from training.vectors import Vectors

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
