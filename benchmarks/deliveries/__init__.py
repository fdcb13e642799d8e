"""Benchmarks of the way from the committed row to subscribers, browsers, Loki and MLflow."""
