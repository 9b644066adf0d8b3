"""Parts for tests and benchmarks: real servers, consumer processes, cells, simulated fleets, watchers and proxies."""
