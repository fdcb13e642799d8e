"""Finds streams that have entries and no drain, and orders or runs a drain."""
