"""Records occurrences that alert rules may match, in the transaction that causes them.

`workers.alerts` reads and deletes them. `job_rows.save_attempts` records changes of an attempt's status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert
from sqlalchemy.dialects import postgresql

from trainwire.schemas.tables import alert_occurrences, dead_letters
from trainwire.schemas.times import to_datetime
from trainwire.schemas.wire.messages import Message, Metrics
from trainwire.stores.postgres.storable_text import storable_text


def save_reported_alerts(
    connection: Connection, messages: Iterable[Message], attempt_of: Callable[[Message], int]
) -> None:
    """Record one occurrence for each alert that a trainer sent in one of the metrics `messages`."""
    values: list[dict[str, Any]] = [
        {
            "kind": "alert",
            "value": alert.level,
            "job_id": message.job_id,
            "attempt": attempt_of(message),
            "title": storable_text(" ".join(alert.title.split())),
            "content": storable_text(alert.text),
            "occurred_at": to_datetime(alert.ts),
        }
        for message in messages
        if isinstance(message.body, Metrics) and message.body.alerts
        for alert in message.body.alerts
    ]
    if values:
        connection.execute(insert(alert_occurrences), values)


def insert_dead_letters(connection: Connection, letters: Sequence[Mapping[str, Any]]) -> None:
    """Insert rows into `dead_letters` unless they exist, and record one occurrence per job and reason.

    Occurrences are also recorded for rows that exist. `letters` must not be empty.
    """
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
