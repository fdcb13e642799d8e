"""Imports runs of other tools and exports jobs; the counts of both sides are compared."""
