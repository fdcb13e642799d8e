"""Reads and edits jobs and their attempts in Postgres."""
