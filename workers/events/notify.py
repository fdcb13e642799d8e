"""Makes events about committed transactions, and publishes them on Redis channels (docs/events.md)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, cast

import redis
from msgspec.structs import replace

from trainwire.schemas.events import (
    Event,
    TrainingCheckpoint,
    TrainingComplete,
    TrainingError,
    TrainingLog,
    TrainingProgress,
    TrainingStatus,
    encode_event,
)
from trainwire.schemas.keys import JOBS_CHANNEL, events_channel
from trainwire.schemas.non_finite import shown_float
from trainwire.schemas.tables.kinds import ROW_KINDS, RowKind, without_rows
from trainwire.schemas.wire.messages import Completion, FinalStatus, Metrics, Point, Status
from trainwire.stores.postgres.columns import MOST_SHOWN_NAMES
from trainwire.stores.tracing import span
from trainwire.workers.drain.changes import Change, StatusChange
from trainwire.workers.drain.jobs import JobState
from trainwire.workers.drain.rows import as_stored
from trainwire.workers.drain.stream import redis_errors
from trainwire.workers.events.new_rows import numbers, rows_of_event, text
from trainwire.workers.redis_commands import Command, execute_all

MAX_EVENT_BYTES: Final = 64 * 1024
MAX_ORDER_BYTES: Final = 256 * 1024
MAX_WAITING_ORDERS: Final = 256
"""While this number of orders waits, events are dropped, so that orders without a worker do not fill Redis."""
_CUT_TEXT_CHARS: Final = 1000
_MIN_EVENT_BYTES: Final = 150
"""Minimum size of an event that contains a row."""


def events_of(changes: Iterable[Change]) -> list[Event]:
    """Return the events about a committed transaction: for each job its new status, its new rows, and its end.

    If there are so many jobs that `payloads` would remove the rows anyway, the events are made without rows.
    """
    changes = list(changes)
    has_rows = len(changes) * _MIN_EVENT_BYTES <= MAX_ORDER_BYTES
    return [event for change in changes for event in _events_of_job(change, has_rows=has_rows)]


def with_subscribers(client: redis.Redis, changes: Sequence[Change]) -> list[Change]:
    """Return the committed changes whose events have a subscriber: of most jobs, nobody follows the events.

    A client that subscribes later reads the rows from Postgres afterwards, as after any subscription. Redis does
    not report which patterns are subscribed (PSUBSCRIBE), so these do not count.
    """
    job_ids = {change.after.id for change in changes}
    with redis_errors():
        found = cast("Any", client).pubsub_numsub(JOBS_CHANNEL, *map(events_channel, job_ids))
    followed = {channel.decode() for channel, subscribers in found if subscribers}
    are_all_followed = JOBS_CHANNEL in followed  # except log lines
    return [
        change
        for change in changes
        if events_channel(change.after.id) in followed
        or (are_all_followed and (change.kind != "logs" or _begins(change)))
    ]


def status_events(changes: Iterable[StatusChange]) -> list[Event]:
    """Return events about jobs whose status was changed because of their heartbeats."""
    return [
        TrainingStatus(
            job_id=change.after.id,
            attempt=change.after.attempt,
            status=change.after.status,
            previous_status=change.before.status,
            reason=change.reason,
        )
        for change in changes
    ]


def payloads(events: Iterable[Event]) -> list[bytes]:
    """Return the events as JSON arrays of at most `MAX_ORDER_BYTES` each.

    From events larger than `MAX_EVENT_BYTES`, lists and maps are removed, and long texts in them are truncated. If
    all events together do not fit into one array, lines, points and checkpoints are removed from all of them.
    """
    bounded = [_bounded(event) for event in events]
    encoded = [data for _, data in bounded]
    if sum(map(len, encoded)) > MAX_ORDER_BYTES:
        lighter = ((without_rows(event), event, data) for event, data in bounded)
        encoded = [data if light is event else encode_event(light) for light, event, data in lighter]
    packs: list[list[bytes]] = []
    room = 0
    for data in encoded:
        if len(data) > room:
            packs.append([])
            room = MAX_ORDER_BYTES - 2
        packs[-1].append(data)
        room -= len(data) + 1
    return [b"[" + b",".join(pack) + b"]" for pack in packs]


def publish(client: redis.Redis, events: Iterable[Event]) -> None:
    """Publish each event on the channel of its job and, except for log lines, on the channel of all jobs.

    Raises `Unavailable` if Redis does not answer.
    """
    commands: list[Command] = []
    parents: list[str | None] = []
    for event in events:
        data = encode_event(event)
        parents.append(event.traceparent or None)
        commands.append(("PUBLISH", events_channel(event.job_id), data))
        if not isinstance(event, TrainingLog):
            commands.append(("PUBLISH", JOBS_CHANNEL, data))
    with redis_errors(), span("publish", parents, kind="producer", events=len(parents)):
        execute_all(client, commands)


def _events_of_job(change: Change, *, has_rows: bool) -> Iterator[Event]:
    if _begins(change):
        yield TrainingStatus(**_head(change), status=change.after.status, previous_status=change.before.status)
    match change.kind:
        case "logs":
            yield from _log_event(change, has_rows=has_rows)
        case "metrics":
            yield _progress_event(change, has_rows=has_rows)
        case "checkpoints":
            yield _checkpoint_event(change, has_rows=has_rows)
        case "completions":
            yield from _log_event(change, has_rows=has_rows)
            yield from _end_event(change)


def _log_event(change: Change, *, has_rows: bool) -> Iterator[TrainingLog]:
    if change.new_rows("logs"):
        yield TrainingLog(**_head(change), **_new_rows(change, "logs", has_rows=has_rows))


def _progress_event(change: Change, *, has_rows: bool) -> TrainingProgress:
    job, newest = change.after, _newest_point(change)
    return TrainingProgress(
        **_head(change),
        **_new_rows(change, "metrics", has_rows=has_rows),
        status=job.status,
        current_epoch=job.current_epoch,
        total_epochs=job.total_epochs,
        progress_percent=None if job.progress_percent is None else shown_float(job.progress_percent),
        metrics=numbers(as_stored(newest.values)) if newest else None,
        checkpoint_path=text(newest.checkpoint_path if newest else None) or job.last_checkpoint_path,
        best_checkpoint_path=job.best_checkpoint_path,
    )


def _checkpoint_event(change: Change, *, has_rows: bool) -> TrainingCheckpoint:
    return TrainingCheckpoint(
        **_head(change),
        **_new_rows(change, "checkpoints", has_rows=has_rows),
        best_checkpoint_path=change.after.best_checkpoint_path,
        last_checkpoint_path=change.after.last_checkpoint_path,
    )


def _end_event(change: Change) -> Iterator[TrainingComplete | TrainingError]:
    """Yield the event about the end of the attempt, if a completion of this transaction ended it."""
    job = change.after
    ends = [each for each in change.messages if isinstance(each.body, Completion) and each.body.is_of_job]
    if not job.is_finished or job.attempt not in map(change.attempt_of, ends):
        return
    ended = TrainingError if job.status == "failed" else TrainingComplete
    yield ended(
        **_head(change),
        kind="completions",
        status=cast("FinalStatus", job.status),
        exit_code=job.exit_code,
        total_epochs_completed=job.current_epoch,
        final_metrics=numbers(_first_names(job.final_metrics)),
        best_metrics=numbers(_first_names(job.best_metrics)),
        best_epoch=job.best_epoch,
        final_checkpoint_path=job.last_checkpoint_path,
        best_checkpoint_path=job.best_checkpoint_path,
        mlflow_run_id=job.mlflow_run_id,
        error_message=job.error_message,
    )


def _first_names(values: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the metrics that the feed would read from Postgres: the first `MOST_SHOWN_NAMES` in JSONB's order.

    JSONB sorts shorter names first. Returns None for None.
    """
    if values is None or len(values) <= MOST_SHOWN_NAMES:
        return values
    encoded = sorted(values, key=lambda name: (len(data := name.encode(errors="replace")), data))
    return {name: values[name] for name in encoded[:MOST_SHOWN_NAMES]}


