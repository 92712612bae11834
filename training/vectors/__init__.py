"""What a finished run has learnt: vectors to look up, compare, evaluate and export."""

from training.vectors.word_vectors import Tables, Vectors

__all__ = ["Tables", "Vectors"]
