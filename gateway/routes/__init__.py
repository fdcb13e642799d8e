"""What answers which path, one file per subject."""
