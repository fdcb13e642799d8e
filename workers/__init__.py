"""The Celery side: Redis streams into Postgres, one transaction at a time."""
