"""Code that several benchmarks use: provenance, measured processes, tables."""
