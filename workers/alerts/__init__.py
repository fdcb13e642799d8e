"""Evaluates the alert rules of operators, and sends the resulting alerts."""
