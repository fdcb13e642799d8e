"""Uploads of checkpoint files to an object store."""
