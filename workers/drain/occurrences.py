"""Records what alert rules may report, in the transaction that causes it; `workers.alerts` reads and removes it.

A change of an attempt's status is recorded by `job_rows.save_attempts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert
from sqlalchemy.dialects import postgresql

from trainwire.schemas.messages import Message, Metrics
from trainwire.schemas.tables import alert_occurrences, dead_letters
from trainwire.schemas.times import to_datetime
from trainwire.workers.drain.decoding import visible


def save_reported_alerts(
    connection: Connection, messages: Iterable[Message], attempt_of: Callable[[Message], int]
) -> None:
    """Record the alerts in new messages of metrics."""
    values: list[dict[str, Any]] = [
        {
            "kind": "alert",
            "value": alert.level,
            "job_id": message.job_id,
            "attempt": attempt_of(message),
            "title": visible(" ".join(alert.title.split())),
            "content": visible(alert.text),
            "occurred_at": to_datetime(alert.ts),
        }
        for message in messages
        if isinstance(message.body, Metrics) and message.body.alerts
        for alert in message.body.alerts
    ]
    if values:
        connection.execute(insert(alert_occurrences), values)


def insert_dead_letters(connection: Connection, letters: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows of dead_letters, except known ones, and record one occurrence per job and reason."""
    connection.execute(postgresql.insert(dead_letters).on_conflict_do_nothing(), list(letters))
    newest = {(letter["job_id"], letter["reason"]): letter for letter in letters}
    values = [
        {
            "kind": "dead_letters",
            "value": reason,
            "job_id": job_id,
            "content": f"{letter['kind']} of {letter['stream']}: {letter['detail']}",
            "occurred_at": datetime.now(UTC),
        }
        for (job_id, reason), letter in newest.items()
    ]
    connection.execute(insert(alert_occurrences), values)
