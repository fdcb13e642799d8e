"""Work orders: Celery messages that start a drain, a delivery or another task, and contain no data."""
