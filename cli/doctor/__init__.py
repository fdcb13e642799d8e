"""The checks of `trainwire doctor`, one module for each part of the system."""
