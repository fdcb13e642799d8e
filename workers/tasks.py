"""The Celery tasks. Each calls one function that does the work, with the connections of its process."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, partial, wraps
from typing import Any, Final

import structlog

from trainwire.schemas import keys
from trainwire.schemas.backoff import Backoff
from trainwire.schemas.events import decode_events
from trainwire.stores.files.presign_policy import served_prefixes
from trainwire.stores.files.s3 import S3Store, open_s3
from trainwire.stores.mlflow.http import MlflowRefused, MlflowUnavailable
from trainwire.workers.alerts.recorded import forget_occurrences
from trainwire.workers.alerts.rules_file import WrongRules
from trainwire.workers.alerts.watch import evaluate_and_send
from trainwire.workers.app import app
from trainwire.workers.checkpoints.retention import retain
from trainwire.workers.checkpoints.verification import Verification
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.durations import timed_delivery
from trainwire.workers.errors import Unavailable
from trainwire.workers.events.notify import publish, status_events
from trainwire.workers.job_traces import find_traces
from trainwire.workers.liveness.heartbeat_reader import read_heartbeats
from trainwire.workers.liveness.job_status import LostRule, update_statuses
from trainwire.workers.liveness.stop_publisher import publish_stops
from trainwire.workers.operations.job_deletion import JobDeleter
from trainwire.workers.operations.row_retention import RowRetention, row_policies
from trainwire.workers.orders.order_sender import (
    announce,
    order_alerts,
    order_deliveries,
    order_delivery,
    order_verification,
    send_order,
)
from trainwire.workers.resources import Resources, process_resources
from trainwire.workers.rollups.follower import RollupFollower
from trainwire.workers.rollups.pace import TASK_S, RollupPace, has_backlog
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.mlflow.links import link_runs
from trainwire.workers.sinks.mlflow.plugin import mlflow_api
from trainwire.workers.sinks.plugin import plugin
from trainwire.workers.streams.outage_log import OutageLog

log = structlog.get_logger("trainwire.workers.tasks")

ECHO_TTL_S = 300
_rollup_pace: Final = RollupPace()
_liveness_outages: Final = OutageLog("liveness")


def task(name: str, log_name: str, **options: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a Celery task; its first argument is the `Resources` of the process.

    `Unavailable` is logged as the event `<log_name>.unavailable` and ends the task. Except for `notify`, beat
    sends another order later.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        @app.task(name=name, **options)
        @wraps(function)
        def run(*arguments: Any) -> None:
            try:
                function(process_resources(), *arguments)
            except Unavailable as exc:
                log.warning(f"{log_name}.unavailable", reason=str(exc))

        return function

    return register


@task(keys.LIVENESS_TASK, "liveness")
def watch_trainers(resources: Resources) -> None:
    """Set the status of jobs that are stalled, lost or alive again, and publish open requests to stop in Redis.

    Also orders the events about both.
    """
    rule = LostRule(resources.settings.lost_after_s)
    heartbeats = read_heartbeats(resources.streams, resources.settings.ingest_shards, rule.longest_gap_s)
    _liveness_outages.note(heartbeats.unavailable)
    changes = update_statuses(resources.engine, heartbeats, rule)
    announce(resources, partial(status_events, changes), len(changes))
    if asked := publish_stops(resources.engine, resources.streams):
        announce(resources, lambda: asked, len(asked))


@task(keys.DELIVER_TICK_TASK, "deliver_tick")
def order_due_deliveries(resources: Resources) -> None:
    """Order deliveries to all sinks, for rows whose order was lost or whose sink was unavailable."""
    order_deliveries(resources)


@app.task(name=keys.DELIVER_TASK)
def deliver(sink: str) -> None:
    """Deliver the rows that `sink` has not confirmed yet."""
    try:
        _deliver(process_resources(), sink)
    except Unavailable as exc:
        log.warning("delivery.unavailable", reason=str(exc), sink=sink)


def _deliver(resources: Resources, sink: str) -> None:
    """Wait for more rows (`linger_s`), then deliver until none is left or the time slice of one delivery ends.

    If rows may be left then, order another delivery.
    """
    # Collects rows for one delivery: while the key exists no other is ordered.
    time.sleep(plugin(sink).linger_s(resources.settings))
    with redis_errors():
        resources.redis.delete(keys.delivery_ordered_key(sink))
    with timed_delivery(resources.engine, sink):
        report = _delivery(resources, sink).run()
    if report.refused:
        log.warning("delivery.refused", sink=sink, rows=report.refused)
    if report.more:
        order_delivery(resources, sink)


def _delivery(resources: Resources, sink: str) -> Delivery[Any, Any]:
    settings = resources.settings
    if not plugin(sink).is_on(settings):
        raise Unavailable(f"there is an order to deliver to {sink}, which is switched off here (docs/settings.md)")
    backlog, connected = plugin(sink).connect(resources)
    backoff = Backoff(cap_s=settings.delivery_backoff_cap_s)
    return Delivery(
        resources.engine,
        backlog,
        connected,
        slice_s=settings.delivery_slice_s,
        backoff=backoff,
        find_traces=partial(find_traces, resources.streams),
    )


@task(keys.ALERT_TICK_TASK, "alert_tick")
def order_due_alerts(resources: Resources) -> None:
    """Order the evaluation of alert rules, if a file of rules is configured."""
    if resources.settings.alert_rules is not None:
        order_alerts(resources)


@task(keys.ALERT_TASK, "alerts")
def alert(resources: Resources) -> None:
    """Evaluate the alert rules, and send waiting alerts."""
    with redis_errors():
        resources.redis.delete(keys.ALERTS_ORDERED_KEY)
    if resources.settings.alert_rules is None:
        raise Unavailable("there is an order for alerts, but ALERT_RULES is not set here (docs/alerts.md)")
    try:
        evaluate_and_send(resources, resources.settings.alert_rules)
    except WrongRules as exc:
        raise Unavailable(f"nothing is sent until the rules are right: {exc}") from exc


@task(keys.LINK_TICK_TASK, "link_tick")
def order_mlflow_links(resources: Resources) -> None:
    """Order the search for runs that trainers created in MLflow, if MLflow is configured."""
    if resources.settings.mlflow_tracking_uri is not None:
        send_order(resources.redis, keys.LINK_TASK, [], keys.LINK_QUEUE)


@task(keys.LINK_TASK, "link")
def link_mlflow_runs(resources: Resources) -> None:
    """Link jobs to runs that their trainers created in MLflow themselves."""
    uri = resources.settings.mlflow_tracking_uri
    if uri is None:
        return
    try:
        if linked := link_runs(resources.engine, mlflow_api(uri)):
            log.info("mlflow.linked", jobs=linked)
    except (MlflowUnavailable, MlflowRefused) as exc:
        raise Unavailable(str(exc)) from exc


@task(keys.VERIFY_TASK, "verification")
def verify_checkpoints(resources: Resources) -> None:
    """Verify new checkpoint files; order another verification if files are left when its time ends."""
    settings = resources.settings
    with redis_errors():
        resources.redis.delete(keys.VERIFY_ORDERED_KEY)
    report = Verification(
        resources.engine,
        object_store,
        served_prefixes(settings),
        slice_s=settings.delivery_slice_s,
        store_backoff=Backoff(cap_s=settings.delivery_backoff_cap_s),
    ).run()
    if report.wrong or report.unknown:
        log.warning("verification.not_as_recorded", wrong=report.wrong, unknown=report.unknown)
    if report.more:
        order_verification(resources)


@task(keys.RETENTION_TASK, "retention")
def retain_checkpoints(resources: Resources) -> None:
    """Delete checkpoints and orphans according to the settings of retention, or in a dry run only log them."""
    retain(resources, object_store)


@task(keys.ROW_RETENTION_TASK, "row_retention")
def retain_rows(resources: Resources) -> None:
    """Delete old rows of finished jobs, or in a dry run count them.

    Also deletes old occurrences for alert rules that no worker has processed.
    """
    forget_occurrences(resources.engine)
    for policy in row_policies(resources.settings):
        RowRetention(resources.engine, policy).run(dry_run=resources.settings.row_retention == "dry-run")


@task(keys.ROLLUP_TASK, "rollups")
def roll_up_metrics(resources: Resources) -> None:
    """Extend the metric blocks that charts are read from by the new metric rows.

    While drains have a backlog, and for `CALM_S` seconds after, each worker process spends about a tenth of its
    time on this.
    """
    follower = RollupFollower(resources.engine)
    shards, left_s = resources.settings.ingest_shards, TASK_S
    while left_s > 0 and (slice_s := _rollup_pace.slice_s(is_busy=has_backlog(resources.streams, shards))):
        spent_s = follower.run(slice_s)
        _rollup_pace.note(spent_s)
        if spent_s < slice_s:  # no job is due
            return
        left_s -= spent_s


@task(keys.DELETE_TASK, "deletion")
def delete_jobs(resources: Resources) -> None:
    """Continue the deletions of jobs that are due."""
    JobDeleter(resources, object_store).run_due()


@task(keys.NOTIFY_TASK, "notify")
def notify(resources: Resources, events: str) -> None:
    """Publish events on Redis channels. The events are discarded if Redis does not answer."""
    publish(resources.redis, decode_events(events))


@app.task(name=keys.ECHO_TASK)
def echo(worker: str) -> None:
    """Set a Redis key by which the watchdog of the worker `worker` recognizes that its orders are executed."""
    process_resources().redis.set(keys.echo_key(worker), 1, ex=ECHO_TTL_S)


@cache
def object_store() -> S3Store:
    """Return the client of the object store for this process.

    Raises `trainwire.stores.files.s3.S3Unavailable` if the client cannot be made.
    """
    return open_s3()
