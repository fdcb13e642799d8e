"""Applies the alert rules of operators, and sends their messages."""
