"""Asks all running Celery workers which queues they consume."""

from __future__ import annotations

from trainwire.schemas.streams.broker import broker_at
from trainwire.workers.settings import Settings


def answering_workers(settings: Settings, within_s: float) -> dict[str, list[str]]:
    """Return the names of the queues that each worker consumes, for workers that answer within `within_s` seconds.

    The call always takes `within_s` seconds. Raises kombu's `OperationalError` if Redis cannot be reached.
    """
    from celery import Celery  # noqa: PLC0415 - its imports take a fifth of a second

    url, tls = broker_at(settings.redis_url.get_secret_value())
    with Celery("question", broker=url, broker_use_ssl=tls, set_as_current=False) as app:
        answers = app.control.inspect(timeout=within_s).active_queues() or {}
    return {worker: sorted(queue["name"] for queue in queues) for worker, queues in sorted(answers.items())}
