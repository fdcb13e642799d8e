"""Benchmarks of reading: charts of very large jobs, the list of jobs, and a large database."""
