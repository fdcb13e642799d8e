"""Moves the entries of a stream into Postgres, one transaction a batch."""
