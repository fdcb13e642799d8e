"""Reads from MLflow over HTTP."""
