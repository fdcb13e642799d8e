"""Capture of output: pipes, terminals, streams, and the relay process."""
