"""Trained vectors: look up, compare, align, evaluate and export them."""

from training.vectors.word_vectors import Tables, Vectors

__all__ = ["Tables", "Vectors"]
