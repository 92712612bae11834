"""How benchmarks measure, and what they write down of it."""
