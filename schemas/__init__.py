"""Definitions shared by all processes: messages and their encoding, Redis keys, events, and Postgres tables."""
