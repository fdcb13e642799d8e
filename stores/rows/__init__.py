"""Queries for log lines and metric points in Postgres."""
