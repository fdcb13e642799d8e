"""The process of a run: its forks, signals, exit codes, rank and threads."""
