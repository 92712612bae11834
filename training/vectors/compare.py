"""What two models have in common: words, neighbours, and the numbers of each that say whether it is sound.

V words of a table, S words that both have, N that are looked at, B of a block, D dimensions; row 0, <unk>, is no word.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from training.vectors.word_vectors import Tables

BLOCK_SCORES = 1 << 23
"""Cosines that are in memory at once: 32 MB."""

Rows = npt.NDArray[np.int64]
Counts = npt.NDArray[np.int64]


def rows_in(words: list[str], others: list[str]) -> Rows:
    """The row of each of ``words`` among ``others``, shape (V,); 0 for a word that is not there, and for <unk>."""
    row_of = {word: row for row, word in enumerate(others) if row}
    return np.array([0, *(row_of.get(word, 0) for word in words[1:])], dtype=np.int64)


def shared_rows(words: list[str], others: list[str]) -> tuple[Rows, Rows]:
    """The rows of the words that both have, in either, shape (S,); in the order of ``words``."""
    rows_V = rows_in(words, others)
    mine_S = np.flatnonzero(rows_V)
    return mine_S, rows_V[mine_S]


def neighbour_overlap(challenger: Tables, champion: Tables, frequent_words: int = 1000, topk: int = 10) -> float:
    """The mean share of a word's ``topk`` neighbours that are its neighbours in both, 0 to 1.

    Over the shared words that are most frequent in the champion: what is asked does not depend on who is judged.
    Neighbours, by cosine, are shared words only: words that are new or lost change nothing. Where there are no
    ``topk`` others, all of them are neighbours; 0 where fewer than two words are shared. Costs N·S·D.
    """
    published_S, rows_S = shared_rows(champion.words, challenger.words)
    num_asked, topk = min(frequent_words, len(rows_S)), min(topk, len(rows_S) - 1)
    if topk < 1:
        return 0.0
    tables = unit(champion.center_VD[published_S]), unit(challenger.center_VD[rows_S])
    block_size = max(1, BLOCK_SCORES // len(rows_S))
    common = 0
    for begin in range(0, num_asked, block_size):
        asked_B = np.arange(begin, min(begin + block_size, num_asked))
        theirs_BK, ours_BK = (_nearest(unit_SD, asked_B, topk) for unit_SD in tables)
        common += int((theirs_BK[:, :, None] == ours_BK[:, None, :]).sum())
    return common / (num_asked * topk)


def unit(rows_SD: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Vectors of length 1; a zero vector stays zero."""
    return np.asarray(rows_SD / np.maximum(np.linalg.norm(rows_SD, axis=1, keepdims=True), np.finfo(np.float32).tiny))


def _nearest(unit_SD: npt.NDArray[np.float32], asked_B: Rows, topk: int) -> Rows:
    """The rows of highest cosine, in no order, themselves left out; shape (B, topk)."""
    scores_BS = unit_SD[asked_B] @ unit_SD.T
    scores_BS[np.arange(len(asked_B)), asked_B] = -np.inf
    return np.argpartition(scores_BS, -topk, axis=1)[:, -topk:]


@dataclass(frozen=True)
class Growth:
    """From one vocabulary to the next: words of both, words of the new one alone, words of the old one alone."""

    kept: int
    new: int
    lost: int
    kept_share: float
    """Of the tokens of all words in the new vocabulary, those of kept words, 0 to 1."""
    lost_share: float
    """Of the tokens of all words in the old vocabulary, those of lost words, 0 to 1."""

    def __str__(self) -> str:
        return (
            f"{self.kept:,} words kept ({self.kept_share:.1%} of the tokens), {self.new:,} new, "
            f"{self.lost:,} lost ({self.lost_share:.1%} of the old tokens)"
        )


def growth(words: list[str], counts_V: Counts, words_before: list[str], counts_before_V: Counts) -> Growth:
    """How a vocabulary has grown out of the one before, <unk> left out; V differs between the two."""
    mine_S, theirs_S = shared_rows(words, words_before)
    return Growth(
        kept=len(mine_S),
        new=len(words) - 1 - len(mine_S),
        lost=len(words_before) - 1 - len(theirs_S),
        kept_share=_share(counts_V, mine_S),
        lost_share=1 - _share(counts_before_V, theirs_S),
    )


def _share(counts_V: Counts, rows_S: Rows) -> float:
    """Of all tokens but <unk>, those of ``rows_S``; all of nothing."""
    counted = int(counts_V[1:].sum())
    return int(counts_V[rows_S].sum()) / counted if counted else 1.0


@dataclass(frozen=True)
class Norms:
    """The lengths of the rows from 1 on, as readers take them: in float32, where a number beyond 1e19 is too large.

    None where there is no finite one.
    """

    bad: int
    """Rows whose length is no finite number, and center vectors of length 0, which have no neighbours."""
    center: tuple[float, float, float] | None
    """The smallest, the median and the largest of the finite ones."""
    context: tuple[float, float, float] | None

    @classmethod
    def of(cls, tables: Tables) -> "Norms":
        with np.errstate(over="ignore"):
            center_V, context_V = (
                np.linalg.norm(table_VD[1:], axis=1) for table_VD in (tables.center_VD, tables.context_VD)
            )
        bad = sum(int((~np.isfinite(norms_V)).sum()) for norms_V in (center_V, context_V))
        return cls(bad + int((center_V == 0).sum()), _spread(center_V), _spread(context_V))


def _spread(norms_V: npt.NDArray[np.float32]) -> tuple[float, float, float] | None:
    finite = norms_V[np.isfinite(norms_V)]
    return (float(finite.min()), float(np.median(finite)), float(finite.max())) if finite.size else None
