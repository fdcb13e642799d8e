"""Delivers log rows to Loki."""
