"""Delivery of log rows to files of JSON lines."""
