"""The checks of `trainwire doctor`, one module per part of the system."""
