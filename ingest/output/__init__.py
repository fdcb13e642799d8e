"""Captures and logs the output of a process or command: from pipes, pseudo-terminals and Python streams."""
