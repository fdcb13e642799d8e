"""Baseline with one Celery task per message; each task does a COPY and a commit."""

from __future__ import annotations

import os
import time
from functools import cache

from celery import Celery
from sqlalchemy import Engine, create_engine, make_url

from benchmarks.load import LINE
from trainwire.schemas.tables.kinds import ROW_KINDS
from trainwire.schemas.wire.messages import Logs
from trainwire.workers.drain import rows, store

app = Celery("task_per_message", broker=os.environ["REDIS_URL"])
app.conf.update(
    task_ignore_result=True, task_default_queue="task-per-message", broker_connection_retry_on_startup=True
)


@cache
def engine() -> Engine:
    """Return the database engine of this process."""
    return create_engine(make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+psycopg"))


@app.task(name="store_lines")
def store_lines(first_seq: int, lines: list[str], ts: list[int]) -> None:
    """Celery task: store the lines of one message in one transaction."""
    body = Logs(log_type="stdout", lines=lines, ts=ts)
    with (
        engine().begin() as connection,
        store.copying(connection, ROW_KINDS["logs"]) as write_row,
    ):
        for row in rows.log_rows(rows.Origin(1, 1, "0-bench"), first_seq, body):
            write_row(row)


def publish(messages: int, per_message: int) -> None:
    """Send one task for each of `messages` messages of `per_message` lines."""
    with app.producer_or_acquire() as producer:
        for number in range(messages):
            ts = [time.time_ns()] * per_message
            arguments = (1 + number * per_message, [LINE] * per_message, ts)
            store_lines.apply_async(arguments, producer=producer)
