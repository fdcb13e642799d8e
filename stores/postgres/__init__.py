"""Queries for jobs, attempts, checkpoints, deliveries and alerts in Postgres."""
