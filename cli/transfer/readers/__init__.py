"""Readers for the data of other tools; each yields a `SourceRun` for every run that it finds."""
