"""The stack: servers and worker processes of `trainwire up`, and the data folder that records their addresses."""
