"""Provenance: command, code and machine of a run, collected at its start and sent as a message."""
