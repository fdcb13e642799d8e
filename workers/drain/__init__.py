"""Moves entries from Redis streams into Postgres, one transaction per batch."""
