"""Access to checkpoint files: S3, local folders and presigned URLs."""
