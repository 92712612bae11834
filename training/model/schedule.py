"""The learning rate, as pure code."""

FLOOR = 0.004
"""The smallest fraction of the rate: word2vec.c and gensim begin at 0.025 and end at 0.0001."""


def linear_decay(lr: float, examples_seen: int, num_examples: int) -> float:
    """The rate after ``examples_seen`` of a run's examples; it falls linearly from ``lr`` to ``FLOOR`` times ``lr``."""
    return lr * max(FLOOR, 1 - examples_seen / max(1, num_examples))
