"""Tokens, roles and authorization."""
