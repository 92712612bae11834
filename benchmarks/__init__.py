"""Benchmark scripts; their results are in reports/."""
