"""Reads the log of alert notifications and the state of destinations; queues notifications again."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Final, Literal, get_args

import msgspec
from sqlalchemy import Connection, select, text

from trainwire.schemas.tables import alerts
from trainwire.schemas.wire.messages import AlertLevel
from trainwire.stores.postgres.columns import columns_of

AlertState = Literal["waiting", "sending", "sent", "failed", "uncertain", "suppressed"]
ALERT_STATES: Final[tuple[AlertState, ...]] = get_args(AlertState)
CURSOR: Final = "alerts"
"""Value of `delivery_cursors.sink` for the cursor up to which metric rules have read a job's rows.

The row is also the lease on the job.
"""


class AlertEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One alert notification. `ended_at` is when it was sent or abandoned; `last_error` is its last failure."""

    id: int
    rule: str
    destination: str
    state: AlertState
    level: AlertLevel
    job_id: int | None
    attempt: int | None
    title: str
    content: str
    occurred_at: datetime
    created_at: datetime
    ended_at: datetime | None
    attempts: int
    last_error: str | None


class DestinationHealth(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one alert destination.

    `waiting` counts all notifications that wait or are being sent; `failed` and `uncertain` count those created in
    the last 24 hours. `down_since` and `last_error` describe an outage that workers have recorded.
    """

    waiting: int = 0
    failed: int = 0
    uncertain: int = 0
    down_since: datetime | None = None
    last_error: str | None = None


class DestinationOutage(msgspec.Struct, frozen=True, kw_only=True):
    """A destination that does not accept alerts: since when and why, and when it is tried again."""

    destination: str
    waiting: int
    down_since: datetime
    next_attempt_at: datetime | None
    attempts: int
    last_error: str | None


def health_key(destination: str) -> str:
    """Return the key in the table sink_states under which outages of an alert destination are recorded."""
    return f"alerts:{destination}"


def find_alerts(
    connection: Connection,
    *,
    job_id: int | None = None,
    states: Sequence[str] = (),
    before: int | None = None,
    limit: int = 50,
) -> list[AlertEntry]:
    """Return at most `limit` alerts, newest first.

    The alerts can be restricted to one job, to some states, and to ids below `before`.
    """
    wanted = select(*columns_of(AlertEntry, alerts)).order_by(alerts.c.id.desc()).limit(limit)
    if job_id is not None:
        wanted = wanted.where(alerts.c.job_id == job_id)
    if states:
        wanted = wanted.where(alerts.c.state.in_(states))
    if before is not None:
        wanted = wanted.where(alerts.c.id < before)
    return [AlertEntry(**row) for row in connection.execute(wanted).mappings()]


def destination_health(connection: Connection, destination: str) -> DestinationHealth:
    """Return the state of one alert destination."""
    names = {"destination": destination, "key": health_key(destination)}
    return DestinationHealth(**connection.execute(_HEALTH, names).mappings().one())


def destination_outages(connection: Connection) -> list[DestinationOutage]:
    """Return the destinations that do not accept alerts now, the longest outage first."""
    return [DestinationOutage(**row) for row in connection.execute(_OUTAGES).mappings()]


def resend_alert(connection: Connection, alert_id: int) -> bool:
    """Queue an alert again that is not waiting or being sent; return False if there is none with this id."""
    return connection.execute(_RESEND, {"id": alert_id}).rowcount > 0


_HEALTH: Final = text(
    """
    SELECT (SELECT count(*) FROM alerts WHERE destination = :destination AND state IN ('waiting', 'sending'))
        AS waiting,
        count(*) FILTER (WHERE state = 'failed') AS failed,
        count(*) FILTER (WHERE state = 'uncertain') AS uncertain,
        (SELECT down_since FROM sink_states WHERE sink = :key) AS down_since,
        (SELECT last_error FROM sink_states WHERE sink = :key) AS last_error
    FROM alerts WHERE destination = :destination AND created_at > now() - interval '1 day'
    """
)
_OUTAGES: Final = text(
    """
    SELECT destination, down_since, next_probe_at AS next_attempt_at, attempts, last_error,
        (SELECT count(*) FROM alerts WHERE alerts.destination = outage.destination
            AND state IN ('waiting', 'sending')) AS waiting
    FROM (SELECT *, substr(sink, length('alerts:') + 1) AS destination FROM sink_states
        WHERE starts_with(sink, 'alerts:') AND down_since IS NOT NULL) AS outage
    ORDER BY down_since, destination
    """
)
_RESEND: Final = text(
    "UPDATE alerts SET state = 'waiting', created_at = now(), ended_at = NULL, attempts = 0 "
    "WHERE id = :id AND state NOT IN ('waiting', 'sending')"
)
