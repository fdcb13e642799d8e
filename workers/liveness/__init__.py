"""Reads heartbeats, and finds jobs that are lost or stalled."""
