"""Imports runs of other tools as jobs, and exports jobs; both compare the counts of source and target."""
