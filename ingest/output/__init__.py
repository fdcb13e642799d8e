"""Capture of output: pipes, terminals, Python streams, and the relay process."""
