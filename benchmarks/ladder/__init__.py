"""The parts of benchmarks/gpu.py: rungs, each tried in a process of its own, and the report of what they found."""
