"""The result of a finished run: Vectors, for looking up words, and Tables, for warm starts and comparisons.

V words, D dimensions, K words of a query.
"""

import difflib
import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.dataset.vocab import check_columns
from pipeline.shared.errors import InputError, one_line, shown
from pipeline.shared.files import os_errors
from pipeline.shared.storage import Location
from training.vectors import word2vec_files
from training.vectors.cosine import chunks, cosines, norms, unit
from training.vectors.mlflow_uri import opened
from training.vectors.run_files import SUMMARY, VECTORS, VOCAB, is_finished, is_safetensors, map_tables

SOURCES = "a finished run's folder, such as runs/ptb; models:/NAME@ALIAS; a word2vec file, text or binary; .safetensors"
"""What Vectors.load takes, for the help of commands."""
STRICT = "refuse a word2vec file with words that are not UTF-8, instead of reading them with U+FFFD"

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Vectors:
    """``words`` (V) and their center vectors ``center_VD`` (float32), the most frequent word first.

    Row 0 is <unk>: a zero vector that is never a neighbour and cannot be looked up, so ``len`` is V - 1. Searches are
    exact and cost V·D. Norms are cached, so do not change ``center_VD``.
    """

    words: list[str]
    center_VD: Float32
    counts_V: npt.NDArray[np.int64] | None = None
    """How often each word occurs (int64); None when the file has no counts."""

    def __post_init__(self) -> None:
        found = self.center_VD
        if not isinstance(found, np.ndarray) or found.dtype != np.float32:
            kind = found.dtype if isinstance(found, np.ndarray) else type(found).__name__
            raise TypeError(f"center_VD: found {kind}, expected an array of float32")
        if found.ndim != 2 or len(found) != len(self.words):
            raise InputError(
                f"center_VD: found shape {found.shape}, expected a row for each of {len(self.words):,} words"
            )

    @classmethod
    def load(cls, source: Path | str, strict: bool = False) -> "Vectors":
        """The vectors of a run or published version (its folder), of a version that is registered with MLflow
        ("models:/demo@champion"), or of a file in one of these formats, recognised by its content:

        - word2vec's text or binary format, as gensim, word2vec.c, fastText and training.export write it, which may be
          compressed with gzip, bzip2, xz or zstd;
        - safetensors with a table "center", and a vocab.parquet with "word" and "count" beside it.

        A row for <unk> is added before the words of a word2vec file; if the file has <unk> itself, that is an ordinary
        word. A word that is not UTF-8, such as one that word2vec.c has cut inside a letter, is read with U+FFFD, or, if
        ``strict``, refused. Raises InputError for a run that is not finished, and for a damaged file.

        Safetensors are mapped into memory, so ``center_VD`` is read-only and costs no memory but the page cache's: a
        table may be larger than the memory. It stays valid if the file is replaced or removed, which is how this
        project changes files. Who overwrites the file in place changes the vectors; who cuts it ends this process.
        """
        with opened(source) as place, os_errors(f"{place}: cannot be read", "name another file"):
            if place.is_file() and not is_safetensors(place):
                return cls(*word2vec_files.read(place, strict))
            vocabulary, (center_VD,) = _read(place, source, "center")
        return cls(vocabulary["word"].to_pylist(), center_VD, vocabulary["count"].to_numpy())

    def __len__(self) -> int:
        """The number of words that can be looked up."""
        return len(self.words) - 1

    def __contains__(self, word: object) -> bool:
        return isinstance(word, str) and word in self._row_of

    def vector(self, word: str) -> Float32:
        """The vector of ``word``, shape (D,), as it was trained: a read-only view.

        Raises InputError, with the closest spellings, for a word without a vector.
        """
        vector_D: Float32 = self.center_VD[self.word_id(word)]
        vector_D.flags.writeable = False
        return vector_D

    def similarity(self, first: str, second: str) -> float:
        """The cosine of two words' vectors, -1 to 1; 0 if one is zero. Raises InputError for an unknown word."""
        first_1D, second_1D = (self.center_VD[[self.word_id(word)]] for word in (first, second))
        return float(cosines(first_1D, second_1D)[0])

    def most_similar(
        self, query: str | Sequence[str] | npt.NDArray[np.floating], topk: int = 10
    ) -> list[tuple[str, float]]:
        """The ``topk`` words nearest to ``query`` by cosine, nearest first (d2l 15.4.5); equal ones by frequency.

        ``query`` is a word, several words (the mean of their unit vectors), or a vector of shape (D,). The query's
        words are left out. Raises InputError, with the closest spellings, for a word without a vector, and TypeError.
        """
        if isinstance(query, np.ndarray) and (query.dtype.kind not in "UOT" or query.ndim != 1):
            return self._nearest(query, [], topk)
        if isinstance(query, bytes) or not isinstance(query, Collection):
            raise TypeError(f"query: found {_described(query)}, expected a word, several, or a vector of NumPy")
        if not len(query):
            raise InputError("query: found no words, expected a word, several, or a vector")
        rows_K = [self.word_id(word) for word in ([query] if isinstance(query, str) else query)]
        return self._nearest(unit(self.center_VD[rows_K]).mean(axis=0), rows_K, topk)

    def analogy(self, a: str, b: str, c: str, topk: int = 10) -> list[tuple[str, float]]:
        """The words that are to ``c`` as ``b`` is to ``a``: those nearest to b - a + c, with unit vectors.

        This is 3CosAdd (Levy & Goldberg 2014, Eq. 3), as in training.evaluate and gensim; a, b and c are left out.
        Raises InputError for an unknown word.
        """
        rows_K = [self.word_id(word) for word in (a, b, c)]
        return self._nearest(np.array([-1, 1, 1], np.float32) @ unit(self.center_VD[rows_K]), rows_K, topk)

    def word_id(self, word: str) -> int:
        """The row of ``word``, 1 or more. Raises InputError for an unknown word, and TypeError for what is no str."""
        if not isinstance(word, str):
            raise TypeError(f"word: found {_described(word)}, expected a str")
        row = self._row_of.get(word)
        if row is None:
            close = difflib.get_close_matches(word, self.words[1:], n=3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise InputError(f"{word!r} is not among the {len(self):,} words of the vocabulary{hint}")
        return row

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {word: row for row, word in enumerate(self.words) if row}

    @cached_property
    def _norms_V(self) -> Float32:
        return norms(self.center_VD)

    def _nearest(self, query_D: npt.NDArray[np.floating], left_out: list[int], topk: int) -> list[tuple[str, float]]:
        dim = self.center_VD.shape[1]
        try:
            topk = operator.index(str(topk) if isinstance(topk, bool) else topk)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(f"topk: found {_described(topk)}, expected a whole number, 1 or more") from None
        if query_D.dtype.kind not in "iuf":
            raise TypeError(f"query: found a vector of {query_D.dtype}, expected {dim} finite numbers")
        if query_D.shape != (dim,) or not np.isfinite(query_D).all():
            found = f"shape {query_D.shape}" if query_D.shape != (dim,) else "values that are no numbers"
            raise InputError(f"query: found a vector with {found}, expected {dim} finite numbers")
        if topk < 1:
            raise InputError(f"topk: found {topk}, expected 1 or more")
        unit_D = (query_D / max(np.linalg.norm(query_D), np.finfo(np.float32).tiny)).astype(np.float32)
        cosine_V = self.center_VD @ unit_D / self._norms_V
        cosine_V[[0, *left_out]] = -np.inf
        topk = min(topk, len(self.words) - len({0, *left_out}))
        if topk == 0:
            return []
        # The k-th largest value first, then all rows that reach it: argpartition's choice among equals is undefined.
        least = np.partition(cosine_V, -topk)[-topk]
        rows = np.flatnonzero(cosine_V >= least)
        nearest = rows[np.argsort(-cosine_V[rows], kind="stable")[:topk]]
        return [(self.words[row], float(cosine_V[row])) for row in nearest]


def _described(found: object) -> str:
    """A value with its type, for an error line."""
    return f"{shown(found)} ({type(found).__name__})"


@dataclass(frozen=True)
class Tables:
    """``words`` (V), how often each occurs ``counts_V`` (int64), and both tables (float32); row 0 is <unk> and zero."""

    words: list[str]
    counts_V: npt.NDArray[np.int64]
    center_VD: Float32
    context_VD: Float32

    @classmethod
    def load(cls, run: Path | str) -> "Tables":
        """The tables of a run (its folder) or of a registered version, mapped and read-only as those of Vectors.load.

        Raises InputError, as Vectors.load.
        """
        with opened(run) as place, os_errors(f"{place}: cannot be read", "name another file"):
            if place.is_file() and not is_safetensors(place):
                raise InputError(f"{run}: found a file, expected a finished run's folder, which has both tables")
            vocabulary, (center_VD, context_VD) = _read(place, run, "center", "context")
        counts_V = vocabulary["count"].to_numpy()
        return cls(vocabulary["word"].to_pylist(), counts_V, center_VD, context_VD)


def _read(place: Path, source: Path | str, *names: str) -> tuple[pa.Table, list[Float32]]:
    """The vocabulary and the tables ``names`` of a run, or of a .safetensors file and the vocabulary beside it.

    All files are of one run, even if a link to it moves meanwhile. Error messages name ``source``.
    """
    file, remedy = place.resolve(), "write it again"
    if not file.is_file():
        if not is_finished(file):
            raise InputError(f"{source}: no {SUMMARY}, so no finished run; train one with training/train.py")
        file, remedy = file / VECTORS, "train again"
    try:
        with Location.of(file.with_name(VOCAB)).open() as vocab, pq.ParquetFile(vocab) as parquet:
            vocabulary = parquet.read(columns=["word", "count"])
        check_columns(vocabulary, "word", "count")
        tables = map_tables(file, *names)
    except (OSError, ValueError, pa.ArrowException) as error:  # VocabError and RecordError are ValueErrors
        raise InputError(f"{source}: {file.name} or {VOCAB} cannot be read ({one_line(error)}); {remedy}") from None
    for name, table_VD in zip(names, tables, strict=True):
        if len(vocabulary) != len(table_VD):
            raise InputError(f"{source}: {len(table_VD)} vectors for {len(vocabulary)} words; {remedy}")
        if not all(np.isfinite(table_VD[chunk]).all() for chunk in chunks(*table_VD.shape)):
            raise InputError(f"{source}: {file.name} holds values that are no numbers; {remedy}")
        if table_VD[0].any():
            raise InputError(f"{source}: found a vector in row 0 of {name}, expected the zeros of <unk>; {remedy}")
    return vocabulary, tables
