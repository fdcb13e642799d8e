"""Connections to the Redis servers of the streams and of the Celery broker: URLs, TLS and clients."""
