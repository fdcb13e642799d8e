"""Delivery of log rows to Loki."""
