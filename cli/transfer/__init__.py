"""Imports runs of other tools and exports jobs; counts the rows of both sides to show that none is missing."""
