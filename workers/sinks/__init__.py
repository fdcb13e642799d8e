"""Delivers rows to stores besides Postgres, called sinks. No sink imports another sink."""