def _head(change: Change) -> dict[str, Any]:
    """Return the fields that every event about a job contains, whatever else it reports."""
    head = {"job_id": change.after.id, "attempt": change.after.attempt}
    return head if change.traceparent is None else {**head, "traceparent": change.traceparent}


def _new_rows(change: Change, kind: RowKind, *, has_rows: bool) -> dict[str, Any]:
    """Return the fields of an event for the rows of `kind` that the transaction wrote.

    The rows themselves are included if `has_rows` is True and they are not too large.
    """
    first, last = change.new_rows(kind) or (None, None)
    rows = rows_of_event(change, kind) if has_rows else None
    return {"kind": kind, "first_seq": first, "last_seq": last, ROW_KINDS[kind].items: rows}


def _newest_point(change: Change) -> Point | None:
    """Return the last point of the job's newest attempt, or None. Points of earlier attempts may arrive late."""
    for message in reversed(change.messages):
        points = message.body.points if isinstance(message.body, Metrics) else []
        if points and change.attempt_of(message) == change.after.attempt:
            return points[-1]
    return None


def _begins(change: Change) -> bool:
    """Return whether the job has a new attempt or status, and has not ended."""
    return not change.after.is_finished and _attempt_and_status(change.before) != _attempt_and_status(change.after)


def _attempt_and_status(job: JobState) -> tuple[int, Status]:
    return job.attempt, job.status


def _bounded(event: Event) -> tuple[Event, bytes]:
    """Return the event and its JSON text.

    If the JSON is larger than an event may be, lists and maps are removed, and long texts truncated.
    """
    data = encode_event(event)
    if len(data) <= MAX_EVENT_BYTES:
        return event, data
    lighter: dict[str, Any] = {}
    for name in event.__struct_fields__:
        match getattr(event, name):
            case list() | dict():
                lighter[name] = None
            case str(long) if len(long) > _CUT_TEXT_CHARS:
                lighter[name] = long[:_CUT_TEXT_CHARS] + "…"
    light = replace(event, **lighter)
    return light, encode_event(light)
