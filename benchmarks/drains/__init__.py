"""Benchmarks of the drain, from the streams in Redis to committed rows."""
