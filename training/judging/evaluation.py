"""How good vectors are: on pairs of words with people's scores, and on analogies.

Results equal those of gensim's evaluate_word_pairs and evaluate_word_analogies: case does not count, among words that
differ only in case the most frequent one is used, and words beyond ``restrict_vocab`` are unknown.

Q questions or pairs, B questions of a block, W words that are searched (row 0, <unk>, is never found), C of them in a
chunk, D dimensions.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from pipeline.shared.errors import InputError
from training.judging.questions import read_analogies, read_pairs
from training.vectors.cosine import chunks, cosines, norms
from training.vectors.word_vectors import Vectors

RESTRICT_VOCAB = 300_000
"""As in gensim."""

BLOCK_QUESTIONS = 1024
"""How many questions are answered at once: their cosines with a chunk of words are in memory."""


@dataclass(frozen=True)
class PairsResult:
    """How well cosines agree with people's scores of pairs."""

    spearman: float
    """Rank correlation over the pairs used, -1 to 1; equal scores share their average rank."""
    pairs: int
    """The number of pairs used: those with two known words."""
    unknown: int
    """The number of pairs left out."""
    coverage: float
    """The share of pairs that were used."""


@dataclass(frozen=True)
class Section:
    """The result of one section, as AnalogiesResult for all; ``accuracy`` is None when no question was used."""

    section: str
    accuracy: float | None
    questions: int
    unknown: int


@dataclass(frozen=True)
class AnalogiesResult:
    """How often the word nearest to b - a + c is the analogy's fourth."""

    accuracy: float
    """The share of right answers among the questions used, 0 to 1."""
    questions: int
    """The number of questions used: those with four known words."""
    unknown: int
    """The number of questions left out."""
    coverage: float
    """The share of questions that were used."""
    sections: tuple[Section, ...]


def word_pairs(vectors: Vectors, file: Path, restrict_vocab: int = RESTRICT_VOCAB) -> PairsResult:
    """The rank correlation of cosine and score over the pairs of ``file``.

    Raises InputError for a malformed file, and when there is no correlation: fewer than two known pairs, or scores or
    cosines that are all equal.
    """
    pairs = read_pairs(file)
    row_of = rows_by_spelling(vectors.words[: restrict_vocab + 1])
    known = [(row_of[a.upper()], row_of[b.upper()], s) for a, b, s in pairs if {a.upper(), b.upper()} <= row_of.keys()]
    if len(known) < 2:
        raise InputError(
            f"{file}: found {len(known)} of {len(pairs)} pairs (the first: {', '.join(pairs[0][:2])}) with both words "
            f"among the {len(row_of):,} of the vectors, expected 2 or more; name pairs of words that the corpus has"
        )
    first_Q, second_Q, scores_Q = map(np.array, zip(*known, strict=True))
    cosines_Q = cosines(vectors.center_VD[first_Q], vectors.center_VD[second_Q])
    for name, values_Q in (("score", scores_Q), ("cosine", cosines_Q)):
        if (values_Q == values_Q[0]).all():
            raise InputError(
                f"{file}: found the {name} {values_Q[0]} in all {len(known)} known pairs, expected values that differ: "
                "equal ones have no order to compare; name more pairs"
            )
    return PairsResult(
        spearman=float(spearmanr(scores_Q, cosines_Q).statistic),
        pairs=len(known),
        unknown=len(pairs) - len(known),
        coverage=len(known) / len(pairs),
    )


