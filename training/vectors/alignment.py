"""Alignment: rotates new vectors towards the published ones, so that models trained on the old vectors still work.

Training does not prefer one rotation of the space: loss, cosines and v·u are invariant. Orthogonal Procrustes
(Schönemann 1966) finds the rotation that is nearest to the published vectors.

V words, S shared words, B words of a chunk, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save
from scipy.linalg import polar

from pipeline.shared.errors import InputError
from pipeline.shared.files import atomic_write, write
from training.vectors.compare import shared_rows
from training.vectors.cosine import chunks, cosines
from training.vectors.word_vectors import Tables

ROTATION, DRIFT = "alignment.safetensors", "drift.parquet"

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """The challenger's rotation, and the drift of each shared word from its published vector."""

    rotation_DD: Float64
    """Orthogonal, possibly with a reflection: aligned vectors = new vectors @ rotation_DD."""
    words: list[str]
    """The S shared words, most frequent first."""
    counts_S: npt.NDArray[np.int64]
    """Their counts in the new corpus."""
    drift_S: Float32
    """1 - cosine of a word's aligned and published center vectors: 0 same direction, 1 orthogonal, 2 opposite.

    A zero vector has drift 1.
    """

    def write(self, folder: Path) -> None:
        """Writes FOLDER/alignment.safetensors ("rotation") and FOLDER/drift.parquet, atomically. Raises OSError.

        Equal alignments give equal bytes.
        """
        drift = pa.table({"word": self.words, "count": self.counts_S, "drift": self.drift_S})
        write(folder / ROTATION, save({"rotation": np.ascontiguousarray(self.rotation_DD)}))
        with atomic_write(folder / DRIFT) as file:
            pq.write_table(drift, file, compression="zstd")


def rotated(table_VD: Float32, rotation_DD: Float64) -> Iterator[Float32]:
    """The table's aligned vectors, in chunks of rows."""
    return ((table_VD[chunk] @ rotation_DD).astype(np.float32) for chunk in chunks(*table_VD.shape))


def align(challenger: Tables, champion: Tables) -> Alignment:
    """Finds the orthogonal R that minimises sum_S count·|v_new R - v_published|².

    It is the orthogonal factor of sum_S count·v_newᵀ v_published. The counts are the challenger's: they say how often
    words are looked up after it is published. R is fitted to the center vectors, which readers use, and meant for the
    context vectors too, so that v·u does not change.

    With fewer shared words than D, R is not unique: it is arbitrary, but the same every time, in the directions that
    the shared words do not determine. Deterministic on one machine with a fixed number of threads. No table is copied.
    Raises InputError without a shared word, or when D differs.
    """
    dim, published_dim = challenger.center_VD.shape[1], champion.center_VD.shape[1]
    if dim != published_dim:
        raise InputError(
            f"dim: found {dim}, expected the {published_dim} of the published vectors, since vectors of different "
            "lengths cannot be aligned; keep dim, or begin a new workspace"
        )
    rows_S, published_S = shared_rows(challenger.words, champion.words)
    if not rows_S.size:
        raise InputError(
            f"found no word of the {len(champion.words) - 1:,} published ones among the {len(challenger.words) - 1:,} "
            "new ones, expected some to align the two by; check that the corpus and its tokenizer are the same"
        )
    products_DD = np.zeros((dim, dim))
    for ours_B, theirs_B in _in_chunks(rows_S, published_S, dim):
        weight_B1 = np.sqrt(challenger.counts_V[ours_B], dtype=np.float64)[:, None]
        new_BD, published_BD = weight_B1 * challenger.center_VD[ours_B], weight_B1 * champion.center_VD[theirs_B]
        products_DD += new_BD.T @ published_BD
    rotation_DD, _ = polar(products_DD)
    drifts = [
        drift((challenger.center_VD[ours_B] @ rotation_DD).astype(np.float32), champion.center_VD[theirs_B])
        for ours_B, theirs_B in _in_chunks(rows_S, published_S, dim)
    ]
    return Alignment(
        rotation_DD=rotation_DD,
        words=[challenger.words[row] for row in rows_S],
        counts_S=challenger.counts_V[rows_S],
        drift_S=np.concatenate(drifts),
    )


def _in_chunks(
    rows_S: npt.NDArray[np.int64], published_S: npt.NDArray[np.int64], dim: int
) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    return ((rows_S[chunk], published_S[chunk]) for chunk in chunks(len(rows_S), dim))


def drift(aligned_SD: Float32, published_SD: Float32) -> Float32:
    """1 - cosine of each pair of rows, 0 to 2; exactly 0 for equal vectors, 1 if one is zero."""
    return np.asarray(np.clip(1 - cosines(aligned_SD, published_SD), 0, 2), dtype=np.float32)
