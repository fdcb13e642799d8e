"""The `trainwire` command line."""
