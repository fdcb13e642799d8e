"""Heartbeats, and the jobs that are lost or stalled."""
