"""Verification and retention of checkpoint files."""
