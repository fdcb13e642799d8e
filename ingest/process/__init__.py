"""The process of a run: its forks, signals, exit code, rank and threads."""
