"""The Celery application. Each setting has a comment with its reason."""

from __future__ import annotations

from celery import Celery, signals
from kombu import Exchange, Queue

from trainwire.schemas.keys import INGEST_QUEUE, QUEUES
from trainwire.schemas.streams.broker import broker_at
from trainwire.workers.log_events import configure_logging
from trainwire.workers.schedule import SCHEDULE
from trainwire.workers.settings import load_settings


def own_queue(name: str) -> Queue:
    """Return a queue that has an exchange of its own, so that messages published to it reach no other queue."""
    return Queue(name, Exchange(name), routing_key=name)


settings = load_settings()
broker = broker_at(settings.redis_url.get_secret_value())
app = Celery("trainwire", include=["trainwire.workers.tasks", "trainwire.workers.drain_tasks"])
app.conf.update(
    broker_url=broker.url,
    broker_use_ssl=broker.ssl,  # Flower reads this setting, but not the TLS options of the URL
    broker_transport_options={
        # Without timeouts a half-open connection blocks for ever.
        "socket_timeout": 20,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        # One list per queue instead of four: orders have no priorities.
        "priority_steps": [0],
        # Lost orders are sent again by beat, so nothing depends on a redelivery: one at once is enough.
        "visibility_timeout": 300,
        "unacked_restore_interval": 30,
        "unacked_restore_throttle": 1,
    },
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,  # workers survive an outage of Redis of any length
    broker_channel_error_retry=True,  # a full Redis refuses kombu's own bookkeeping
    broker_pool_limit=4,
    task_serializer="json",
    accept_content=["json"],
    result_backend=None,
    task_ignore_result=True,
    task_acks_late=True,
    worker_prefetch_multiplier=1,  # further orders stay in Redis for other workers
    task_time_limit=120,
    task_soft_time_limit=90,
    task_create_missing_queues=False,  # a typo is an error, not a queue without a worker
    task_queues=[own_queue(name) for name in QUEUES],
    task_default_queue=INGEST_QUEUE,
    worker_cancel_long_running_tasks_on_connection_loss=False,  # a drain can finish without the broker
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    worker_send_task_events=False,  # Flower switches them on while it runs
    beat_schedule=SCHEDULE,
    timezone="UTC",
)


@signals.setup_logging.connect
def _set_up_logging(**_: object) -> None:
    configure_logging()
