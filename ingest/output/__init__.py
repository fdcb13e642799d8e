"""Captures and logs what a process or command prints: to pipes, pseudo-terminals and Python streams."""
