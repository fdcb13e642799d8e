"""`trainwire run`: starts a command, captures its output and reports how it ended."""
