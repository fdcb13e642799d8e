"""Benchmarks of throughput, latency and cost, compared within one run: `make bench`."""
