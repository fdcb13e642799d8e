"""Delivers log rows to files of JSON lines."""
