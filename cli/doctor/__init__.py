"""`trainwire doctor`: looks at every store and setting that can hurt; one file a part of the system."""
