"""Reads log lines and metric points from Postgres."""
