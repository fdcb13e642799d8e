"""Reads heartbeats of trainers, and finds jobs that are lost or stalled."""
