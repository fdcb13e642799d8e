"""Brings runs of other tools into trainwire, and takes jobs out of it, with counts of both sides."""
