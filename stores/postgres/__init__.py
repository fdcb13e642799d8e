"""Reads jobs, attempts, checkpoints and deliveries from Postgres."""
