"""Keeps the points of metrics by series and resolution, for charts."""
