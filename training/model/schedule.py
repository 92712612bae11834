"""The learning rate's decay: a pure function."""

FLOOR = 0.004
"""The last rate as a fraction of the first: word2vec.c and gensim start at 0.025 and end at 0.0001."""


def linear_decay(lr: float, examples_seen: int, num_examples: int) -> float:
    """The rate after ``examples_seen`` of a run's examples; it falls linearly from ``lr`` to ``FLOOR`` times ``lr``."""
    return lr * max(FLOOR, 1 - examples_seen / max(1, num_examples))
