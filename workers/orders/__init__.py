"""Work orders: Celery messages that start a drain, a delivery or another task, and carry no data."""
