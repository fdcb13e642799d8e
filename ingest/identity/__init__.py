"""Job numbers and names that trainwire chooses, and environment variables that pass them to child processes."""
