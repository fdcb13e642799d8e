"""Delivers metric rows and attempts to MLflow."""
