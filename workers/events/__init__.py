"""Publishes an event for each committed transaction."""
