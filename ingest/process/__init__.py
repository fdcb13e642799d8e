"""The operating system's view of a run: forks, signals, exit codes, ranks and threads."""
