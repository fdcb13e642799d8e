"""Finds streams with entries and no drain, and orders or runs one."""
