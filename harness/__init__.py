"""What tests and benchmarks share: real servers, consumer processes, cells, simulated fleets, watchers and proxies."""
