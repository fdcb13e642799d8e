"""Reads from Loki over HTTP."""
