"""Checkpoint files: S3, local folders, and presigned URLs."""
