"""The process that a run lives in: its forks, signals, exit codes, ranks and threads."""
