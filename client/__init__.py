"""Reads jobs back in Python, over HTTP or from Postgres (docs/client.md)."""
