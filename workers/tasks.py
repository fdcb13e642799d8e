"""The Celery tasks: each decodes its order, calls one function, returns."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from typing import Any, Final

import structlog

from trainwire.schemas.backoff import Backoff
from trainwire.schemas.events import decode_events
from trainwire.schemas.keys import (
    DELETE_TASK,
    DELIVER_TASK,
    DELIVER_TICK_TASK,
    DRAIN_TASK,
    ECHO_TASK,
    LINK_QUEUE,
    LINK_TASK,
    LINK_TICK_TASK,
    LIVENESS_TASK,
    NOTIFY_TASK,
    RETENTION_TASK,
    ROW_RETENTION_TASK,
    STRAYS_TASK,
    SWEEP_TASK,
    VERIFY_ORDERED_KEY,
    VERIFY_TASK,
    Kind,
    delivery_ordered_key,
    echo_key,
)
from trainwire.stores.files.presign_policy import served_prefixes
from trainwire.stores.files.s3 import S3Store, open_s3
from trainwire.stores.mlflow.http import MlflowRefused, MlflowUnavailable
from trainwire.workers.app import app
from trainwire.workers.checkpoints.retention import retain
from trainwire.workers.checkpoints.verification import Verification
from trainwire.workers.drain.drain import Drain
from trainwire.workers.drain.stream import IngestStream, redis_errors
from trainwire.workers.durations import timed_delivery
from trainwire.workers.errors import MostlyInvalid, Unavailable
from trainwire.workers.events.notify import publish, status_events
from trainwire.workers.liveness.heartbeats import listen
from trainwire.workers.liveness.liveness import LostRule, watch
from trainwire.workers.operations.job_deletion import JobDeleter
from trainwire.workers.operations.row_retention import RowRetention, row_policies
from trainwire.workers.orders import (
    announce,
    order_deliveries,
    order_delivery,
    order_drain,
    order_notify,
    order_verification,
    send_order,
)
from trainwire.workers.resources import Resources, process_resources
from trainwire.workers.sinks.deliver import Delivery
from trainwire.workers.sinks.mlflow.links import link_runs
from trainwire.workers.sinks.mlflow.plugin import mlflow_api
from trainwire.workers.sinks.plugin import plugin
from trainwire.workers.streams.outage_log import AwayNotes
from trainwire.workers.streams.strays import drain_jammed, tend_strays
from trainwire.workers.streams.sweep import overdue, publish_hold, publish_shards

log = structlog.get_logger("trainwire.workers.tasks")

REST_UNAVAILABLE_S = 2
REST_HALTED_S = 1
"""Meanwhile valid messages of other jobs wait; those go through with each try."""
REST_CRASHED_S = 2
"""The next drain looks for the entry that did it."""
DRAIN_SOFT_LIMIT_S: Final = 75
DRAIN_HARD_LIMIT_S: Final = 90
"""More than the longest examination takes (`trainwire.workers.drain.examination`)."""
ECHO_TTL_S = 300
_sweep_notes: Final = AwayNotes("sweep")
_liveness_notes: Final = AwayNotes("liveness")


@contextmanager
def unavailable_is_logged(task: str, **fields: str) -> Iterator[None]:
    """Log that a task found Postgres, Redis or a sink away, and let it end: beat orders it again."""
    try:
        yield
    except Unavailable as exc:
        log.warning(f"{task}.unavailable", reason=str(exc), **fields)


@app.task(name=DRAIN_TASK, soft_time_limit=DRAIN_SOFT_LIMIT_S, time_limit=DRAIN_HARD_LIMIT_S)
def drain(kind: Kind, shard: int) -> None:
    """Drain one stream, and order the rest if the time slice was too short for it."""
    resources = process_resources()
    stream = IngestStream(resources.streams, kind, shard)
    try:
        if shard >= resources.settings.ingest_shards and not stream.has_entries():
            return  # without a cursor for a shard that does not exist
        announce = partial(order_notify, resources)
        drain_jammed(resources, stream, announce)
        drained = Drain(resources.engine, stream, resources.settings, on_commit=announce).run()
        if drained.dead_lettered:
            log.warning("drain.dead_lettered", stream=stream.key, entries=drained.dead_lettered)
        if drained.more:
            order_drain(resources, kind, shard, is_rest=True)
        if drained.stored:
            order_deliveries(resources, kind)
        if drained.stored and kind == "checkpoints":
            order_verification(resources)
    except Unavailable as exc:
        log.warning("drain.unavailable", stream=stream.key, reason=str(exc), next_try_s=REST_UNAVAILABLE_S)
        _rest(stream, REST_UNAVAILABLE_S)
    except MostlyInvalid as exc:
        log.error("drain.halted", stream=stream.key, reason=str(exc), next_try_s=REST_HALTED_S)  # noqa: TRY400
        _rest(stream, REST_HALTED_S)
    except Exception as exc:
        # Our own mistake, or an entry that causes it: loud in the log, and where operators look.
        with suppress(Unavailable):
            stream.halt(f"its drain fails with {type(exc).__name__}: {exc}")
        _rest(stream, REST_CRASHED_S)
        raise


@app.task(name=SWEEP_TASK)
def sweep() -> None:
    """Order overdue drains; publish what trainers read first: the number of shards, whether Redis has room."""
    resources = process_resources()
    with unavailable_is_logged("sweep"):
        publish_shards(resources.streams, resources.settings.ingest_shards)
        publish_hold(resources.streams, resources.settings.redis_high_water)
        found = overdue(resources.streams, resources.settings.ingest_shards)
        _sweep_notes.note(found.away)
        for kind, shard in found.streams:
            order_drain(resources, kind, shard)


@app.task(name=STRAYS_TASK)
def drain_strays() -> None:
    """Drain streams that no shard has; give claims that have none an expiry."""
    resources = process_resources()
    with unavailable_is_logged("strays"):
        tend_strays(resources, partial(order_notify, resources))


@app.task(name=LIVENESS_TASK)
def watch_trainers() -> None:
    """Look which running jobs have stalled or are lost, and which are back, and announce it."""
    resources = process_resources()
    settings = resources.settings
    with unavailable_is_logged("liveness"):
        rule = LostRule(settings.lost_after_s)
        heard = listen(resources.streams, settings.ingest_shards, rule.longest_gap_s)
        _liveness_notes.note(heard.away)
        changes = watch(resources.engine, heard, rule)
        announce(resources, partial(status_events, changes), len(changes))


@app.task(name=DELIVER_TICK_TASK)
def deliver_what_is_due() -> None:
    """Order a delivery: of rows that nobody ordered, or of what waited for its sink to come back."""
    with unavailable_is_logged("deliver_tick"):
        order_deliveries(process_resources())


@app.task(name=DELIVER_TASK)
def deliver(sink: str) -> None:
    """Deliver what a sink has not confirmed, and order the rest if the time slice was too short for it."""
    resources = process_resources()
    # Gathers rows: while the key is there nobody orders again.
    time.sleep(plugin(sink).linger_s(resources.settings))
    with unavailable_is_logged("delivery", sink=sink):
        with redis_errors():
            resources.redis.delete(delivery_ordered_key(sink))
        with timed_delivery(resources.engine, sink):
            report = _delivery(resources, sink).run()
        if report.refused:
            log.warning("delivery.refused", sink=sink, rows=report.refused)
        if report.more:
            order_delivery(resources, sink)


@app.task(name=LINK_TICK_TASK)
def link_mlflow_runs_now() -> None:
    """Order that jobs be linked to runs which their trainers made in MLflow, where there is an MLflow."""
    if process_resources().settings.mlflow_tracking_uri is None:
        return
    with unavailable_is_logged("link_tick"):
        send_order(LINK_TASK, [], LINK_QUEUE)


@app.task(name=LINK_TASK)
def link_mlflow_runs() -> None:
    """Link jobs to runs which their trainers made in MLflow."""
    resources = process_resources()
    uri = resources.settings.mlflow_tracking_uri
    if uri is None:
        return
    try:
        if linked := link_runs(resources.engine, mlflow_api(uri)):
            log.info("mlflow.linked", jobs=linked)
    except (Unavailable, MlflowUnavailable, MlflowRefused) as exc:
        log.warning("link.unavailable", reason=str(exc))


@app.task(name=VERIFY_TASK)
def verify_checkpoints() -> None:
    """Look at checkpoint files that nobody has verified, and order the rest if the time slice was too short."""
    resources = process_resources()
    settings = resources.settings
    with unavailable_is_logged("verification"):
        with redis_errors():
            resources.redis.delete(VERIFY_ORDERED_KEY)
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


@app.task(name=RETENTION_TASK)
def retain_checkpoints() -> None:
    """Delete the checkpoints that need not stay, or in a dry run name them."""
    with unavailable_is_logged("retention"):
        retain(process_resources(), object_store)


@app.task(name=ROW_RETENTION_TASK)
def retain_rows() -> None:
    """Remove old rows of finished jobs, or in a dry run count them."""
    resources = process_resources()
    try:
        for keeping in row_policies(resources.settings):
            RowRetention(resources.engine, keeping).run(dry_run=resources.settings.row_retention == "dry-run")
    except Unavailable as exc:
        log.warning("row_retention.unavailable", reason=str(exc))


@app.task(name=DELETE_TASK)
def delete_jobs() -> None:
    """Go on with the deletions of jobs."""
    with unavailable_is_logged("deletion"):
        JobDeleter(process_resources(), object_store).run_due()


@app.task(name=NOTIFY_TASK)
def notify(events: str) -> None:
    """Publish events; they are not kept for a Redis that is away."""
    with unavailable_is_logged("notify"):
        publish(process_resources().redis, decode_events(events))


@app.task(name=ECHO_TASK)
def echo(worker: str) -> None:
    """Show the worker that its orders come back (see `trainwire.workers.watchdog`)."""
    process_resources().redis.set(echo_key(worker), 1, ex=ECHO_TTL_S)


@cache
def object_store() -> S3Store:
    """Return this process's own object store, or raise `trainwire.stores.files.s3.S3Unavailable`."""
    return open_s3()


def _delivery(resources: Resources, sink: str) -> Delivery[Any, Any]:
    settings = resources.settings
    if not plugin(sink).is_on(settings):
        raise Unavailable(f"there is an order to deliver to {sink}, which is switched off here (docs/settings.md)")
    backlog, connected = plugin(sink).connect(resources)
    backoff = Backoff(cap_s=settings.delivery_backoff_cap_s)
    return Delivery(resources.engine, backlog, connected, slice_s=settings.delivery_slice_s, backoff=backoff)


def _rest(stream: IngestStream, seconds: int) -> None:
    with suppress(Unavailable):  # without Redis nobody can order a drain anyway
        stream.rest(seconds)
