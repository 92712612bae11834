"""The learning rate, as pure code."""

FLOOR = 0.004
"""The smallest share of the rate: word2vec.c and gensim end at 0.0001 where they begin at 0.025."""


def linear_decay(lr: float, examples_seen: int, num_examples: int) -> float:
    """The rate after ``examples_seen`` of a run's examples: falls in a straight line from ``lr`` to ``FLOOR`` of it."""
    return lr * max(FLOOR, 1 - examples_seen / max(1, num_examples))
