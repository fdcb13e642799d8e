"""Tokens, roles and sessions."""
