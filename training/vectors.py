"""What a finished run has learnt: Vectors, to look words up in, and Tables, to go on from or to compare.

V words, D dimensions.
"""

import difflib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from pipeline.errors import InputError
from training.files import SUMMARY, VECTORS, VOCAB
from training.registry import opened


@dataclass(frozen=True)
class Vectors:
    """``words`` (V) and their center vectors ``center_VD`` (float32); row 0, <unk>, is zero and nobody's neighbour."""

    words: list[str]
    center_VD: npt.NDArray[np.float32]

    @classmethod
    def load(cls, run: Path | str) -> "Vectors":
        """The vectors of the run in folder ``run``, or registered with MLflow, as in "models:/demo@champion".

        Raises InputError when there is no finished one.
        """
        vocabulary, (center_VD,) = _read(run, "center")  # the context table stays on the disk
        return cls(vocabulary["word"].to_pylist(), center_VD)

    def most_similar(self, word: str, topk: int = 10) -> list[tuple[str, float]]:
        """The ``topk`` words nearest to ``word`` by cosine, nearest first (d2l 15.4.5), itself and <unk> left out.

        Raises InputError, with the closest spellings, for a word without a vector.
        """
        query = self.word_id(word)
        norms_V = np.linalg.norm(self.center_VD, axis=1)
        cosine_V = self.center_VD @ self.center_VD[query] / np.maximum(norms_V * norms_V[query], 1e-9)
        cosine_V[[0, query]] = -np.inf
        nearest = np.argsort(-cosine_V, kind="stable")[: min(topk, len(self.words) - 2)]
        return [(self.words[index], float(cosine_V[index])) for index in nearest]

    def word_id(self, word: str) -> int:
        """The row of ``word``."""
        try:
            return self.words.index(word, 1)
        except ValueError:
            close = difflib.get_close_matches(word, self.words[1:], n=3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise InputError(
                f"{word!r} is not among the {len(self.words) - 1:,} words of the vocabulary{hint}"
            ) from None


@dataclass(frozen=True)
class Tables:
    """``words`` (V), how often each occurs ``counts_V`` (int64), and both tables (float32); row 0 is <unk> and zero."""

    words: list[str]
    counts_V: npt.NDArray[np.int64]
    center_VD: npt.NDArray[np.float32]
    context_VD: npt.NDArray[np.float32]

    @classmethod
    def load(cls, run: Path | str) -> "Tables":
        """All that the run ``run`` has learnt; named, and refused, as by Vectors.load."""
        vocabulary, (center_VD, context_VD) = _read(run, "center", "context")
        counts_V = vocabulary["count"].to_numpy()
        return cls(vocabulary["word"].to_pylist(), counts_V, center_VD, context_VD)


def _read(run: Path | str, *names: str) -> tuple[pa.Table, list[npt.NDArray[np.float32]]]:
    """The vocabulary and the tables ``names`` of a run: all of one run, even where a link to it moves meanwhile."""
    with opened(run) as place:
        folder = place.resolve()
        if not (folder / SUMMARY).is_file():
            raise InputError(f"{run}: no {SUMMARY}, so no finished run; train one with training/train.py")
        try:
            vocabulary = pq.read_table(folder / VOCAB, columns=["word", "count"])
            with safe_open(folder / VECTORS, framework="numpy") as file:
                tables = [file.get_tensor(name) for name in names]
        except (OSError, pa.ArrowException, SafetensorError) as error:
            raise InputError(f"{run}: {VECTORS} or {VOCAB} cannot be read ({error}); train again") from None
    for table_VD in tables:
        if len(vocabulary) != len(table_VD):
            raise InputError(f"{run}: {len(table_VD)} vectors for {len(vocabulary)} words; train again")
        if not np.isfinite((table_VD.min(), table_VD.max())).all():
            raise InputError(f"{run}: {VECTORS} holds values that are no numbers; train again")
    return vocabulary, tables
