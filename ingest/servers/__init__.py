"""The servers that a run sends to: how they are found, their names, and their outages."""
