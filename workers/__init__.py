"""The Celery workers: they move messages from Redis streams into Postgres, and from there to sinks."""
