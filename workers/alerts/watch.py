"""Evaluates the alert rules on new data, then sends waiting alerts."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from trainwire.schemas.backoff import Backoff
from trainwire.schemas.wire.heartbeats import Heartbeat
from trainwire.workers.alerts.alert_rows import lease_evaluation, reported_period
from trainwire.workers.alerts.delivery import AlertDelivery
from trainwire.workers.alerts.heartbeat_watch import CAUSES, apply_to_heartbeats
from trainwire.workers.alerts.metric_watch import MetricWatch
from trainwire.workers.alerts.recorded import apply_to_recorded
from trainwire.workers.alerts.rules import AlertRules
from trainwire.workers.alerts.rules_file import load_rules
from trainwire.workers.drain.store import postgres_errors
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.liveness.heartbeat_reader import recent_heartbeats
from trainwire.workers.resources import Resources

METRIC_SLICE_S: Final = 3.0


def evaluate_and_send(resources: Resources, path: Path) -> None:
    """Evaluate the rules in the file at `path`, and send waiting alerts.

    Raises `WrongRules` if the file cannot be used, and `Unavailable` if Postgres or Redis does not answer.
    """
    rules = load_rules(path)
    settings = resources.settings
    with postgres_errors():
        apply_rules(resources, rules)
    backoff = Backoff(cap_s=settings.delivery_backoff_cap_s)
    AlertDelivery(resources.engine, rules, slice_s=settings.delivery_slice_s, backoff=backoff).run()


def apply_rules(resources: Resources, rules: AlertRules) -> None:
    """Evaluate all rules on data that was not evaluated yet, and write the resulting alerts to Postgres.

    The evaluation of metrics ends after about `METRIC_SLICE_S` seconds; the next call continues it.
    """
    with resources.engine.begin() as connection:
        period = reported_period(connection, rules.max_age_h)
    has_more = True
    while has_more:
        with resources.engine.begin() as connection:
            has_more = lease_evaluation(connection) and apply_to_recorded(connection, rules, period)
    MetricWatch(resources.engine, rules, period).run(METRIC_SLICE_S)
    if any(not rule.causes.isdisjoint(CAUSES) for rule in rules.rules) and (beats := _beats(resources)):
        with resources.engine.begin() as connection:
            if lease_evaluation(connection):
                apply_to_heartbeats(connection, rules, beats)


def _beats(resources: Resources) -> list[Heartbeat] | None:
    """Return the heartbeats of the last `lost_after_s` seconds; None if one of several Redis servers is down.

    Raises `Unavailable` if a single Redis does not answer.
    """
    settings = resources.settings
    with redis_errors():
        return recent_heartbeats(resources.streams, settings.ingest_shards, settings.lost_after_s)
