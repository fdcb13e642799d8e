"""Readers of other tools' runs: each yields a `SourceRun` for every run that it finds."""
