"""Sends waiting alerts: to several destinations concurrently, and to each of them one alert after another.

An alert is marked as `sending` before it is sent, and as `sent` after the destination has confirmed it, in two
transactions. During both, the worker has the lease of the destination, a lock that ends with the process. So if a
worker that has the lease finds an alert marked as `sending`, another worker was interrupted, and it is unknown
whether the alert was sent.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import structlog
from sqlalchemy import Engine, text

from trainwire.schemas.backoff import Backoff
from trainwire.stores.postgres.alerts import health_key
from trainwire.stores.postgres.jobs.job_values import SHOWN_NAME
from trainwire.workers.alerts.notifications import Notifications
from trainwire.workers.alerts.rules import AlertRules, Destination
from trainwire.workers.alerts.senders import AlertMessage, AlertSender, NotSent, Webhook
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.sinks import cursors

log = structlog.get_logger("trainwire.workers.alerts")

DESTINATIONS_AT_ONCE: Final = 8
UNCERTAIN: Final = "its worker ended while it was sent: it may have arrived"


def sender_of(destination: Destination) -> AlertSender:
    """Return an object that sends alerts to this destination. Raises `NotSent` if Apprise cannot do that."""
    if destination.webhook is not None:
        return Webhook(destination.webhook, destination.secret_bytes)
    return Notifications(str(destination.apprise))


class AlertDelivery:
    """Sends the alerts that wait in Postgres. After `slice_s` seconds, it begins to send no further alert."""

    def __init__(
        self,
        engine: Engine,
        rules: AlertRules,
        *,
        slice_s: float,
        backoff: Backoff | None = None,
    ) -> None:
        self._engine = engine
        self._rules = rules
        self._slice_s = slice_s
        self._backoff = backoff or Backoff()

    def run(self) -> None:
        """Send the alerts that are due.

        Alerts that have waited for over `max_age_h` hours are marked as failed. Raises `Unavailable` if Postgres
        does not answer; a destination that does not confirm an alert is only logged and tried again later.
        """
        deadline = time.monotonic() + self._slice_s
        with postgres_errors():
            with self._engine.begin() as connection:
                connection.execute(_GIVE_UP, {"age_s": self._rules.max_age_h * 3600})
                unsent = set(connection.execute(_UNSENT).scalars())
                if removed := unsent - self._rules.destinations.keys():
                    connection.execute(_NOTE_REMOVED, {"names": sorted(removed), "hours": self._rules.max_age_h})
            names = sorted(unsent & self._rules.destinations.keys())
            with ThreadPoolExecutor(DESTINATIONS_AT_ONCE) as pool:
                for done in [pool.submit(self._deliver, name, deadline) for name in names]:
                    done.result()

    def _deliver(self, name: str, deadline: float) -> None:
        """Send the waiting alerts of one destination, until one of them fails or the time is up.

        Sends none while another worker does this, or while the destination is paused after a failure.
        """
        destination = self._rules.destinations[name]
        with self._engine.begin() as lease:
            if not lease.execute(_LEASE, {"name": health_key(name)}).scalar_one():
                return
            self._resolve_interrupted(name, destination)
            if self._is_down(name):
                return
            try:
                sender = sender_of(destination)
            except NotSent as exc:
                self._rest(name, exc)
                return
            while time.monotonic() < deadline and (message := self._claim(name)) is not None:
                try:
                    sender.send(message)
                except NotSent as exc:
                    self._record_failure(message, exc)
                    return
                self._record_sent(message)

    def _resolve_interrupted(self, name: str, destination: Destination) -> None:
        with self._engine.begin() as connection:
            names = {"name": name, "state": "waiting" if destination.resends else "uncertain", "reason": UNCERTAIN}
            for alert_id in connection.execute(_RESOLVE, names).scalars():
                log.warning("alert.interrupted", alert_id=alert_id, destination=name, state=names["state"])

    def _is_down(self, name: str) -> bool:
        with self._engine.begin() as connection:
            return not cursors.sink_state(connection, health_key(name)).is_due

    def _claim(self, name: str) -> AlertMessage | None:
        """Mark the next alert of a destination as `sending`, and return it; return None if no alert is waiting.

        Alerts that were not tried yet come before those that have failed.
        """
        with self._engine.begin() as connection:
            row: Any = connection.execute(_CLAIM, {"name": name}).mappings().one_or_none()
        return None if row is None else AlertMessage(**{**row, "id": f"trainwire-alert-{row['id']}"})

    def _record_sent(self, message: AlertMessage) -> None:
        with self._engine.begin() as connection:
            connection.execute(_SENT, {"id": _number(message)})
            if cursors.sink_state(connection, health_key(message.destination)).attempts:
                cursors.mark_up(connection, health_key(message.destination))
        log.info("alert.sent", alert_id=_number(message), rule=message.rule, destination=message.destination)

    def _record_failure(self, message: AlertMessage, failure: NotSent) -> None:
        """Mark an alert as waiting again, and pause its destination."""
        with self._engine.begin() as connection:
            connection.execute(_FAILED, {"id": _number(message), "reason": str(failure)})
        self._rest(message.destination, failure)

    def _rest(self, name: str, failure: NotSent) -> None:
        """Record that sending to a destination failed, and when the next alert may be sent to it."""
        key, wait_s = health_key(name), failure.retry_after_s
        with self._engine.begin() as connection:
            failures = cursors.sink_state(connection, key).attempts + 1
            wait_s = self._backoff.delay_s(failures) if wait_s is None else wait_s
            cursors.mark_down(connection, key, str(failure), wait_s)
        log.warning("alert.not_sent", destination=name, reason=str(failure), next_try_s=round(wait_s, 1))


def _number(message: AlertMessage) -> int:
    return int(message.id.rpartition("-")[2])


_LEASE: Final = text("SELECT pg_try_advisory_xact_lock(hashtextextended(:name, 0))")
_UNSENT: Final = text("SELECT DISTINCT destination FROM alerts WHERE state IN ('waiting', 'sending')")
_GIVE_UP: Final = text(
    "UPDATE alerts SET state = 'failed', ended_at = now(), "
    "last_error = coalesce(last_error, 'no worker has rules with this destination') "
    "WHERE state = 'waiting' AND created_at < now() - make_interval(secs => :age_s)"
)
_NOTE_REMOVED: Final = text(
    """
    UPDATE alerts SET last_error = removed.reason
    FROM (
        SELECT name, format('the rules have no destination %s: add it again, or the alert fails after %s h',
            name, CAST(:hours AS text)) AS reason
        FROM unnest(CAST(:names AS text[])) AS name
    ) AS removed
    WHERE destination = removed.name AND state = 'waiting' AND last_error IS DISTINCT FROM removed.reason
    """
)
_RESOLVE: Final = text(
    "UPDATE alerts SET state = :state, last_error = :reason, "
    "ended_at = CASE WHEN :state = 'uncertain' THEN now() END "
    "WHERE destination = :name AND state = 'sending' RETURNING id"
)
_CLAIM: Final = text(
    f"""
    UPDATE alerts SET state = 'sending', attempts = attempts + 1
    WHERE id = (
        SELECT id FROM alerts WHERE destination = :name AND state = 'waiting' ORDER BY attempts, id LIMIT 1
    )
    RETURNING id, rule, destination, level, title, content, occurred_at, job_id, attempt,
        (SELECT {SHOWN_NAME} FROM training_jobs AS job WHERE job.id = alerts.job_id) AS job_name
    """  # noqa: S608 - our own SQL
)
_SENT: Final = text("UPDATE alerts SET state = 'sent', ended_at = now(), last_error = NULL WHERE id = :id")
_FAILED: Final = text("UPDATE alerts SET state = 'waiting', last_error = :reason WHERE id = :id")
