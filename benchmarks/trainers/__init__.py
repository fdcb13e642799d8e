"""Benchmarks of the trainers' side: the SDK, the launcher, restarts, and thousands of live trainers."""
