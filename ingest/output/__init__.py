"""Captured output: pipes, lines, levels, and the relay that keeps showing it."""
