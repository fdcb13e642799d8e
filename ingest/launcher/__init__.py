"""The implementation of `trainwire run`: starts a command, captures its output and records its exit code."""
