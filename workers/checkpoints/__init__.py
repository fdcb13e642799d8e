"""Verifies checkpoint files, and deletes those that are not retained."""
