"""Queries to Loki over HTTP."""
