"""Finds streams that have entries and no drain, and orders one."""