def analogies(vectors: Vectors, file: Path, restrict_vocab: int = RESTRICT_VOCAB) -> AnalogiesResult:
    """The share of analogies a : b = c : d in ``file`` whose d is found, in total and by section.

    Raises InputError for a malformed file, and for one without a question of four known words.
    """
    sections = read_analogies(file)
    words = vectors.words[: restrict_vocab + 1]
    row_of = rows_by_spelling(words)
    known = [
        [[row_of[word] for word in question] for question in questions if row_of.keys() >= set(question)]
        for _, questions in sections
    ]
    num_all, num_known = sum(len(questions) for _, questions in sections), sum(map(len, known))
    if num_known == 0:
        first = next(question for _, questions in sections for question in questions)
        raise InputError(
            f"{file}: found 0 of {num_all} questions (the first: {' '.join(first)}) with all words among the "
            f"{len(row_of):,} of the vectors, expected 1 or more; name questions about words that the corpus has"
        )
    spelling_W = np.array([0, *(row_of[word.upper()] for word in words[1:])])
    questions_Q4 = np.array([question for questions in known for question in questions])
    right_Q = is_fourth_found(vectors.center_VD[: len(words)], spelling_W, questions_Q4)
    right_by_section = np.split(right_Q, np.cumsum([len(questions) for questions in known])[:-1])
    return AnalogiesResult(
        accuracy=float(right_Q.mean()),
        questions=num_known,
        unknown=num_all - num_known,
        coverage=num_known / num_all,
        sections=tuple(
            Section(name, float(right.mean()) if right.size else None, right.size, len(questions) - right.size)
            for (name, questions), right in zip(sections, right_by_section, strict=True)
        ),
    )


def rows_by_spelling(words: list[str]) -> dict[str, int]:
    """The first row, the most frequent word's, of each spelling in upper case; without row 0, <unk>."""
    return {words[row].upper(): row for row in reversed(range(1, len(words)))}


def is_fourth_found(
    center_WD: npt.NDArray[np.float32], spelling_W: npt.NDArray[np.int64], questions_Q4: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether d has the highest cosine with b - a + c, for vectors of length 1.

    This is 3CosAdd (Mikolov et al. 2013; Levy & Goldberg 2014, Eq. 3): a, b and c, in any case, are not answers.
    ``questions_Q4`` are rows; ``spelling_W`` maps each row to the row of its spelling. Costs W·D multiplications per
    question, and no copy of the vectors.
    """
    norms_W = norms(center_WD)
    a_QD, b_QD, c_QD = (center_WD[rows_Q] / norms_W[rows_Q, None] for rows_Q in questions_Q4.T[:3])
    wanted_QD = b_QD - a_QD + c_QD
    no_answers = _no_answers(spelling_W, questions_Q4)
    highest_Q, answers_Q = np.full(len(questions_Q4), -np.inf, np.float32), np.zeros(len(questions_Q4), np.int64)
    for chunk in chunks(len(center_WD), max(BLOCK_QUESTIONS, center_WD.shape[1])):
        unit_CD = center_WD[chunk] / norms_W[chunk, None]
        here_N2 = no_answers[slice(*np.searchsorted(no_answers[:, 0], (chunk.start, chunk.stop)))]
        for begin in range(0, len(questions_Q4), BLOCK_QUESTIONS):
            block = slice(begin, begin + BLOCK_QUESTIONS)
            scores_BC = wanted_QD[block] @ unit_CD.T
            row_N, question_N = here_N2[(here_N2[:, 1] >= block.start) & (here_N2[:, 1] < block.stop)].T
            scores_BC[question_N - block.start, row_N - chunk.start] = -np.inf
            nearest_B = scores_BC.argmax(axis=1)
            scores_B = scores_BC[np.arange(len(nearest_B)), nearest_B]
            is_nearer_B = scores_B > highest_Q[block]
            highest_Q[block][is_nearer_B] = scores_B[is_nearer_B]
            answers_Q[block][is_nearer_B] = nearest_B[is_nearer_B] + chunk.start
    return np.asarray(spelling_W[answers_Q] == questions_Q4[:, 3])


def _no_answers(spelling_W: npt.NDArray[np.int64], questions_Q4: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The pairs (row, question) of rows that are no answer to a question, in the order of rows; shape (N, 2)."""
    rows_of = defaultdict(list)
    for row in np.flatnonzero(spelling_W != np.arange(len(spelling_W))).tolist():
        rows_of[int(spelling_W[row])].append(row)
    pairs = [
        (row, question)
        for question, asked in enumerate(questions_Q4[:, :3].tolist())
        for row in (0, *asked, *(other for first in asked for other in rows_of.get(first, ())))
    ]
    return np.array(sorted(pairs), dtype=np.int64)
