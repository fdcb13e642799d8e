"""Delivery of metric rows and attempts to MLflow."""
