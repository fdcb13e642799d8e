"""The training of `trainwire demo`."""
