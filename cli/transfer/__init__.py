"""Imports runs of other tools and exports jobs; compares the counts of both sides, to prove that nothing is
missing.
"""
