"""Subsampling, windows and negatives: arrays and numba alone."""
