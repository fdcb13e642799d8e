"""Access to checkpoint files in S3: objects, manifests of folders, and the prefixes that may be presigned."""
