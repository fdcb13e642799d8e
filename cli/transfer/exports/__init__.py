"""Exports of jobs in the formats of other tools."""
