"""Delivery of rows to stores besides Postgres. No sink imports another sink."""
