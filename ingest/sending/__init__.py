"""Sends messages to Redis until the workers acknowledge them: buffer, batches, outbox and sender."""
