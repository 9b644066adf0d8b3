"""Benchmarks: each first proves that the work has the right result, then times the work. See bench/README.md."""
