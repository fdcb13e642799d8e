"""Provenance of a run: its command, code and machine, collected at its start and sent as a message."""
