"""Benchmarks of throughput, latency and cost, each with its baseline in the same execution: `make bench`."""
