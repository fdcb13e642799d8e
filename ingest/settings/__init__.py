"""The settings of a trainer, and the sources they come from."""
