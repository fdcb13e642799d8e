"""The commands of `trainwire`, one module per group."""
