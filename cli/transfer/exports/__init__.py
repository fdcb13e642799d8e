"""Writers of jobs, for other tools to read."""
