"""Stores metric points by series and resolution (rollups), for charts."""
