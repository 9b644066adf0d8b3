"""Benchmarks as code: each first shows that the run did what it claims, then times it. See bench/README.md."""
