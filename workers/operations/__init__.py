"""Deletion of jobs, retention of rows, dead letters, reconciliation after a restore, Flower and the exporter."""
