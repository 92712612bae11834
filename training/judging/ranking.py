"""Where the right item of each query ranks among all items, and the items that rank highest.

Neither a whole table of vectors nor all scores have to fit into memory: the items are scored in chunks, in each of them
the queries in blocks.

Q queries, B of a block; I items, C of a chunk; K items of a list.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

from training.vectors.cosine import chunks

BLOCK_QUERIES = 1024
"""How many queries are scored at once: their scores of a chunk are in memory, about 4 MB."""

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]
OfBlock = Callable[[slice], Float32]
"""The scores (B, C) of a block of queries, a new array."""


@dataclass(frozen=True)
class Score:
    """What items are ranked by, higher is better: ``of_chunk`` prepares a chunk of items to score blocks of queries."""

    of_chunk: Callable[[slice], OfBlock]
    width: int
    """How many numbers in memory an item of a chunk takes."""


@dataclass(frozen=True)
class Ranking:
    """Where targets rank, by exact comparison of float32 scores; all of shape (Q,), but ``top_QK``."""

    greater_Q: Int64
    """How many items score higher than the target."""
    equal_Q: Int64
    """How many items, the target among them, score as the target does: 1 or more."""
    top_QK: Int64
    """The K items with the highest scores, best first, equal ones in their order; -1 where there are fewer."""


def ranked(score: Score, targets_Q: Int64, left_out_QI: csr_array, topk: int) -> Ranking:
    """Ranks all items, but those of ``left_out_QI``, for each query, whose target is never left out.

    ``targets_Q`` must ascend. A target's score is then computed by the same call on the same arrays as the scores that
    it is compared with, so that BLAS rounds it in the same way, and equal vectors have equal scores. Costs one scoring
    of all items for all queries, and memory for blocks, chunks, and K items a query.
    """
    num_queries, num_items = left_out_QI.shape
    blocks = [slice(row, min(row + BLOCK_QUERIES, num_queries)) for row in range(0, num_queries, BLOCK_QUERIES)]
    target_Q = _target_scores(score, targets_Q, blocks, num_items)
    greater_Q, equal_Q = np.zeros((2, num_queries), np.int64)
    best_QK, top_QK = np.full((num_queries, topk), -np.inf, np.float32), np.full((num_queries, topk), -1)
    left_out = left_out_QI.tocsc()
    for chunk in _chunks(score, num_items):
        of_block, left_out_QC = score.of_chunk(chunk), left_out[:, chunk].tocsr()
        for block in blocks:
            scores_BC = of_block(block)
            scores_BC[left_out_QC[block].nonzero()] = -np.inf
            greater_Q[block] += np.count_nonzero(scores_BC > target_Q[block, None], axis=1)
            equal_Q[block] += np.count_nonzero(scores_BC == target_Q[block, None], axis=1)
            _keep_best(best_QK[block], top_QK[block], scores_BC, chunk.start)
    return Ranking(greater_Q, equal_Q, top_QK)


def _chunks(score: Score, num_items: int) -> list[slice]:
    return list(chunks(num_items, max(BLOCK_QUERIES, score.width)))


def _target_scores(score: Score, targets_Q: Int64, blocks: list[slice], num_items: int) -> Float32:
    """Scores only the chunks of a block's own targets: few, since targets ascend."""
    target_Q = np.empty(len(targets_Q), np.float32)
    for chunk in _chunks(score, num_items):
        ends = [(targets_Q[block.start], targets_Q[block.stop - 1], block) for block in blocks]
        here = [block for first, last, block in ends if first < chunk.stop and last >= chunk.start]
        of_block = score.of_chunk(chunk) if here else None
        for block in here:
            assert of_block is not None
            scores_BC = of_block(block)
            rows = np.flatnonzero((targets_Q[block] >= chunk.start) & (targets_Q[block] < chunk.stop))
            target_Q[block][rows] = scores_BC[rows, targets_Q[block][rows] - chunk.start]
    return target_Q


def _keep_best(best_BK: Float32, top_BK: Int64, scores_BC: Float32, begin: int) -> None:
    """Puts the chunk's items, whose first is item ``begin``, into the lists where they score higher than what is there.

    Among equal scores the first item stays: numpy's lexsort is stable, and the lists' items come before the chunk's.
    """
    topk = best_BK.shape[1]
    is_better_BC = scores_BC > best_BK[:, -1:]
    if begin == 0 and scores_BC.shape[1] > topk:  # the lists are empty, and sorting a whole chunk is slow
        is_better_BC &= scores_BC >= np.partition(scores_BC, -topk, axis=1)[:, -topk, None]
    found_N, columns_N = np.divmod(np.flatnonzero(is_better_BC), scores_BC.shape[1])  # 10 times as fast as nonzero
    if not found_N.size:
        return
    rows_R, owner_N = np.unique(found_N, return_inverse=True)
    owners = np.concatenate([np.repeat(np.arange(len(rows_R)), topk), owner_N])
    scores = np.concatenate([best_BK[rows_R].ravel(), scores_BC[found_N, columns_N]])
    items = np.concatenate([top_BK[rows_R].ravel(), begin + columns_N])
    order = np.lexsort((-scores, owners))
    begins_R = np.searchsorted(owners[order], np.arange(len(rows_R)))
    best_RK = order[begins_R[:, None] + np.arange(topk)]
    best_BK[rows_R], top_BK[rows_R] = scores[best_RK], items[best_RK]
