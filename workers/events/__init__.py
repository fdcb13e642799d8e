"""Publishes events about committed transactions."""
