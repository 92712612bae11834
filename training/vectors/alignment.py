"""Alignment: new vectors turned onto the published ones, so that what was learnt on the old ones still works.

Training has no reason to prefer one turn of the space to another: loss, cosines and v·u are the same in all of them.
The one that is nearest to the published vectors is found by orthogonal Procrustes (Schönemann 1966).

V words, S words that both have, D dimensions.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save
from scipy.linalg import orthogonal_procrustes

from pipeline.shared.errors import InputError
from pipeline.shared.files import atomic_write
from training.vectors.compare import shared_rows
from training.vectors.word_vectors import Tables

ROTATION, DRIFT = "alignment.safetensors", "drift.parquet"

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Alignment:
    """The challenger after ``rotation_DD``, and how far each shared word is from where it was published."""

    rotation_DD: Float64
    """Orthogonal, with or without a reflection: new vectors @ rotation_DD are the aligned ones."""
    tables: Tables
    """The challenger's; both tables turned."""
    words: list[str]
    """The S shared words, most frequent first."""
    counts_S: npt.NDArray[np.int64]
    """How often each occurs now."""
    drift_S: npt.NDArray[np.float32]
    """1 - cosine of a word's aligned and published center vector: 0 has not moved, 1 has nothing left, 2 is opposite.

    A zero vector has drift 1.
    """

    def write(self, folder: Path) -> None:
        """Writes FOLDER/alignment.safetensors ("rotation") and FOLDER/drift.parquet, whole; equal bytes for equal ones.

        Raises OSError.
        """
        drift = pa.table({"word": self.words, "count": self.counts_S, "drift": self.drift_S})
        with atomic_write(folder / ROTATION) as file:
            file.write(save({"rotation": np.ascontiguousarray(self.rotation_DD)}))
        with atomic_write(folder / DRIFT) as file:
            pq.write_table(drift, file, compression="zstd")


def align(challenger: Tables, champion: Tables) -> Alignment:
    """The challenger turned so that sum_S count·|v_new R - v_published|² is least, R orthogonal.

    The counts are the challenger's: it is published next, and they say how often a word is looked up from now on. The
    center vectors decide, since they are what readers have; the contexts follow, so that v·u stays.

    With fewer shared words than D there are many such R: it is then orthogonal still, but arbitrary (the same every
    time) in the directions that the shared words leave open. Equal bytes on one machine with as many threads. Memory is
    two copies of the shared rows in float64. Raises InputError without a shared word, or for another D.
    """
    dim, published_dim = challenger.center_VD.shape[1], champion.center_VD.shape[1]
    if dim != published_dim:
        raise InputError(
            f"dim: found {dim}, expected the {published_dim} of the published vectors, which others of another length "
            "cannot be turned onto; keep dim, or begin a new workspace"
        )
    rows_S, published_S = shared_rows(challenger.words, champion.words)
    if not rows_S.size:
        raise InputError(
            f"found no word of the {len(champion.words) - 1:,} published ones among the {len(challenger.words) - 1:,} "
            "new ones, expected some to turn the new vectors by; check that the corpus and its tokenizer are the same"
        )
    weight_S1 = np.sqrt(challenger.counts_V[rows_S], dtype=np.float64)[:, None]
    rotation_DD, _ = orthogonal_procrustes(
        weight_S1 * challenger.center_VD[rows_S], weight_S1 * champion.center_VD[published_S]
    )
    center_VD, context_VD = (
        (table_VD @ rotation_DD).astype(np.float32) for table_VD in (challenger.center_VD, challenger.context_VD)
    )
    return Alignment(
        rotation_DD=rotation_DD,
        tables=Tables(challenger.words, challenger.counts_V, center_VD, context_VD),
        words=[challenger.words[row] for row in rows_S],
        counts_S=challenger.counts_V[rows_S],
        drift_S=drift(center_VD[rows_S], champion.center_VD[published_S]),
    )


def drift(aligned_SD: npt.NDArray[np.float32], published_SD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """1 - cosine of each pair of rows, 0 to 2; exactly 0 for equal vectors, 1 where one is zero."""
    dots_S, new_S, old_S = (
        np.einsum("sd,sd->s", first_SD, second_SD, dtype=np.float64)
        for first_SD, second_SD in (
            (aligned_SD, published_SD),
            (aligned_SD, aligned_SD),
            (published_SD, published_SD),
        )
    )
    squares_S = new_S * old_S  # under one root, since sqrt(x * x) is x
    cosine_S = np.where(squares_S > 0, dots_S / np.sqrt(np.where(squares_S > 0, squares_S, 1)), 0)
    return np.asarray(np.clip(1 - cosine_S, 0, 2), dtype=np.float32)
