"""The demo training that `trainwire demo` runs."""
